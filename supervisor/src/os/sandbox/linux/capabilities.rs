//! What root, or a process that a service manager has favoured, can do beyond others: given up.
//!
//! Root without capabilities reads its own files and those that everybody may read. A model that is another user's alone keeps
//! one capability in the process that reads it, and only behind Landlock, where it opens that model and nothing else.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use super::plan::Plan;
use crate::limits::MODEL_FILES_MAX;

/// Capabilities that there may ever be.
const CAPABILITIES_MAX: u32 = 64;

/// Drops them for good.
pub(super) fn drop_all(plan: &Plan<'_>, is_confined: bool) -> io::Result<()> {
    let now = capabilities(None)?;
    let none = CapabilitySet::empty();
    if now.permitted == none && now.inheritable == none {
        return Ok(());
    }
    let kept = if is_confined && !is_readable_without(plan, now)? { CapabilitySet::DAC_READ_SEARCH } else { none };
    rustix::thread::clear_ambient_capability_set()?;
    for bit in 0..CAPABILITIES_MAX {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if !kept.contains(capability) {
            // The last one is not known, and those without the right to do this are bound by what they have.
            let _unknown = rustix::thread::remove_capability_from_bounding_set(capability);
        }
    }
    let kept = kept & now.permitted;
    Ok(set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: none })?)
}

/// Whether all that is granted can be read by this user as such.
fn is_readable_without(plan: &Plan<'_>, now: CapabilitySets) -> io::Result<bool> {
    set_capabilities(None, CapabilitySets { effective: CapabilitySet::empty(), ..now })?;
    let mut paths = plan.read.iter().map(std::path::PathBuf::as_path).chain(plan.run.iter().copied());
    let is_readable = paths.all(|path| !is_denied(path));
    set_capabilities(None, now)?;
    Ok(is_readable)
}

/// Of a folder, whether anything in it is.
fn is_denied(path: &Path) -> bool {
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let mut entries = std::fs::read_dir(path).into_iter().flatten().flatten().take(MODEL_FILES_MAX);
    opened.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
        || entries.any(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()) && is_denied(&entry.path()))
}
