//! What libFuzzer calls; see `targets::schemas`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::schemas(bytes));
