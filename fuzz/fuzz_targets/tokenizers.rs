//! What libFuzzer calls; see `targets::tokenizers`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::tokenizers(bytes));
