//! Which programs may be executed: those that nobody but this process's user and root can change, since whoever changes one acts as
//! this user.
//!
//! The file counts, every folder on the way to it, and every link on that way. A folder that everybody may write to but only
//! owners may tidy up (`/tmp`) does no harm to what lies in it and belongs to the user or root. Nothing is looked for in `PATH`.
//!
//! Limit: rights that are granted in other ways than by owner, group and mode are not known here. Where the file system shows them
//! as rights of the group, as access lists on Linux do, they count as those.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use nix::unistd::{Gid, Group, Uid, User, geteuid};

use super::folder::LINKS_MAX;

/// Our own file, on Linux also after it has been replaced.
const RUNNING: &str = "/proc/self/exe";
const OTHERS_WRITE: u32 = 0o002;
const GROUP_WRITE: u32 = 0o020;
const STICKY: u32 = 0o1000;
/// The administrators of a Mac, who may act as root anyway; Homebrew's folders are theirs.
const ADMINISTRATORS: Option<u32> = if cfg!(target_os = "macos") { Some(80) } else { None };

/// The program that takes over from this one: every part of the way counts, and the file may not even be its group's to write,
/// whoever that is.
///
/// # Errors
/// Somebody else could change it; or there is none.
pub fn check_successor(program: &Path) -> io::Result<()> {
    let ours = geteuid();
    let file = check_way(program, ours)?;
    if file.mode() & (GROUP_WRITE | OTHERS_WRITE) != 0 {
        return Err(refused(program, program, "its group can write to it", "chmod go-w"));
    }
    Ok(())
}

/// A program of a worker. Beside our own program the file and its folder count: whoever has the rest of that way has us as well.
///
/// # Errors
/// Somebody else could change it; or there is none.
pub fn check_worker(program: &Path) -> io::Result<()> {
    let ours = geteuid();
    let real = program.canonicalize()?;
    let own = std::env::current_exe()?;
    // The folder, since our own file may have been replaced meanwhile.
    let own_folder = own.parent().and_then(|folder| folder.canonicalize().ok());
    if real.parent() != own_folder.as_deref() {
        return check_way(program, ours).map(drop);
    }
    let file = fs::metadata(&real)?;
    let folder = real.parent().unwrap_or(&real);
    if let Some(why) = writers(&fs::metadata(folder)?, ours) {
        return Err(refused(program, folder, &why, "chmod go-w"));
    }
    // Who owns our own program is trusted already.
    let owner = Uid::from_raw(fs::metadata(RUNNING).or_else(|_| fs::metadata(&own))?.uid());
    match stranger(&file, ours).filter(|uid| *uid != owner) {
        Some(uid) => Err(refused(program, &real, &format!("it belongs to user {uid}"), "chown")),
        None => writers(&file, ours).map_or(Ok(()), |why| Err(refused(program, &real, &why, "chmod go-w"))),
    }
}

/// Everything on the way to this file, which is returned.
fn check_way(program: &Path, ours: Uid) -> io::Result<Metadata> {
    if !program.is_absolute() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a program is executed by its whole path only"));
    }
    let reversed = |path: &Path| path.components().rev().map(|part| part.as_os_str().to_owned()).collect::<Vec<_>>();
    let (mut here, mut left, mut links) = (PathBuf::new(), reversed(program), 0);
    loop {
        let Some(part) = left.pop() else { return Err(io::Error::from(io::ErrorKind::IsADirectory)) };
        match Path::new(&part).components().next() {
            Some(Component::ParentDir) => {
                here.pop();
                continue;
            }
            Some(Component::CurDir) | None => continue,
            Some(_) => here.push(&part),
        }
        let facts = fs::symlink_metadata(&here)?;
        if let Some(uid) = stranger(&facts, ours) {
            return Err(refused(program, &here, &format!("it belongs to user {uid}"), "chown"));
        }
        if facts.is_symlink() {
            links += 1;
            if links > LINKS_MAX {
                return Err(io::Error::other("too many links on the way to the program"));
            }
            let target = fs::read_link(&here)?;
            here.pop();
            left.extend(reversed(&target));
            continue;
        }
        if let Some(why) = writers(&facts, ours) {
            return Err(refused(program, &here, &why, "chmod go-w"));
        }
        if !facts.is_dir() {
            return if left.is_empty() && facts.is_file() {
                Ok(facts)
            } else {
                Err(io::ErrorKind::NotADirectory.into())
            };
        }
    }
}

/// Its owner, if that is neither we nor root.
fn stranger(facts: &Metadata, ours: Uid) -> Option<Uid> {
    let owner = Uid::from_raw(facts.uid());
    (owner != ours && !owner.is_root()).then_some(owner)
}

/// Who beside its owner can write to it, or change what lies in it and belongs to another.
fn writers(facts: &Metadata, ours: Uid) -> Option<String> {
    if facts.is_dir() && facts.mode() & STICKY != 0 {
        return None;
    }
    if facts.mode() & OTHERS_WRITE != 0 {
        return Some("everybody can write to it".to_owned());
    }
    let is_open = facts.mode() & GROUP_WRITE != 0 && !is_private(facts.gid(), ours);
    is_open.then(|| format!("group {} can write to it", facts.gid()))
}

/// Whether a group has no member but this user: the one that many systems make for each of them, under the user's name.
fn is_private(gid: u32, ours: Uid) -> bool {
    if ADMINISTRATORS == Some(gid) {
        return true;
    }
    let (Ok(Some(group)), Ok(Some(user))) = (Group::from_gid(Gid::from_raw(gid)), User::from_uid(ours)) else {
        return false;
    };
    !ours.is_root()
        && user.gid == group.gid
        && user.name == group.name
        && group.mem.iter().all(|name| *name == user.name)
}

fn refused(program: &Path, part: &Path, why: &str, mend: &str) -> io::Error {
    let (program, part) = (program.display(), part.display());
    let text = format!("{program} is not executed, since somebody else could change it: {part}: {why} (see `{mend}`)");
    io::Error::new(io::ErrorKind::PermissionDenied, text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    use super::*;

    struct Ground(tempfile::TempDir);

    impl Ground {
        fn new() -> Self {
            let place = Self(tempfile::tempdir().unwrap());
            fs::create_dir_all(place.at("a/b")).unwrap();
            fs::write(place.at("a/b/program"), "#!/bin/sh\n").unwrap();
            for name in ["a", "a/b", "a/b/program"] {
                place.mode(name, 0o755);
            }
            place
        }

        fn at(&self, name: &str) -> PathBuf {
            self.0.path().canonicalize().unwrap().join(name)
        }

        fn mode(&self, name: &str, bits: u32) {
            fs::set_permissions(self.at(name), fs::Permissions::from_mode(bits)).unwrap();
        }

        fn check(&self) -> io::Result<()> {
            check_successor(&self.at("a/b/program"))
        }

        fn both(&self) -> [Option<String>; 2] {
            let program = self.at("a/b/program");
            [check_successor(&program), check_worker(&program)].map(|done| done.err().map(|error| error.to_string()))
        }
    }

    #[test]
    fn s17_a_program_that_others_can_write_to_is_not_executed() {
        let place = Ground::new();
        assert_eq!(place.both(), [None, None]);
        for (name, bits) in [("a/b/program", 0o757), ("a/b", 0o777), ("a", 0o777)] {
            place.mode(name, bits);
            for said in place.both() {
                let said = said.unwrap_or_else(|| panic!("{name} {bits:o}"));
                let part = place.at(name).display().to_string();
                assert!(
                    said.contains("everybody can write") && said.contains(&part) && said.contains("chmod"),
                    "{said}"
                );
            }
            place.mode(name, 0o755);
        }
        place.mode("a/b/program", 0o775);
        assert!(place.check().is_err(), "of its group");
    }

    #[test]
    fn s17_a_sticky_folder_is_as_safe_as_what_lies_in_it() {
        let place = Ground::new();
        place.mode("a", 0o1777);
        assert_eq!(place.both(), [None, None]);
        if geteuid().is_root() {
            chown(place.at("a/b"), Some(65534), Some(65534)).unwrap();
            assert!(place.both().iter().all(Option::is_some));
        }
    }

    #[test]
    fn s17_a_program_of_somebody_else_is_not_executed() {
        if !geteuid().is_root() {
            return; // Only root can give files away.
        }
        for name in ["a", "a/b", "a/b/program"] {
            let place = Ground::new();
            chown(place.at(name), Some(65534), None).unwrap();
            for said in place.both() {
                assert!(said.unwrap().contains("belongs to user 65534"), "{name}");
            }
        }
    }

    #[test]
    fn s17_links_lead_no_way_round() {
        let place = Ground::new();
        fs::create_dir(place.at("safe")).unwrap();
        symlink("../a/b/program", place.at("safe/link")).unwrap();
        symlink("a", place.at("way")).unwrap();
        let (link, way) = (place.at("safe/link"), place.at("way/b/program"));
        check_successor(&link).unwrap();
        check_successor(&way).unwrap();
        place.mode("a", 0o777);
        assert!(check_successor(&link).is_err() && check_successor(&way).is_err());
        place.mode("a", 0o755);
        place.mode("safe", 0o777);
        assert!(check_successor(&link).is_err(), "the link itself could be another one");
        symlink("loop", place.at("loop")).unwrap();
        for path in [place.at("loop"), place.at("a"), place.at("none"), PathBuf::from("a/b/program")] {
            assert!(check_successor(&path).is_err(), "{}", path.display());
        }
    }

    #[test]
    fn what_lies_beside_our_own_program_is_trusted_as_that_is() {
        let own = std::env::current_exe().unwrap().canonicalize().unwrap();
        check_worker(&own).unwrap();
        let beside = tempfile::Builder::new().prefix("worker-").tempfile_in(own.parent().unwrap()).unwrap();
        check_worker(beside.path()).unwrap();
        fs::set_permissions(beside.path(), fs::Permissions::from_mode(0o757)).unwrap();
        assert!(check_worker(beside.path()).is_err());
    }

    #[test]
    fn only_a_group_of_one_s_own_may_write() {
        let ours = geteuid();
        assert!(!is_private(u32::MAX - 7, ours), "nobody knows it");
        let user = User::from_uid(ours).unwrap().unwrap();
        let group = Group::from_gid(user.gid).unwrap().unwrap();
        let expected = !ours.is_root() && group.name == user.name && group.mem.is_empty();
        assert!(ADMINISTRATORS == Some(group.gid.as_raw()) || is_private(user.gid.as_raw(), ours) == expected);
    }
}
