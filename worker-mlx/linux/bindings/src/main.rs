//! Writes the Rust bindings of MLX's C interface, as mlx-sys's own build script does on macOS.
//!
//! `mlx-bindings MLX_C_FOLDER EXTRA_HEADER OUTPUT`

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    match write(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mlx-bindings: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(args: &[String]) -> Result<(), Box<dyn std::error::Error>> {
    let [root, extra, output] = args else { return Err("three arguments are needed".into()) };
    let folder = PathBuf::from(root).join("mlx/c");
    let mut headers = Vec::new();
    for entry in std::fs::read_dir(&folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "h") {
            headers.push(path.to_string_lossy().into_owned());
        }
    }
    headers.sort();
    headers.push(extra.clone());
    let mut builder = bindgen::Builder::default()
        .clang_arg(format!("-I{root}"))
        .blocklist_function("malloc")
        .blocklist_function("realloc")
        .headers(headers);
    if cfg!(target_arch = "x86_64") {
        // clang 14 knows the type _Float16 only with this; nothing is compiled for it.
        builder = builder.clang_arg("-mavx512fp16");
    }
    builder.generate()?.write_to_file(output)?;
    Ok(())
}
