//! What libFuzzer calls; see `targets::names`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::names(bytes));
