//! What libFuzzer calls; see `targets::gguf`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::gguf(bytes));
