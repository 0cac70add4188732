//! Any file has a header or an error, in bounded memory. The parser is taken by its path: its crate would bring llama.cpp.
#![no_main]
#![expect(dead_code, reason = "only the header parser of that crate is used")]

#[path = "../../worker-gguf/src/gguf/mod.rs"]
mod gguf;

use std::io::Write as _;
use std::path::PathBuf;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let memory = PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() { memory } else { std::env::temp_dir() };
    let path = folder.join(format!("ollmlx-fuzz-{}.gguf", std::process::id()));
    std::fs::File::create(&path).and_then(|mut file| file.write_all(bytes)).expect("a file can be written");
    if let Ok(header) = gguf::Header::read(&path) {
        let _ = gguf::check::check(&header);
        let _ = (header.architecture(), header.vocab_size(), header.weight_bytes(), header.per_layer("attention.head_count", 1));
    }
    let _ = std::fs::remove_file(&path);
});
