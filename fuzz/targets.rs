//! What each fuzz target does with some bytes: everything of ollmlx that parses what strangers send. A target panics where a
//! promise is broken, and that is all it may do.
//!
//! Two callers, so that nothing is written twice: the binaries in `fuzz_targets/` give it what libFuzzer makes up, and
//! `tests/it/corpora.rs` what lies in `corpus/`.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use ollmlx_proto::frame::{self, Decoder, encode};
use ollmlx_proto::{
    Chat, ContentPart, Format, FromWorker, JsonText, Message, Role, ThinkMode, ToWorker, TokenId, UnixSeconds,
};
use ollmlx_supervisor::catalog::modelfile;
use ollmlx_supervisor::catalog::name::Name;
use ollmlx_supervisor::dialect::json::JsonBody;
use ollmlx_supervisor::dialect::{Call, Rejection, anthropic, ollama, openai};
use ollmlx_worker_kit::chat::{ChatFormat, ChatSource};
use ollmlx_worker_kit::grammar::GrammarFactory;
use ollmlx_worker_kit::vocab::{TokenKind, Vocab};

/// The parser is taken by its path: its crate would bring llama.cpp.
#[path = "../worker-gguf/src/gguf/mod.rs"]
#[expect(dead_code, reason = "only the header parser of that crate is used")]
mod gguf;

/// So is the tokenizer: its crate would bring MLX.
#[path = "../worker-mlx/src/config.rs"]
#[expect(dead_code, reason = "only what reads files is used")]
mod config;
#[path = "../worker-mlx/src/limits.rs"]
#[expect(dead_code, reason = "only those of files are used")]
mod limits;
#[path = "../worker-mlx/src/tokenizer/mod.rs"]
#[expect(dead_code, reason = "the chat template is read by another target")]
mod tokenizer;

/// Any bytes, cut anywhere, are frames or a typed error; and what is decoded is encoded to something that decodes again.
pub fn frames(bytes: &[u8]) {
    let Some((&cut, bytes)) = bytes.split_first() else { return };
    read_frames::<FromWorker>(bytes, usize::from(cut).max(1));
    read_frames::<ToWorker>(bytes, usize::from(cut).max(1));
}

fn read_frames<M: frame::WireMessage + PartialEq + std::fmt::Debug>(bytes: &[u8], cut: usize) {
    let mut decoder = Decoder::new();
    for piece in bytes.chunks(cut) {
        decoder.push(piece);
        loop {
            match decoder.next_message::<M>() {
                Ok(None) => break,
                Err(_) => return,
                Ok(Some(message)) => {
                    let mut again = Vec::new();
                    if encode(&message, &mut again).is_ok() {
                        let mut decoder = Decoder::new();
                        decoder.push(&again);
                        assert!(decoder.next_message::<M>().expect("our own frame").is_some());
                    }
                }
            }
        }
    }
}

/// Any file has a header or an error, in bounded memory.
pub fn gguf(bytes: &[u8]) {
    let memory = PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() { memory } else { std::env::temp_dir() };
    let path = folder.join(format!("ollmlx-fuzz-{}.gguf", std::process::id()));
    std::fs::File::create(&path).and_then(|mut file| file.write_all(bytes)).expect("a file can be written");
    if let Ok(header) = gguf::Header::read(&path) {
        let _ = gguf::check::check(&header);
        let _ = (header.architecture(), header.vocab_size(), header.weight_bytes());
        let _ = header.per_layer("attention.head_count", 1);
    }
    let _ = std::fs::remove_file(&path);
}

/// Any `tokenizer.json` is refused, or makes tokens that its model has of a text, or gives the text up, in bounded time. The file
/// ends at the first byte 0xff, which is in no text, and the text begins after it.
pub fn tokenizers(bytes: &[u8]) {
    const VOCAB_SIZE: usize = 512;
    // The library panics, which is caught; libFuzzer would have every panic end the process at once.
    drop(std::panic::take_hook());
    let mut parts = bytes.splitn(2, |&byte| byte == 0xff);
    let (file, text) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let folder = tempfile::tempdir().expect("a folder can be made");
    std::fs::write(folder.path().join("tokenizer.json"), file).expect("a file can be written");
    for wraps in [false, true] {
        let Ok(tokenizer) = tokenizer::Tokenizer::load(folder.path(), VOCAB_SIZE, wraps) else { continue };
        if let Ok(tokens) = tokenizer.encode(&String::from_utf8_lossy(text), true, wraps) {
            assert!(tokens.iter().all(|&token| (token as usize) < VOCAB_SIZE));
        }
    }
}

/// Any file is a Modelfile or an error.
pub fn modelfile(bytes: &[u8]) {
    if let Ok(text) = modelfile::decode(bytes) {
        let _ = modelfile::parse(&text);
    }
}

/// A name that is accepted has parts that are safe as parts of a path, and its short form means the same.
pub fn names(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let Ok(name) = Name::parse(&text) else { return };
    for part in name.parts() {
        assert!(!part.is_empty() && part != "." && part != ".." && !part.contains(['/', '\\', '\0']), "{part:?}");
    }
    let again = Name::parse(&name.shortest()).expect("our own short form");
    assert!(again.same(&name), "{text:?}");
}

/// Any body is a call or a rejection with a status of 400 or more, in every dialect. The first byte chooses the route.
pub fn requests(bytes: &[u8]) {
    type Parser = fn(&JsonBody<'_>) -> Result<Call, Rejection>;
    let parsers: [Parser; 8] = [
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
    if let Err(rejection) = parsers[usize::from(which) % parsers.len()](&JsonBody::new(body)) {
        assert!(rejection.status >= 400 && !rejection.message.is_empty());
    }
}

/// Any template renders a small chat to a bounded prompt or fails, in bounded time. The first byte chooses the language; the
/// template ends at the first byte 0xff, which is in no text, and what is said begins after it.
pub fn templates(bytes: &[u8]) {
    let Some((&which, bytes)) = bytes.split_first() else { return };
    let is_go = which & 1 == 1;
    let mut parts = bytes.splitn(2, |&byte| byte == 0xff).map(|part| String::from_utf8_lossy(part).into_owned());
    let (template, content) = (parts.next(), parts.next().unwrap_or_default());
    let source = if is_go {
        ChatSource { go: template, ..ChatSource::default() }
    } else {
        ChatSource { jinja: template, ..ChatSource::default() }
    };
    let format = ChatFormat::new(&source, &Vocab::default());
    let message = Message {
        role: Role::User,
        content: vec![ContentPart::Text(content)],
        thinking: None,
        tool_calls: Vec::new(),
        tool_name: None,
        tool_call_id: None,
    };
    let chat = Chat {
        messages: vec![message],
        tools: Vec::new(),
        think: ThinkMode::Unset,
        template: None,
        single_turn: is_go,
        context: Vec::new(),
        suffix: None,
        render_only: false,
    };
    if let Ok(prompt) = format.render(&chat, UnixSeconds::default()) {
        assert!(prompt.cuts.iter().all(|cut| prompt.text.is_char_boundary(*cut)));
    }
}

/// Tokens of a text that the grammar of a schema is walked along.
const WALK_MAX: usize = 48;

/// Any schema is a grammar that something fits, or is refused, in bounded time and memory. The schema ends at the first byte
/// 0xff; each byte after it chooses among the tokens that may come next.
pub fn schemas(bytes: &[u8]) {
    thread_local! {
        static FACTORY: GrammarFactory = GrammarFactory::new(Arc::new(byte_vocab()));
    }
    let mut parts = bytes.splitn(2, |&byte| byte == 0xff);
    let schema = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let choices = parts.next().unwrap_or_default();
    let compiled = FACTORY.with(|factory| factory.compile(&Format::JsonSchema(JsonText(schema))));
    let Ok(Some(mut grammar)) = compiled else { return };
    let mut logits = vec![0.0; byte_vocab().len()];
    for &choice in choices.iter().take(WALK_MAX) {
        logits.fill(0.0);
        if grammar.mask(&mut logits).is_err() {
            return;
        }
        let allowed: Vec<TokenId> = (0..).zip(&logits).filter(|(_, logit)| **logit == 0.0).map(|(id, _)| id).collect();
        assert!(!allowed.is_empty(), "nothing may come next, not even the end");
        if grammar.accept(allowed[usize::from(choice) % allowed.len()]).is_err() || grammar.is_done() {
            return;
        }
    }
}

/// A token for each byte, and one that ends the answer.
fn byte_vocab() -> Vocab {
    let mut vocab = Vocab { eos: Some(256), ..Vocab::default() };
    vocab.bytes = (0..=255_u8).map(|byte| vec![byte]).chain([b"<end>".to_vec()]).collect();
    vocab.kinds = vec![TokenKind::Text; 256];
    vocab.kinds.push(TokenKind::Control);
    vocab.ends.insert(256);
    vocab
}
