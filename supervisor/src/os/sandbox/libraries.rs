//! Which libraries a worker program needs, and the dynamic linker that loads them. Where these lie is no secret, but a folder of
//! somebody's home that holds them holds other things as well: so files are granted, not folders.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use crate::limits::LIBRARIES_MAX;

/// Where a worker looks for libraries beside itself: `worker-gguf/build.rs` and `worker-mlx/build.rs` say the same.
const BESIDE: [&str; 5] = ["ollmlx-lib", ".", "lib", "../lib/ollmlx", "../ollmlx-lib"];

/// What a program needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Needed {
    /// Libraries.
    pub(super) files: Vec<PathBuf>,
    /// The dynamic linker.
    pub(super) loader: Option<PathBuf>,
}

/// What was found out, by the program and its age.
#[derive(Debug, Default)]
pub(super) struct Libraries(Mutex<BTreeMap<PathBuf, (Option<SystemTime>, Needed)>>);

impl Libraries {
    /// What this one needs. Asks the linker the first time, which takes it some milliseconds.
    pub(super) fn of(&self, program: &Path) -> Needed {
        let stamp = program.metadata().and_then(|meta| meta.modified()).ok();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get(program) {
            Some((then, needed)) if *then == stamp => needed.clone(),
            _ => {
                let needed = found(program);
                known.insert(program.to_owned(), (stamp, needed.clone()));
                needed
            }
        }
    }
}

fn found(program: &Path) -> Needed {
    let Ok(program) = program.canonicalize() else { return Needed::default() };
    let loader = loader();
    let mut files = loader.as_deref().map(|loader| linked(loader, &program)).unwrap_or_default();
    let beside = program.parent().into_iter().flat_map(|folder| BESIDE.map(|place| folder.join(place)));
    let told = std::env::vars_os().filter(|(name, _)| name == "LD_LIBRARY_PATH");
    let told: Vec<PathBuf> = told.flat_map(|(_, paths)| std::env::split_paths(&paths).collect::<Vec<_>>()).collect();
    for folder in beside.chain(told.into_iter().filter(|folder| folder.is_absolute())) {
        files.extend(libraries_in(&folder));
    }
    // Those that the linker names come first: without them nothing starts.
    let mut seen = BTreeSet::new();
    files.retain(|file| seen.insert(file.clone()));
    files.truncate(LIBRARIES_MAX);
    Needed { files, loader }
}

/// The linker that has loaded ourselves: the one of the machine.
fn loader() -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    // After an upgrade of the machine's libraries another file lies there.
    let here = |path: &str| Path::new("/").join(path.trim_end_matches(" (deleted)"));
    let mut paths = maps.lines().filter_map(|line| line.split_once('/').map(|(_, path)| here(path)));
    paths.find(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("ld-")))
}

/// What the linker would load, as it says itself. It is asked by name, so that it does not run the program.
#[expect(clippy::disallowed_methods, reason = "it ends at once, before anything else goes on")]
fn linked(loader: &Path, program: &Path) -> Vec<PathBuf> {
    let mut command = std::process::Command::new(loader);
    command.arg("--list").arg(program).env_clear().envs(super::environment::allowed());
    let told = command.stdin(std::process::Stdio::null()).output().map(|output| output.stdout).unwrap_or_default();
    let told = String::from_utf8_lossy(&told);
    // `libc.so.6 => /lib/libc.so.6 (0x7f…)`
    let paths = told.lines().filter_map(|line| line.rsplit_once(" (0x").map(|(path, _)| path.trim()));
    let paths = paths.map(|path| path.rsplit_once(" => ").map_or(path, |(_, path)| path));
    paths.filter(|path| path.starts_with('/')).filter_map(|path| Path::new(path).canonicalize().ok()).collect()
}

/// By their names, as the linker knows them, and by what these lead to.
fn libraries_in(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().take(LIBRARIES_MAX).flatten();
    let libraries = entries.filter(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        is_library(&name)
    });
    libraries.filter_map(|entry| entry.path().canonicalize().ok().filter(|path| path.is_file())).collect()
}

/// `libx.so`, `libx.so.1.2`, `libx.dylib`, `x.metallib`.
fn is_library(name: &str) -> bool {
    let is_version = |rest: &str| rest.chars().all(|letter| letter == '.' || letter.is_ascii_digit());
    name.rsplit_once(".so").is_some_and(|(_, version)| is_version(version))
        || name.ends_with(".dylib")
        || name.ends_with(".metallib")
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn names_of_libraries_are_told_from_those_that_look_like_them() {
        for (name, expected) in [
            ("libx.so", true),
            ("libx.so.1.2", true),
            ("libx.dylib", true),
            ("secrets.sops.yaml", false),
            ("x.socket", false),
            ("a.so.yaml", false),
            ("so", false),
        ] {
            assert_eq!(is_library(name), expected, "{name}");
        }
    }

    #[test]
    fn a_program_s_libraries_are_found_and_nothing_else_of_their_folder() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("ollmlx-worker-x");
        std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        for name in ["libbeside.so.0", "id_rsa", "sonnet.txt"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let libraries = Libraries::default();
        let needed = libraries.of(&program);
        let names: Vec<_> = needed.files.iter().map(|path| path.file_name().unwrap().to_string_lossy()).collect();
        assert!(names.iter().any(|name| name.starts_with("libc.so") || name.starts_with("libc-")), "{names:?}");
        assert!(names.contains(&"libbeside.so.0".into()) && !names.contains(&"id_rsa".into()), "{names:?}");
        assert!(!names.contains(&"sonnet.txt".into()), "{names:?}");
        assert!(needed.loader.as_ref().is_some_and(|loader| loader.is_file()), "{needed:?}");
        assert_eq!(libraries.of(&program), needed);
    }
}
