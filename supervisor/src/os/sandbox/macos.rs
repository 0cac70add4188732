//! macOS's wall: a sandbox profile, by the system's own program, since the function behind it is foreign code. The same profile
//! language is what browsers wall their processes in with.
//!
//! Never run: it is type-checked, and the profile was written from what browsers' GPU processes are given.

use std::ffi::OsString;
use std::path::Path;

use super::terms::{Launch, Walls};
use crate::os::process;

/// It becomes the program that it is told, in the same process.
const SANDBOX_EXEC: &str = "/usr/bin/sandbox-exec";

/// What is the same for every worker. `signal` and `process-info` are about the process itself.
const PROFILE: &str = r#"(version 1)
(deny default)
(allow signal process-info* (target self))
(allow sysctl-read)
(allow file-read-metadata)
(allow file-read*
  (literal "/") (literal "/dev/null") (literal "/dev/zero") (literal "/dev/random") (literal "/dev/urandom")
  (literal "/private/etc/localtime") (subpath "/private/var/db/timezone") (subpath "/usr/share/zoneinfo")
  (subpath "/usr/lib") (subpath "/System/Library") (subpath "/System/Volumes/Preboot/Cryptexes")
  (subpath "/Library/GPUBundles") (subpath "/private/var/db/dyld"))
(allow file-map-executable
  (subpath "/usr/lib") (subpath "/System/Library") (subpath "/System/Volumes/Preboot/Cryptexes")
  (subpath "/Library/GPUBundles"))
(allow file-write-data (literal "/dev/null"))
(allow mach-lookup
  (global-name "com.apple.MTLCompilerService") (xpc-service-name "com.apple.MTLCompilerService")
  (global-name "com.apple.cvmsServ") (global-name "com.apple.gpumemd.source")
  (global-name "com.apple.system.opendirectoryd.libinfo"))
(allow iokit-open
  (iokit-user-client-class "AGXDeviceUserClient") (iokit-user-client-class "AGXCommandQueue")
  (iokit-user-client-class "IOSurfaceRootUserClient") (iokit-user-client-class "IOAccelerator")
  (iokit-connection "IOAccelerator"))
"#;

/// Nothing can be done here: the wall goes up with [`command`].
pub(super) fn wall_in(_launch: &Launch, _program: &Path) -> Vec<String> {
    missing()
}

/// Starts the program behind its profile.
pub(super) fn command(launch: &Launch, program: &Path) -> std::process::Command {
    if !missing().is_empty() {
        return process::image(program, &launch.arguments);
    }
    let mut words = vec![OsString::from("-p"), profile(launch, program).into(), program.as_os_str().to_owned()];
    words.extend(launch.arguments.iter().cloned());
    process::image(Path::new(SANDBOX_EXEC), &words)
}

/// Whether the system has the wall.
pub(super) fn tried(_landlock_abi_max: Option<i32>) -> Walls {
    let missing = missing();
    let stand = if missing.is_empty() { vec!["sandbox profile".to_owned()] } else { Vec::new() };
    Walls { stand, missing }
}

fn missing() -> Vec<String> {
    if Path::new(SANDBOX_EXEC).is_file() { Vec::new() } else { vec![format!("sandbox profiles (no {SANDBOX_EXEC})")] }
}

fn profile(launch: &Launch, program: &Path) -> String {
    let mut text = PROFILE.to_owned();
    let run = quoted(program);
    text += &format!("(allow process-exec (literal {run}))\n(allow file-read* file-map-executable (literal {run}))\n");
    for path in &launch.read {
        let path = quoted(&path.canonicalize().unwrap_or_else(|_| path.clone()));
        text += &format!("(allow file-read* file-map-executable (subpath {path}))\n");
    }
    text
}

/// A string of the profile's language.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_says_more_than_its_name() {
        assert_eq!(quoted(Path::new("/m/a\")(allow default)")), r#""/m/a\")(allow default)""#);
        assert_eq!(quoted(Path::new("/m/\\")), r#""/m/\\""#);
    }
}
