//! Tells the linker where MLX's library lies at run time on Linux: beside the installed program first, then where
//! `linux/setup.sh` put it. On macOS MLX is linked statically and nothing is needed.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") {
        return;
    }
    println!("cargo::rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib/ollmlx");
    if let Ok(path) = std::env::var("DEP_MLX_RPATH") {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{path}");
    }
}
