//! A name that is accepted has parts that are safe as parts of a path, and its short form means the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ollmlx_supervisor::catalog::name::Name;

fuzz_target!(|text: &str| {
    let Ok(name) = Name::parse(text) else { return };
    for part in name.parts() {
        assert!(!part.is_empty() && part != "." && part != ".." && !part.contains(['/', '\\', '\0']), "{part:?}");
    }
    let again = Name::parse(&name.shortest()).expect("our own short form");
    assert!(again.same(&name), "{text:?}");
});
