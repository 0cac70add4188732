//! What libFuzzer calls; see `targets::modelfile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::modelfile(bytes));
