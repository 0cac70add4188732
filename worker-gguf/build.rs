//! Lays llama.cpp's shared objects beside the binary, where it looks for them.
//!
//! On Linux x86-64 the crate is built with one shared object per CPU level. They go to `ollmlx-lib/` in the profile folder,
//! each level in a folder of its own (llama.cpp loads "the best of a folder", so a folder of one is a choice), and the
//! binary finds them relative to itself: `ollmlx-worker-gguf` and `ollmlx-lib/` can be moved together.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=DEP_LLAMA_BACKENDS_DIR");
    let Some(backends) = env::var_os("DEP_LLAMA_BACKENDS_DIR").map(PathBuf::from) else { return };
    println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/ollmlx-lib:$ORIGIN/../ollmlx-lib");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    // OUT_DIR is <profile>/build/<package>/out.
    let profile = out.ancestors().nth(3).expect("OUT_DIR is three folders deep");
    if let Err(error) = lay_out(&backends, &profile.join("ollmlx-lib")) {
        panic!("llama.cpp's shared objects could not be copied: {error}");
    }
}

fn lay_out(backends: &Path, target: &Path) -> io::Result<()> {
    let libraries = backends.parent().expect("the backends have a parent folder").join("lib");
    fs::create_dir_all(target)?;
    for entry in fs::read_dir(libraries)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // The loader asks for the name with the major version (libllama.so.0).
        if name.split(".so.").nth(1).is_some_and(|version| !version.contains('.')) {
            copy(&path, &target.join(name))?;
        }
    }
    for entry in fs::read_dir(backends)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let level = name.strip_prefix("libggml-cpu-").and_then(|rest| rest.strip_suffix(".so"));
        if let Some(level) = level {
            let folder = target.join("cpu").join(level);
            fs::create_dir_all(&folder)?;
            copy(&path, &folder.join(&name))?;
        }
    }
    Ok(())
}

/// Through a temporary name, so that a running worker keeps its mapping.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let partial = to.with_extension("partial");
    fs::copy(from, &partial)?;
    fs::rename(&partial, to)
}
