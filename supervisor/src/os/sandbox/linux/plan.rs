//! What the walls are built by.

use std::path::{Path, PathBuf};

/// What each wall is to know.
pub(super) struct Plan<'a> {
    /// Of Landlock no more than was there in this version.
    pub(super) landlock_abi_max: Option<i32>,
    /// What may be read.
    pub(super) read: &'a [PathBuf],
    /// What may be run.
    pub(super) run: Vec<&'a Path>,
}
