//! The CPU level: which of llama.cpp's code variants is loaded.
//!
//! On Linux x86-64 there is one shared object per level beside the binary. The best one whose instructions the CPU has
//! is chosen; the levels with AMX are left out, since virtual machines advertise AMX and then kill the process that uses
//! it (measured: SIGILL or SIGSEGV). A level can be named instead, which is how the supervisor lowers it after a crash.
//! Elsewhere the code is linked in and there is nothing to choose.

use ollmlx_proto::{Failure, FailureKind};

/// Makes the CPU code available and returns what to call it.
///
/// # Errors
/// The named level does not exist, or none can be loaded.
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
pub(crate) fn load(level: &str) -> Result<String, Failure> {
    if level.is_empty() {
        return Ok("native".to_owned());
    }
    let text = format!("there is no CPU level {level:?} on this system: its code is built in");
    Err(Failure::new(FailureKind::InvalidRequest, text))
}

/// Makes the CPU code available and returns the level's name.
///
/// # Errors
/// The named level does not exist, or none can be loaded.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(crate) fn load(level: &str) -> Result<String, Failure> {
    let folder = levels_folder()?;
    let level = if level.is_empty() {
        x86::best(|level| folder.join(level).is_dir())
    } else {
        x86::NAMES.contains(&level).then(|| level.to_owned())
    };
    let Some(level) = level.filter(|level| folder.join(level).is_dir()) else {
        let text = format!("the CPU level does not exist; known ones are {}", x86::NAMES.join(", "));
        return Err(Failure::new(FailureKind::InvalidRequest, text));
    };
    llama_cpp_2::llama_backend::load_backends_from_path(&folder.join(&level));
    if llama_cpp_2::list_llama_ggml_backend_devices().is_empty() {
        let text = format!("llama.cpp could not load its code for CPU level {level}");
        return Err(Failure::new(FailureKind::LoadFailed, text));
    }
    Ok(level)
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn levels_folder() -> Result<std::path::PathBuf, Failure> {
    let failure = |text: String| Failure::new(FailureKind::LoadFailed, text);
    let binary = std::env::current_exe().map_err(|error| failure(format!("the worker can't find itself: {error}")))?;
    // Test binaries lie one folder deeper.
    let found =
        binary.ancestors().skip(1).take(2).map(|folder| folder.join("ollmlx-lib/cpu")).find(|path| path.is_dir());
    found.ok_or_else(|| {
        failure("the folder ollmlx-lib does not lie beside ollmlx-worker-gguf; install both together".to_owned())
    })
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod x86 {
    use std::arch::is_x86_feature_detected as has;

    /// Levels that may be named.
    pub(super) const NAMES: [&str; 14] = [
        "sapphirerapids",
        "zen4",
        "cooperlake",
        "icelake",
        "cascadelake",
        "cannonlake",
        "skylakex",
        "alderlake",
        "haswell",
        "piledriver",
        "ivybridge",
        "sandybridge",
        "sse42",
        "x64",
    ];

    /// The best level that this CPU can run and that is installed.
    pub(super) fn best(installed: impl Fn(&str) -> bool) -> Option<String> {
        NAMES.iter().find(|level| supported(level) && installed(level)).map(|&level| level.to_owned())
    }

    /// Whether this CPU has what the level needs. AMX is never chosen (see the module doc).
    fn supported(level: &str) -> bool {
        let sse42 = has!("sse4.2");
        let avx = sse42 && has!("avx");
        let ivybridge = avx && has!("f16c");
        let avx2 = ivybridge && has!("avx2") && has!("fma") && has!("bmi2");
        let avx512 =
            avx2 && has!("avx512f") && has!("avx512cd") && has!("avx512vl") && has!("avx512dq") && has!("avx512bw");
        let vbmi = avx512 && has!("avx512vbmi");
        let vnni = avx512 && has!("avx512vnni");
        let bf16 = vnni && has!("avx512bf16");
        match level {
            "zen4" => vbmi && bf16,
            "cooperlake" => bf16,
            "icelake" => vbmi && vnni,
            "cascadelake" => vnni,
            "cannonlake" => vbmi,
            "skylakex" => avx512,
            "alderlake" => avx2 && has!("avxvnni"),
            "haswell" => avx2,
            "piledriver" => ivybridge && has!("fma"),
            "ivybridge" => ivybridge,
            "sandybridge" => avx,
            "sse42" => sse42,
            "x64" => true,
            _ => false,
        }
    }

    #[cfg(test)]
    mod tests {
        use super::{best, supported};

        #[test]
        fn amx_is_never_chosen_and_something_always_is() {
            assert!(!supported("sapphirerapids"));
            assert!(best(|_| true).is_some_and(|level| level != "sapphirerapids"));
            assert_eq!(best(|level| level == "x64").as_deref(), Some("x64"));
            assert_eq!(best(|_| false), None);
        }
    }
}
