//! Any file is a Modelfile or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ollmlx_supervisor::catalog::modelfile::{decode, parse};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = decode(bytes) {
        let _ = parse(&text);
    }
});
