//! Uploads: bytes go to a temporary file and become a blob only if their hash is the promised one.
//!
//! File work runs off the async threads, a buffer at a time. A writer that is dropped unfinished leaves no file.

use std::fs::File;
use std::io::{self, Read, Write};

use crate::limits::{BLOB_BUFFER_BYTES, BLOB_BYTES_MAX};
use sha2::{Digest as _, Sha256};

use super::digest::Digest;
use super::store::Store;
use super::{CatalogError, blocking, io_error};
use crate::os::folder::Draft;

/// An upload in progress.
#[derive(Debug)]
pub struct BlobWriter {
    store: Store,
    digest: Digest,
    buffer: Vec<u8>,
    written_bytes: u64,
    state: UploadState,
}

#[derive(Debug)]
enum UploadState {
    /// The blob is there already; bytes are dropped.
    Present,
    /// Bytes are gathered.
    Open(Box<Sink>),
    /// A write failed or was cancelled; the file is gone.
    Broken,
}

#[derive(Debug)]
struct Sink {
    file: Draft,
    hash: Sha256,
}

impl Sink {
    fn new(store: &Store) -> io::Result<Self> {
        Ok(Self { file: store.new_blob_file()?, hash: Sha256::new() })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.file.write_all(bytes)
    }
}

impl BlobWriter {
    pub(crate) async fn open(store: Store, digest: Digest) -> Result<Self, CatalogError> {
        let (looked_for, place) = (digest.clone(), store.clone());
        let state = blocking("open a blob", move || {
            // A blob that may not be read is written anew: the rename replaces a link, it does not follow it.
            if matches!(place.blob(&looked_for), Ok(Some(_))) {
                return Ok(UploadState::Present);
            }
            Sink::new(&place).map(|sink| UploadState::Open(Box::new(sink))).map_err(io_error("create a blob"))
        })
        .await?;
        Ok(Self { store, digest, buffer: Vec::new(), written_bytes: 0, state })
    }

    /// Takes some bytes. Cancelling it breaks the upload: what follows fails, and no file stays.
    ///
    /// # Errors
    /// The disk refuses, or the blob is larger than any may be.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), CatalogError> {
        self.written_bytes = self.written_bytes.saturating_add(bytes.len() as u64);
        if self.written_bytes > BLOB_BYTES_MAX {
            self.state = UploadState::Broken;
            let message = format!("blob is larger than {BLOB_BYTES_MAX} bytes");
            return Err(CatalogError::Refused { status_hint: 413, message });
        }
        match self.state {
            UploadState::Present => return Ok(()),
            UploadState::Broken => return Err(broken()),
            UploadState::Open(_) => {}
        }
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BLOB_BUFFER_BYTES { self.flush().await } else { Ok(()) }
    }

    /// Completes the upload. `true`: the blob is new; `false`: it was there.
    ///
    /// # Errors
    /// The bytes have another hash, or the disk refuses. No file stays.
    pub async fn finish(mut self) -> Result<bool, CatalogError> {
        if matches!(self.state, UploadState::Present) {
            return Ok(false);
        }
        self.flush().await?;
        let UploadState::Open(sink) = self.state else { return Err(broken()) };
        let (store, digest) = (self.store, self.digest);
        blocking("finish a blob", move || {
            let Sink { file, hash } = *sink;
            let actual = Digest::finish(hash);
            if actual != digest {
                return Err(CatalogError::DigestMismatch { expected: digest.to_string(), actual: actual.to_string() });
            }
            if matches!(store.blob(&digest), Ok(Some(_))) {
                return Ok(false); // Another upload of the same blob was faster.
            }
            file.publish(&digest.file_name()).map_err(io_error("publish a blob"))?;
            Ok(true)
        })
        .await
    }

    async fn flush(&mut self) -> Result<(), CatalogError> {
        let UploadState::Open(mut sink) = std::mem::replace(&mut self.state, UploadState::Broken) else {
            return Err(broken());
        };
        let mut buffer = std::mem::take(&mut self.buffer);
        let (sink, buffer) = blocking("write a blob", move || {
            sink.write(&buffer).map_err(io_error("write a blob"))?;
            buffer.clear();
            Ok((sink, buffer))
        })
        .await?;
        self.state = UploadState::Open(sink);
        self.buffer = buffer;
        Ok(())
    }
}

/// Copies a file into the store, and says whether the blob is new. Blocking, as long as the file is; `heard` is told
/// the bytes so far.
pub(crate) fn import(store: &Store, mut source: File, heard: &mut dyn FnMut(u64)) -> io::Result<(Digest, bool)> {
    let mut copied_bytes = 0_u64;
    let mut sink = Sink::new(store)?;
    let mut buffer = vec![0_u8; BLOB_BUFFER_BYTES];
    loop {
        let count = source.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        sink.write(&buffer[..count])?;
        copied_bytes = copied_bytes.saturating_add(count as u64);
        heard(copied_bytes);
    }
    let digest = Digest::finish(sink.hash);
    if matches!(store.blob(&digest), Ok(Some(_))) {
        return Ok((digest, false));
    }
    sink.file.publish(&digest.file_name())?;
    Ok((digest, true))
}

fn broken() -> CatalogError {
    CatalogError::Io { what: "write a blob".into(), source: io::Error::other("the upload was broken off") }
}
