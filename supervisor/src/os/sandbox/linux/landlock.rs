//! Which files may be opened, and how: whatever is not granted can't be.

use std::io;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, LandlockStatus, Ruleset,
    RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope, path_beneath_rules,
};

use super::places;
use super::plan::Plan;

/// Rights of the newest version that the library knows; the kernel's own version decides which of them there are.
const NEWEST: ABI = ABI::V10;
/// The first version with all that is asked of it. What an older one lacks, the wall of system calls keeps out as well.
const WHOLE: i32 = 6;
/// What came with which version.
const PARTS: [(i32, &str); 4] =
    [(3, "cutting files"), (4, "network"), (5, "devices' controls"), (6, "abstract sockets and signals")];

fn error(error: RulesetError) -> io::Error {
    io::Error::other(error)
}

/// Puts the wall up; returns the version that is in force.
pub(super) fn restrict(plan: &Plan<'_>) -> io::Result<i32> {
    let version = plan.landlock_abi_max.map_or(NEWEST, |version| ABI::from(version).min(NEWEST));
    if version == ABI::Unsupported {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "not wanted"));
    }
    let status = rules(plan, version).and_then(RulesetCreated::restrict_self).map_err(error)?;
    match status.landlock {
        LandlockStatus::Available { effective_abi, kernel_abi } if status.ruleset != RulesetStatus::NotEnforced => {
            let version = kernel_abi.unwrap_or(effective_abi as i32);
            Ok(plan.landlock_abi_max.map_or(version, |max| version.min(max)))
        }
        LandlockStatus::NotEnabled => Err(io::Error::new(io::ErrorKind::Unsupported, "switched off at boot")),
        _ => Err(io::Error::new(io::ErrorKind::Unsupported, "not in this kernel")),
    }
}

fn rules(plan: &Plan<'_>, version: ABI) -> Result<RulesetCreated, RulesetError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let mut ruleset = Ruleset::default().set_compatibility(CompatLevel::BestEffort);
    ruleset = ruleset.handle_access(AccessFs::from_all(version))?;
    if !AccessNet::from_all(version).is_empty() {
        ruleset = ruleset.handle_access(AccessNet::from_all(version))?;
    }
    if !Scope::from_all(version).is_empty() {
        ruleset = ruleset.scope(Scope::from_all(version))?;
    }
    let device: BitFlags<AccessFs> = (read | AccessFs::WriteFile | AccessFs::IoctlDev) & AccessFs::from_all(version);
    ruleset
        .create()?
        .add_rules(path_beneath_rules(places::readable(plan.read), read))?
        .add_rules(path_beneath_rules(places::devices(), device))?
        .add_rules(path_beneath_rules(&plan.run, AccessFs::ReadFile | AccessFs::Execute))
}

/// What this version lacks, in words.
pub(super) fn missing(version: i32) -> Option<String> {
    let parts: Vec<&str> = PARTS.iter().filter(|(since, _)| version < *since).map(|(_, part)| *part).collect();
    (version < WHOLE).then(|| format!("Landlock {WHOLE}'s walls for {}", parts.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_older_kernel_lacks_is_named() {
        assert_eq!(missing(7), None);
        assert_eq!(missing(6), None);
        assert_eq!(missing(5).unwrap(), "Landlock 6's walls for abstract sockets and signals");
        assert!(
            missing(2)
                .unwrap()
                .ends_with("for cutting files, network, devices' controls, abstract sockets and signals")
        );
    }
}
