//! Any body is a call or a rejection with a status of 400 or more, in every dialect.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ollmlx_supervisor::dialect::{Call, Rejection, anthropic, ollama, openai};

fuzz_target!(|bytes: &[u8]| {
    let parsers: [fn(&[u8]) -> Result<Call, Rejection>; 8] = [
        ollama::request::generate,
        ollama::request::chat,
        ollama::request::embed,
        ollama::request::embeddings,
        openai::request::chat,
        openai::request::completions,
        openai::request::embeddings,
        anthropic::request::messages,
    ];
    let Some((&which, body)) = bytes.split_first() else { return };
    if let Err(rejection) = parsers[usize::from(which) % parsers.len()](body) {
        assert!(rejection.status >= 400 && !rejection.message.is_empty());
    }
});
