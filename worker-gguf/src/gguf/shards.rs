//! A model in one file or in several.
//!
//! Shards are named `…-00001-of-00003.gguf`; the first one has the metadata. llama.cpp finds the others by that name
//! in the same folder, so they must be there.

use std::path::{Path, PathBuf};

use ollmlx_proto::Failure;

use super::limits::SHARDS_MAX;
use super::{GgufError, Header, check};

/// The number of the type that a shard's number must have.
const SHARD_NUMBER_TYPE: u32 = 2;

/// The headers of a whole model, checked.
#[derive(Debug)]
pub struct Files {
    /// What llama.cpp is given: the only file or the first shard.
    pub path: PathBuf,
    /// The first header, which has the metadata.
    pub header: Header,
    /// The headers of the other shards.
    pub others: Vec<Header>,
}

impl Files {
    /// Reads and checks the headers of a model. `paths` is its only file, its first shard, or all its shards in order.
    ///
    /// # Errors
    /// A file is damaged, or is no language model, or shards are missing.
    pub fn read(paths: &[PathBuf]) -> Result<Self, Failure> {
        let Some(path) = paths.first() else {
            return Err(GgufError::Shards("no model file is named".into()).into_failure(Path::new("")));
        };
        Self::read_from(path, paths).map_err(|(path, error)| error.into_failure(&path))
    }

    fn read_from(path: &Path, paths: &[PathBuf]) -> Result<Self, (PathBuf, GgufError)> {
        let first_failed = |error| (path.to_owned(), error);
        let header = Header::read(path).map_err(first_failed)?;
        check::check(&header).map_err(first_failed)?;
        let count = header.number("split.count").unwrap_or(1).max(1);
        if count == 1 && paths.len() > 1 {
            let reason = "several files are named, but the first is a whole model".to_owned();
            return Err(first_failed(GgufError::Shards(reason)));
        }
        if count > SHARDS_MAX {
            let reason = format!("{count} shards, over the limit of {SHARDS_MAX}");
            return Err(first_failed(GgufError::Value { key: "split.count".into(), reason }));
        }
        let mut others = Vec::new();
        for number in 1..count {
            let shard = shard_path(path, number, count).map_err(first_failed)?;
            let failed = |error| (shard.clone(), error);
            let other = Header::read(&shard).map_err(failed)?;
            if other.number("split.no") != Some(number) || other.number("split.count") != Some(count) {
                return Err(failed(GgufError::Shards(format!("it is not shard {} of {count}", number + 1))));
            }
            // llama.cpp ends the process for any other.
            if other.type_id("split.no") != Some(SHARD_NUMBER_TYPE) {
                let reason = "not an integer of 16 bits without a sign".to_owned();
                return Err(failed(GgufError::Value { key: "split.no".into(), reason }));
            }
            check::tensors(&other).map_err(failed)?;
            others.push(other);
        }
        let model = Self { path: path.to_owned(), header, others };
        model.check_tensors(count).map_err(first_failed)?;
        Ok(model)
    }

    fn check_tensors(&self, count: u64) -> Result<(), GgufError> {
        let there: usize = self.headers().map(|header| header.tensors.len()).sum();
        if there == 0 {
            return Err(GgufError::NoTensors);
        }
        match self.header.number("split.tensors.count") {
            Some(stated) if count > 1 && stated != there as u64 => {
                Err(GgufError::Shards(format!("the shards hold {there} tensors, not {stated}")))
            }
            _ => Ok(()),
        }
    }

    /// All headers, the first one first.
    pub fn headers(&self) -> impl Iterator<Item = &Header> {
        std::iter::once(&self.header).chain(&self.others)
    }

    /// Bytes of all tensors.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        self.headers().map(Header::weight_bytes).fold(0, u64::saturating_add)
    }
}

/// Path of shard `number` (from 0), by the name of the first one.
fn shard_path(first: &Path, number: u64, count: u64) -> Result<PathBuf, GgufError> {
    let name = first.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.strip_suffix(&format!("-00001-of-{count:05}.gguf")).ok_or_else(|| {
        GgufError::Shards(format!(
            "the first of {count} shards must be named …-00001-of-{count:05}.gguf, with the others beside it"
        ))
    })?;
    Ok(first.with_file_name(format!("{stem}-{:05}-of-{count:05}.gguf", number + 1)))
}
