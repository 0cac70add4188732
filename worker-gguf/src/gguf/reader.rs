//! A bounded little-endian reader: it knows where it is, how long the file is, and never reads past it.

use std::io::{BufReader, Read, Seek};

use super::GgufError;
use super::limits::BUFFER_BYTES;

pub(super) struct Reader<R> {
    inner: BufReader<R>,
    /// Position in the file.
    pub(super) at: u64,
    /// Length of the file.
    pub(super) file_bytes: u64,
}

impl<R: Read + Seek> Reader<R> {
    pub(super) fn new(inner: R, file_bytes: u64) -> Self {
        Self { inner: BufReader::with_capacity(BUFFER_BYTES, inner), at: 0, file_bytes }
    }

    /// Bytes that follow.
    pub(super) fn left(&self) -> u64 {
        self.file_bytes.saturating_sub(self.at)
    }

    pub(super) fn fill(&mut self, buffer: &mut [u8], what: &'static str) -> Result<(), GgufError> {
        let at = self.at;
        if self.left() < buffer.len() as u64 {
            return Err(GgufError::Ends { what, at, file_bytes: self.file_bytes });
        }
        self.inner.read_exact(buffer).map_err(|source| match source.kind() {
            // The file has become shorter since its length was asked for.
            std::io::ErrorKind::UnexpectedEof => GgufError::Ends { what, at, file_bytes: at },
            _ => GgufError::Read { at, source },
        })?;
        self.at += buffer.len() as u64;
        Ok(())
    }

    pub(super) fn skip(&mut self, bytes: u64, what: &'static str) -> Result<(), GgufError> {
        let at = self.at;
        let ends = GgufError::Ends { what, at, file_bytes: self.file_bytes };
        if self.left() < bytes {
            return Err(ends);
        }
        let Ok(offset) = i64::try_from(bytes) else { return Err(ends) };
        self.inner.seek_relative(offset).map_err(|source| GgufError::Read { at, source })?;
        self.at += bytes;
        Ok(())
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], GgufError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, what)?;
        Ok(bytes)
    }

    pub(super) fn u8(&mut self, what: &'static str) -> Result<u8, GgufError> {
        self.array::<1>(what).map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self, what: &'static str) -> Result<u16, GgufError> {
        self.array(what).map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A length or count; each of what it counts takes at least `item_bytes`, so the file bounds it.
    pub(super) fn count(&mut self, what: &'static str, item_bytes: u64, limit: u64) -> Result<u64, GgufError> {
        let at = self.at;
        let count = self.u64(what)?;
        let left = self.left();
        if count > left / item_bytes {
            return Err(GgufError::Impossible { what, at, count, left });
        }
        if count > limit {
            return Err(GgufError::TooMany { what, at, count, limit });
        }
        Ok(count)
    }

    /// A text of at most `limit` bytes. The buffer is as long as the text, which the file is known to hold.
    pub(super) fn text(&mut self, what: &'static str, limit: u64) -> Result<Vec<u8>, GgufError> {
        let len = self.count(what, 1, limit)?;
        let mut bytes = vec![0; usize::try_from(len).expect("texts are limited to some megabytes")];
        self.fill(&mut bytes, what)?;
        Ok(bytes)
    }
}
