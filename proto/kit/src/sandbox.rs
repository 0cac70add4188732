//! The last wall around a worker, which it puts up itself: from here on this process runs no other program, and no other
//! process of its user looks into its memory. Its start needed the one, and starting undoes the other.
//!
//! All other walls were put up by the launcher (the supervisor's `os::sandbox`), which says by a variable that it did.

/// Set where there are walls: `require` where none may be missing.
pub const VARIABLE: &str = "OLLMLX_SANDBOX";

/// Puts the wall up, if there are any.
///
/// # Errors
/// It can't be put up and is required.
pub fn close() -> Result<(), String> {
    let Some(policy) = std::env::var_os(VARIABLE) else { return Ok(()) };
    match imp::close() {
        Err(error) if policy == "require" => Err(format!("the last wall of the sandbox can't be put up: {error}")),
        Err(error) => {
            crate::tell::tell(format_args!("the last wall of the sandbox can't be put up: {error}"));
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

#[cfg(target_os = "linux")]
mod imp {
    use std::collections::BTreeMap;
    use std::io;

    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

    /// No program is run any more: EPERM, as for whoever may not.
    fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
        let calls = [libc::SYS_execve, libc::SYS_execveat].map(|call| (call, Vec::new()));
        let denied = SeccompAction::Errno(libc::EPERM.cast_unsigned());
        let machine = TargetArch::try_from(std::env::consts::ARCH)?;
        SeccompFilter::new(BTreeMap::from(calls), SeccompAction::Allow, denied, machine)?.try_into()
    }

    pub(super) fn close() -> io::Result<()> {
        nix::sys::prctl::set_dumpable(false)?;
        // Libraries may have started threads.
        seccompiler::apply_filter_all_threads(&filter().map_err(io::Error::other)?).map_err(io::Error::other)
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    /// The profile says it all.
    pub(super) fn close() -> std::io::Result<()> {
        Ok(())
    }
}
