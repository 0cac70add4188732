//! Which of llama.cpp's CPU levels this process uses.
//!
//! A level is a shared object compiled for one set of instructions. The best one that the CPU has is taken, but never
//! one with AMX by itself: a virtual machine may advertise AMX and kill the process that uses it. A level can be
//! named instead, which is how a worker that died of an illegal instruction is started once more, lower. On targets
//! without levels (llama.cpp linked statically) there is one nameless level.

use std::sync::OnceLock;

use ollmlx_proto::{Failure, FailureKind};

use crate::ffi::{self, Library};

/// llama.cpp, started. There is one per process; what was chosen first stays.
#[derive(Debug)]
pub struct Runtime {
    /// Proof that it is started.
    pub library: Library,
    /// Name of the CPU level; empty where there are none.
    pub level: &'static str,
}

/// Starts llama.cpp at the level `wanted`, or at the best one where that is empty.
///
/// # Errors
/// No such level, none that this CPU can run, or another one is in use already.
pub fn start(wanted: &str) -> Result<&'static Runtime, Failure> {
    static RUNTIME: OnceLock<Result<Runtime, Failure>> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| {
        ffi::log::capture();
        let level = imp::choose(wanted)?;
        Ok(Runtime { library: Library::start(), level })
    });
    let runtime = runtime.as_ref().map_err(Clone::clone)?;
    if !wanted.is_empty() && wanted != runtime.level {
        let text = format!("CPU level {wanted} is not possible: {} is in use", describe(runtime.level));
        return Err(Failure::new(FailureKind::LoadFailed, text));
    }
    Ok(runtime)
}

/// Names of all levels, best first; empty where there are none.
pub fn level_names() -> impl Iterator<Item = &'static str> {
    imp::level_names()
}

/// `cpu (zen4)`, or `cpu` where there are no levels.
#[must_use]
pub fn describe(level: &str) -> String {
    if level.is_empty() { "cpu".to_owned() } else { format!("cpu ({level})") }
}

/// Threads to compute with where nobody said how many: the cores that this process may use. Affinity and the cgroup's
/// CPU quota are respected; a second thread per core is not counted, because it slows matrix products down.
#[must_use]
pub fn thread_count() -> u16 {
    let allowed = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let cores = physical_core_count().unwrap_or(allowed);
    u16::try_from(allowed.min(cores).max(1)).unwrap_or(u16::MAX)
}

/// Starts this program again with a shorter busy wait of OpenMP threads, unless someone has set one.
///
/// Between two steps of a computation llama.cpp's threads wait for each other, by default spinning for milliseconds.
/// On a machine that does nothing else that gains some percent; beside any other load the waiting thread keeps the
/// one it waits for off its core. Measured on two cores beside busy processes (SmolLM2, one slot): 21 tokens/s with
/// this, 4 without; on the idle machine 182 to 187 with this, and no measurable difference with eight slots.
/// OpenMP reads its environment before `main`, hence the second start, in the same process. Linux only.
#[cfg(target_os = "linux")]
pub fn calm_threads() {
    use std::os::unix::process::CommandExt as _;
    const SPIN: &str = "GOMP_SPINCOUNT";
    let is_set = |name: &str| std::env::var_os(name).is_some();
    if is_set(SPIN) || is_set("OMP_WAIT_POLICY") {
        return;
    }
    let mut args = std::env::args_os();
    let (Ok(program), Some(name)) = (std::env::current_exe(), args.next()) else { return };
    // Returns only where it failed, and then the default is good enough.
    let _ = std::process::Command::new(program).arg0(name).args(args).env(SPIN, "1000").exec();
}

/// Elsewhere OpenMP is not used, or is another one.
#[cfg(not(target_os = "linux"))]
pub fn calm_threads() {}

/// Cores of the machine, each counted once however many threads it has. Linux only.
fn physical_core_count() -> Option<usize> {
    const CPUS_MAX: usize = 4096;
    let mut cores = std::collections::BTreeSet::new();
    for cpu in 0..CPUS_MAX {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        match std::fs::read_to_string(path) {
            Ok(siblings) => cores.insert(siblings),
            Err(_) if cpu == 0 => return None,
            // CPUs may be offline in between, but then there are fewer of them at the end, not more.
            Err(_) => break,
        };
    }
    Some(cores.len())
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod imp {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt as _;
    use std::path::{Path, PathBuf};

    use ollmlx_proto::{Failure, FailureKind};

    use crate::ffi;

    /// A CPU level: its name, and whether this CPU has what it needs.
    #[derive(Clone, Copy, Debug)]
    struct Level {
        name: &'static str,
        /// Never taken unless it is named.
        only_by_name: bool,
        has: fn() -> bool,
    }

    /// True where all the features are there.
    macro_rules! has {
        ($($feature:tt)*) => { || true $(&& std::arch::is_x86_feature_detected!($feature))* };
    }

    /// The levels that llama.cpp builds (`ggml/src/CMakeLists.txt`), best first. Measured with SmolLM2 Q4_1: all with
    /// AVX-512 lie within a tenth of each other, `x64` and `sse42` at a third.
    const LEVELS: [Level; 14] = [
        level(
            "zen4",
            has!("avx512f" "avx512cd" "avx512bw" "avx512dq" "avx512vl" "avx512vbmi" "avx512vnni" "avx512bf16" "fma" "bmi2" "f16c"),
        ),
        level(
            "cooperlake",
            has!("avx512f" "avx512cd" "avx512bw" "avx512dq" "avx512vl" "avx512vnni" "avx512bf16" "fma" "bmi2" "f16c"),
        ),
        level(
            "icelake",
            has!("avx512f" "avx512cd" "avx512bw" "avx512dq" "avx512vl" "avx512vbmi" "avx512vnni" "fma" "bmi2" "f16c"),
        ),
        level(
            "cascadelake",
            has!("avx512f" "avx512cd" "avx512bw" "avx512dq" "avx512vl" "avx512vnni" "fma" "bmi2" "f16c"),
        ),
        level(
            "cannonlake",
            has!("avx512f" "avx512cd" "avx512bw" "avx512dq" "avx512vl" "avx512vbmi" "fma" "bmi2" "f16c"),
        ),
        level("skylakex", has!("avx512f" "avx512cd" "avx512bw" "avx512dq" "avx512vl" "fma" "bmi2" "f16c")),
        level("alderlake", has!("avx2" "avxvnni" "fma" "bmi2" "f16c")),
        level("haswell", has!("avx2" "fma" "bmi2" "f16c")),
        level("piledriver", has!("avx" "fma" "f16c")),
        level("ivybridge", has!("avx" "f16c")),
        level("sandybridge", has!("avx")),
        level("sse42", has!("sse4.2")),
        level("x64", has!()),
        // AMX may be advertised and not granted, and no feature bit tells.
        Level { name: "sapphirerapids", only_by_name: true, has: has!("avx512f" "avx512vnni" "avx512bf16") },
    ];

    const fn level(name: &'static str, has: fn() -> bool) -> Level {
        Level { name, only_by_name: false, has }
    }

    pub(super) fn level_names() -> impl Iterator<Item = &'static str> {
        LEVELS.iter().map(|level| level.name)
    }

    pub(super) fn choose(wanted: &str) -> Result<&'static str, Failure> {
        let fail = |text: String| Failure::new(FailureKind::LoadFailed, text);
        let folder = folder()
            .ok_or_else(|| fail("llama.cpp's CPU levels are missing: no ollmlx-lib beside the worker".into()))?;
        if !wanted.is_empty() {
            let level = LEVELS.iter().find(|level| level.name == wanted).ok_or_else(|| {
                let known: Vec<_> = level_names().collect();
                fail(format!("unknown CPU level {wanted:?}; known are {}", known.join(", ")))
            })?;
            return if (level.has)() && load(&folder, level.name) {
                Ok(level.name)
            } else {
                Err(fail(format!("CPU level {wanted} does not work here"))
                    .with_detail(ffi::log::take_errors().join("; ")))
            };
        }
        LEVELS
            .iter()
            .filter(|level| !level.only_by_name && (level.has)())
            .find(|level| load(&folder, level.name))
            .map(|level| level.name)
            .ok_or_else(|| {
                fail(format!("no CPU level in {} works here", folder.display()))
                    .with_detail(ffi::log::take_errors().join("; "))
            })
    }

    fn load(folder: &Path, level: &str) -> bool {
        let path = folder.join(file_name(level));
        // Asked first, because a missing file is an error in llama.cpp's log and packages may leave levels out.
        path.is_file() && CString::new(path.as_os_str().as_bytes()).is_ok_and(|path| ffi::load_backend(&path))
    }

    fn file_name(level: &str) -> String {
        format!("libggml-cpu-{level}.so")
    }

    /// The first folder relative to the binary that has a level in it; the same places as in `build.rs`.
    fn folder() -> Option<PathBuf> {
        let binary = std::env::current_exe().ok()?;
        let beside = binary.parent()?;
        ["ollmlx-lib", ".", "lib", "../lib/ollmlx", "../ollmlx-lib"]
            .iter()
            .map(|place| beside.join(place))
            .find(|place| LEVELS.iter().any(|level| place.join(file_name(level.name)).is_file()))
    }
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
mod imp {
    use ollmlx_proto::{Failure, FailureKind};

    pub(super) fn level_names() -> impl Iterator<Item = &'static str> {
        std::iter::empty()
    }

    pub(super) fn choose(wanted: &str) -> Result<&'static str, Failure> {
        if wanted.is_empty() {
            return Ok("");
        }
        Err(Failure::new(
            FailureKind::LoadFailed,
            format!("unknown CPU level {wanted:?}; there are none on this system"),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    fn best_level_is_taken_and_others_are_refused_after_that() {
        assert!(level_names().any(|name| name == "x64"));
        let runtime = start("").unwrap();
        assert!(level_names().any(|name| name == runtime.level), "{}", runtime.level);
        assert_ne!(runtime.level, "sapphirerapids");
        let failure = start("pentium").unwrap_err();
        assert_eq!(failure.kind, FailureKind::LoadFailed);
        assert!(failure.public.contains("pentium"), "{failure}");
        assert!(std::ptr::eq(start(runtime.level).unwrap(), runtime));
    }

    #[test]
    fn there_is_a_thread() {
        assert!(thread_count() >= 1);
    }

    #[test]
    fn device_names_its_level() {
        assert_eq!(describe("zen4"), "cpu (zen4)");
        assert_eq!(describe(""), "cpu");
    }
}
