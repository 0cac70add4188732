//! Frames: `u32` length, `u8` tag, `u64` request id, then the message in bincode.
//!
//! Integers are little-endian; the length counts what follows it. This is the only file that names bincode, so a
//! successor is one file away (2.0.1 is pinned: the crate is archived and 3.0.0 is an empty release). The tag is an
//! enum of its own, apart from the messages, so that a reader can tell what it does not know before it decodes
//! anything. The decoder is incremental and total: any byte string yields frames or a typed error, never a panic,
//! and a length is checked before anything is allocated for it.

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::control::{FromWorker, ToWorker};
use crate::ids::{RequestId, TokenId};
use crate::limits::{FRAME_BYTES_MAX, FRAME_HEADER_BYTES};
use crate::request::{CacheSalt, Format, Limits, Logprobs, Request, ResumePoint, Sampling, UnixSeconds, Work};

/// What a frame carries. Numbers are the wire; never reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Tag {
    /// [`ToWorker::Hello`].
    SupervisorHello = 1,
    /// [`ToWorker::Load`].
    Load = 2,
    /// [`ToWorker::Run`].
    Run = 3,
    /// [`ToWorker::Cancel`].
    Cancel = 4,
    /// [`ToWorker::Drain`].
    Drain = 5,
    /// [`ToWorker::Trim`].
    Trim = 6,
    /// [`ToWorker::Pause`].
    Pause = 7,
    /// [`ToWorker::Continue`].
    Continue = 8,
    /// [`FromWorker::Hello`].
    WorkerHello = 64,
    /// [`FromWorker::LoadProgress`].
    LoadProgress = 65,
    /// [`FromWorker::Ready`].
    Ready = 66,
    /// [`FromWorker::LoadFailed`].
    LoadFailed = 67,
    /// [`FromWorker::Output`].
    Output = 68,
    /// [`FromWorker::Memory`].
    Memory = 69,
    /// [`FromWorker::Progress`].
    Progress = 70,
    /// [`FromWorker::Bye`].
    Bye = 71,
}

impl Tag {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::SupervisorHello,
            2 => Self::Load,
            3 => Self::Run,
            4 => Self::Cancel,
            5 => Self::Drain,
            6 => Self::Trim,
            7 => Self::Pause,
            8 => Self::Continue,
            64 => Self::WorkerHello,
            65 => Self::LoadProgress,
            66 => Self::Ready,
            67 => Self::LoadFailed,
            68 => Self::Output,
            69 => Self::Memory,
            70 => Self::Progress,
            71 => Self::Bye,
            _ => return None,
        })
    }
}

/// Why bytes are not a frame.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// The length field is over the limit or too small for a header.
    #[error("frame of {bytes} bytes is outside {min}..={max}", min = FRAME_HEADER_BYTES - 4, max = FRAME_BYTES_MAX)]
    Length {
        /// What the field said.
        bytes: usize,
    },
    /// The tag is unknown, or belongs to the other direction.
    #[error("frame tag {tag} is not expected here")]
    Tag {
        /// What the field said.
        tag: u8,
    },
    /// The payload is not the message that the tag says.
    #[error("payload of frame tag {tag} is malformed: {reason}")]
    Payload {
        /// Which message it should be.
        tag: u8,
        /// The decoder's words.
        reason: String,
    },
    /// A message that is too large to be sent.
    #[error("message could not be encoded: {reason}")]
    Encode {
        /// The encoder's words.
        reason: String,
    },
}

/// A message of one direction.
pub trait WireMessage: Sized + sealed::Sealed {
    #[doc(hidden)]
    fn tag_and_request(&self) -> (Tag, RequestId);
    #[doc(hidden)]
    fn belongs(tag: Tag) -> bool;
    #[doc(hidden)]
    fn write(&self, out: &mut Vec<u8>) -> Result<(), FrameError>;
    #[doc(hidden)]
    fn read(tag: Tag, payload: &[u8]) -> Result<Self, FrameError>;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::ToWorker {}
    impl Sealed for super::FromWorker {}
}

const NONE: RequestId = RequestId(0);

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<FRAME_BYTES_MAX>()
}

fn put<T: Serialize>(value: &T, out: &mut Vec<u8>) -> Result<(), FrameError> {
    bincode::serde::encode_into_std_write(value, out, config())
        .map(drop)
        .map_err(|error| FrameError::Encode { reason: error.to_string() })
}

fn get<T: DeserializeOwned>(tag: Tag, payload: &[u8]) -> Result<T, FrameError> {
    let malformed = |reason: String| FrameError::Payload { tag: tag as u8, reason };
    let (value, used) =
        bincode::serde::decode_from_slice(payload, config()).map_err(|error| malformed(error.to_string()))?;
    if used == payload.len() { Ok(value) } else { Err(malformed(format!("{} bytes left over", payload.len() - used))) }
}

impl WireMessage for ToWorker {
    fn tag_and_request(&self) -> (Tag, RequestId) {
        match self {
            Self::Hello { .. } => (Tag::SupervisorHello, NONE),
            Self::Load(_) => (Tag::Load, NONE),
            Self::Run(request) => (Tag::Run, request.id),
            Self::Cancel(id) => (Tag::Cancel, *id),
            Self::Drain => (Tag::Drain, NONE),
            Self::Trim => (Tag::Trim, NONE),
            Self::Pause(id) => (Tag::Pause, *id),
            Self::Continue(id) => (Tag::Continue, *id),
        }
    }

    fn belongs(tag: Tag) -> bool {
        use Tag::{Cancel, Continue, Drain, Load, Pause, Run, SupervisorHello, Trim};
        matches!(tag, SupervisorHello | Load | Run | Cancel | Drain | Trim | Pause | Continue)
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        put(self, out)
    }

    fn read(tag: Tag, payload: &[u8]) -> Result<Self, FrameError> {
        get(tag, payload)
    }
}

impl WireMessage for FromWorker {
    fn tag_and_request(&self) -> (Tag, RequestId) {
        match self {
            Self::Hello(_) => (Tag::WorkerHello, NONE),
            Self::LoadProgress { .. } => (Tag::LoadProgress, NONE),
            Self::Ready(_) => (Tag::Ready, NONE),
            Self::LoadFailed(_) => (Tag::LoadFailed, NONE),
            Self::Output(id, _) => (Tag::Output, *id),
            Self::Memory(_) => (Tag::Memory, NONE),
            Self::Progress { .. } => (Tag::Progress, NONE),
            Self::Bye => (Tag::Bye, NONE),
        }
    }

    fn belongs(tag: Tag) -> bool {
        !ToWorker::belongs(tag)
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        put(self, out)
    }

    fn read(tag: Tag, payload: &[u8]) -> Result<Self, FrameError> {
        get(tag, payload)
    }
}

/// Appends one frame to `out`, so that several travel in one write.
///
/// # Errors
/// The message is larger than a frame may be; `out` is as before.
pub fn encode<M: WireMessage>(message: &M, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let (tag, request) = message.tag_and_request();
    framed(tag, request, out, |out| message.write(out))
}

/// Appends the frame of [`ToWorker::Run`] for a request that is kept by its owner, with these tokens in the place of
/// its own: resuming must not copy a prompt.
///
/// # Errors
/// As [`encode`].
pub fn encode_run(request: &Request, progress: &ResumePoint, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let Request { id, work, sampling, stop, format, limits, logprobs, asked_at, cache_salt, progress: _ } = request;
    let borrowed = Borrowed { id, work, sampling, stop, format, limits, logprobs, asked_at, cache_salt, progress };
    // It may be many megabytes, of which a list that grows by doubling makes copies.
    out.reserve(request.bytes() + progress.produced.len() * size_of::<TokenId>());
    // A variant of an enum travels as its number and then its fields.
    framed(Tag::Run, request.id, out, |out| put(&(RUN_VARIANT, borrowed), out))
}

/// Place of [`ToWorker::Run`] among its variants.
const RUN_VARIANT: u32 = 2;

/// A [`Request`], field by field and in its order.
#[derive(Serialize)]
struct Borrowed<'a> {
    id: &'a RequestId,
    work: &'a Work,
    sampling: &'a Sampling,
    stop: &'a [String],
    format: &'a Format,
    limits: &'a Limits,
    logprobs: &'a Option<Logprobs>,
    asked_at: &'a UnixSeconds,
    cache_salt: &'a CacheSalt,
    progress: &'a ResumePoint,
}

fn framed(
    tag: Tag,
    request: RequestId,
    out: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), FrameError>,
) -> Result<(), FrameError> {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.push(tag as u8);
    out.extend_from_slice(&request.0.to_le_bytes());
    let written = write(out).and_then(|()| {
        let bytes = out.len() - start - 4;
        if bytes > FRAME_BYTES_MAX { Err(FrameError::Length { bytes }) } else { Ok(bytes) }
    });
    match written {
        Ok(bytes) => {
            let length = u32::try_from(bytes).expect("FRAME_BYTES_MAX fits 32 bits");
            out[start..start + 4].copy_from_slice(&length.to_le_bytes());
            Ok(())
        }
        Err(error) => {
            out.truncate(start);
            Err(error)
        }
    }
}

/// Turns bytes into messages of one direction. Feed it with [`push`](Self::push), drain it with
/// [`next_message`](Self::next_message). After an error it must be dropped together with the connection.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
}

impl Decoder {
    /// An empty decoder.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes as they arrive.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether a frame has begun and not ended: its sender owes the rest by a deadline.
    #[must_use]
    pub fn is_mid_frame(&self) -> bool {
        self.start < self.buffer.len()
    }

    /// Bytes that wait for the rest of their frame.
    #[must_use]
    pub fn buffered_bytes(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// The next whole message, or `None` where more bytes are needed.
    ///
    /// # Errors
    /// The peer broke the protocol.
    pub fn next_message<M: WireMessage>(&mut self) -> Result<Option<M>, FrameError> {
        let rest = &self.buffer[self.start..];
        let Some((length, body)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        let bytes = u32::from_le_bytes(*length) as usize;
        if !(FRAME_HEADER_BYTES - 4..=FRAME_BYTES_MAX).contains(&bytes) {
            return Err(FrameError::Length { bytes });
        }
        // The tag is checked as soon as it is there: a stranger is refused before its bytes are collected.
        if let Some(&byte) = body.first()
            && !Tag::from_byte(byte).is_some_and(M::belongs)
        {
            return Err(FrameError::Tag { tag: byte });
        }
        let Some(frame) = body.get(..bytes) else { return Ok(None) };
        let Some((&byte, rest)) = frame.split_first() else { return Err(FrameError::Length { bytes }) };
        let Some(tag) = Tag::from_byte(byte) else { return Err(FrameError::Tag { tag: byte }) };
        let Some((request, payload)) = rest.split_first_chunk::<8>() else {
            return Err(FrameError::Length { bytes });
        };
        let message = M::read(tag, payload)?;
        let (inner_tag, inner_request) = message.tag_and_request();
        if inner_tag != tag || inner_request.0 != u64::from_le_bytes(*request) {
            return Err(FrameError::Payload { tag: byte, reason: "header and payload disagree".to_owned() });
        }
        self.start += 4 + bytes;
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::WorkerHello;
    use crate::ids::{Incarnation, ModelId, WorkerId};
    use crate::output::{Delta, Output, Part};

    fn samples() -> Vec<FromWorker> {
        vec![
            FromWorker::Hello(WorkerHello {
                versions: vec![1],
                build: "test".to_owned(),
                worker: WorkerId { model: ModelId("ab".repeat(32)), incarnation: Incarnation(3) },
                pid: 77,
                token: [9; 32],
            }),
            FromWorker::Output(
                RequestId(5),
                Output::Delta(Delta {
                    tokens: vec![1, 2],
                    text: "hé".to_owned(),
                    part: Part::Content,
                    logprobs: Vec::new(),
                }),
            ),
            FromWorker::Bye,
        ]
    }

    #[test]
    fn messages_survive_any_split() {
        let mut bytes = Vec::new();
        for message in samples() {
            encode(&message, &mut bytes).expect("samples are small");
        }
        for step in 1..bytes.len() {
            let mut decoder = Decoder::new();
            let mut seen = Vec::new();
            for piece in bytes.chunks(step) {
                decoder.push(piece);
                while let Some(message) = decoder.next_message::<FromWorker>().expect("own bytes are legal") {
                    seen.push(message);
                }
            }
            assert_eq!(seen, samples(), "pieces of {step} bytes");
            assert!(!decoder.is_mid_frame());
        }
    }

    #[test]
    fn a_lying_length_is_refused_before_its_bytes_arrive() {
        for bytes in [0_u32, 8, u32::MAX, FRAME_BYTES_MAX as u32 + 1] {
            let mut decoder = Decoder::new();
            decoder.push(&bytes.to_le_bytes());
            let refused = decoder.next_message::<FromWorker>();
            assert_eq!(refused, Err(FrameError::Length { bytes: bytes as usize }));
        }
        let mut decoder = Decoder::new();
        decoder.push(&(FRAME_BYTES_MAX as u32).to_le_bytes());
        assert_eq!(decoder.next_message::<FromWorker>(), Ok(None), "the largest legal frame may begin");
    }

    #[test]
    fn the_other_direction_is_refused() {
        let mut bytes = Vec::new();
        encode(&ToWorker::Drain, &mut bytes).expect("small");
        let mut decoder = Decoder::new();
        decoder.push(&bytes);
        assert_eq!(decoder.next_message::<FromWorker>(), Err(FrameError::Tag { tag: Tag::Drain as u8 }));
    }

    #[test]
    fn a_header_that_disagrees_with_its_payload_is_refused() {
        let mut bytes = Vec::new();
        encode(&ToWorker::Cancel(RequestId(5)), &mut bytes).expect("small");
        bytes[5] = 6;
        let mut decoder = Decoder::new();
        decoder.push(&bytes);
        assert!(matches!(decoder.next_message::<ToWorker>(), Err(FrameError::Payload { .. })));
    }

    #[test]
    fn every_truncation_and_every_flipped_byte_is_an_answer_not_a_panic() {
        let mut bytes = Vec::new();
        for message in samples() {
            encode(&message, &mut bytes).expect("small");
        }
        for position in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[position] ^= 1 << bit;
                let mut decoder = Decoder::new();
                decoder.push(&damaged);
                while let Ok(Some(_)) = decoder.next_message::<FromWorker>() {}
            }
        }
    }
}
