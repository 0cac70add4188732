//! What libFuzzer calls; see `targets::templates`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::templates(bytes));
