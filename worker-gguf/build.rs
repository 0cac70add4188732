//! Puts llama.cpp's shared libraries where the finished binary finds them.
//!
//! On Linux x86-64 llama.cpp is a handful of shared objects, one of them per CPU level. They are copied to `ollmlx-lib/`
//! beside the binary, under the names the dynamic linker looks for, and the binary looks for them relative to
//! itself, so that the two can be moved together. Elsewhere llama.cpp is linked statically and nothing is done.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// Where the dynamic linker looks, relative to the binary: the installed layouts, then that of tests and examples,
/// which cargo puts one folder deeper.
const RUN_PATHS: [&str; 5] =
    ["$ORIGIN/ollmlx-lib", "$ORIGIN", "$ORIGIN/lib", "$ORIGIN/../lib/ollmlx", "$ORIGIN/../ollmlx-lib"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=DEP_LLAMA_BACKENDS_DIR");
    let Some(levels) = env::var_os("DEP_LLAMA_BACKENDS_DIR").map(PathBuf::from) else {
        return;
    };
    // RPATH, not RUNPATH: the libraries need each other, and only the former is inherited.
    println!("cargo::rustc-link-arg=-Wl,--disable-new-dtags");
    for path in RUN_PATHS {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{path}");
    }
    let installed = levels.parent().expect("the backends lie in the output folder of llama-cpp-sys-2");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    // <target>/<profile>/build/<package>-<hash>/out
    let target = out.ancestors().nth(3).expect("OUT_DIR is four levels deep").join("ollmlx-lib");
    println!("cargo::rerun-if-changed={}", levels.display());
    println!("cargo::rerun-if-changed={}", target.display());
    if let Err(error) = copy_libraries(installed, &levels, &target) {
        panic!("can't copy llama.cpp's libraries to {}: {error}", target.display());
    }
}

fn copy_libraries(installed: &Path, levels: &Path, target: &Path) -> io::Result<()> {
    fs::create_dir_all(target)?;
    for folder in [installed.join("lib"), installed.join("lib64"), levels.to_path_buf()] {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if is_wanted(&name) {
                copy_newer(&entry.path(), &target.join(&name))?;
            }
        }
    }
    Ok(())
}

/// Names with one number after `.so` are what the linker asks for (`libllama.so.0`); CPU levels have none.
fn is_wanted(name: &str) -> bool {
    match name.split_once(".so") {
        Some((stem, "")) => stem.starts_with("libggml-cpu-"),
        Some((_, version)) => version.matches('.').count() == 1,
        None => false,
    }
}

/// Through a second name, because the old file may be mapped by a running process.
fn copy_newer(from: &Path, to: &Path) -> io::Result<()> {
    let source = fs::metadata(from)?;
    if let Ok(old) = fs::metadata(to)
        && old.len() == source.len()
        && old.modified()? >= source.modified()?
    {
        return Ok(());
    }
    let partial = to.with_extension(format!("{}.partial", std::process::id()));
    fs::copy(from, &partial)?;
    fs::rename(&partial, to)
}
