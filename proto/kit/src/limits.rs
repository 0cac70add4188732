//! The numbers of a worker, whichever engine it has: unit and reason of each. Those that the wire or the supervisor needs as
//! well are in [`ollmlx_proto::limits`], those of one engine in its own crate.

use std::time::Duration;

use ollmlx_proto::limits::{JSON_DEPTH_MAX, MIB, PROGRESS_INTERVAL_MS, SILENCE_MS, SLOTS_MAX};

// --- the process ---
/// A worker whose supervisor is gone leaves by itself within this, or is ended.
pub const GONE_GRACE_MS: u64 = 300;
/// A supervisor that takes no bytes for this long is as good as dead.
pub const WRITE_TIMEOUT: Duration = Duration::from_millis(SILENCE_MS);
/// Load progress is told at most this often.
pub const LOAD_PROGRESS_EVERY: Duration = Duration::from_millis(100);
/// Life and memory are told at most this often.
pub const PROGRESS_EVERY: Duration = Duration::from_millis(PROGRESS_INTERVAL_MS);
/// Of a step that takes longer, life is told of from within. Steps as short as most have their own sign first.
pub const PULSE_EVERY: Duration = PROGRESS_EVERY.saturating_add(Duration::from_millis(250));
/// Messages between the two threads. Each request has a run and a cancel, and the engine drains all of them between
/// two steps; with room for several generations of them the reader never waits here, and so sees the supervisor go.
pub const INBOX_LEN_MAX: usize = 16 * SLOTS_MAX as usize;
/// Bytes read at once.
pub const READ_BYTES: usize = 64 * 1024;
/// An output buffer that grew over this (embeddings do) is given back.
pub const BUFFER_BYTES_KEPT: usize = 1024 * 1024;

// --- batches ---
/// Tokens of a forward pass where a load order does not say how many.
pub const BATCH_TOKENS: u32 = 512;
/// Most prompt tokens computed in one step while other slots generate.
pub const PREFILL_CHUNK_TOKENS: u32 = 512;
/// The first part of a prompt; each later one may be twice as large as the one before.
pub const PREFILL_CHUNK_TOKENS_FIRST: usize = 8;
/// Fewest, so that a prompt gets on beside any number of answers.
pub const PREFILL_CHUNK_TOKENS_MIN: usize = 4;
/// After so many steps with prompts, one is made without, which tells what such a step takes.
pub const PREFILL_STEPS_BESIDE: usize = 16;
/// Prompts add this part to the time of such a step. Beside a second model that computes as well, the sum stays below three
/// times a calm step.
pub const PREFILL_BESIDE_SHARE: f64 = 0.5;
/// And this much at least: nobody sees it.
pub const PREFILL_BESIDE_MIN: Duration = Duration::from_millis(10);
/// The oldest unfinished prompt gets at least one part in this many of what a step has for prompts.
pub const OLDEST_SHARE: usize = 4;
/// Requests that may wait for a slot. The supervisor sends no more than there are slots, but one that ends and one that
/// starts may cross.
pub const ARRIVALS_LEN_MAX: usize = 2 * SLOTS_MAX as usize;
/// Requests made ready at once, each on a thread of its own. Those that nobody waits for any more count as well, until they
/// end: bounded, so that their memory is, and enough that a quick one finds a place beside slow ones.
pub const PREPARATIONS_MAX: usize = 8;
/// Added to the niceness of such a thread: each then has a third of the weight of one of the engine's.
pub const PREPARATION_NICE: i32 = 5;
/// What a request may take to render, and to compile its format. Both are bounded by fuel, and end well before where a
/// processor is free.
pub const PREPARE_PART_TIME: Duration = Duration::from_secs(2);
/// And to take up an answer that another process began, for each of its tokens: a hundred times what one takes.
pub const REPLAY_TOKEN_TIME: Duration = Duration::from_millis(5);
/// What the tokenizing of a request may take, whatever its length.
pub const TOKENIZE_TIME: Duration = Duration::from_secs(4);
/// And a second more for so many bytes: a hundredth of what known tokenizers do, beside engines that take all processors.
pub const TOKENIZE_BYTES_PER_S: f64 = 32.0 * 1024.0;
/// Bytes of a text that become tokens at once, and up to the next place where it can be parted: some milliseconds.
pub const SLICE_BYTES: usize = 16 * 1024;
/// Where there is no such place, a text is parted after so many bytes: what needs time by the square is over in a second or two.
pub const RUN_BYTES_MAX: usize = 32 * 1024;
/// White space or digits in a row after which a text is parted: the patterns of some vocabularies look from each of them to
/// the last, which takes a second for so many.
pub const FLAT_RUN_BYTES_MAX: usize = 8 * 1024;
/// Bytes of a token from which on a text is parted more often, and after how many then: what needs time by the cube of such is
/// over in seconds as well. The longest tokens known have 256.
pub const LONG_TOKEN_BYTES: usize = 512;
/// See [`LONG_TOKEN_BYTES`].
pub const LONG_TOKEN_RUN_BYTES_MAX: usize = 2 * 1024;
/// Bytes of the spelling of a control token that a text is not parted in; the longest known has about 50.
pub const CONTROL_BYTES_MAX: usize = 256;
/// A step waits this long for requests that have just come, most of which are ready by then and join it. A test waits for
/// as long as it takes, so that what it sees doesn't depend on the machine.
pub const PREPARED_SOON: Duration = if cfg!(test) { Duration::from_secs(60) } else { Duration::from_millis(2) };
/// Where there is nothing to compute, a step waits this long for a request to be ready; a cancel is seen in between.
pub const PREPARED_POLL: Duration = Duration::from_millis(20);
/// A long prefill is told of this often: twice as often as a silence would be noticed.
pub const PREFILL_TOLD_EVERY: Duration = Duration::from_millis(PROGRESS_INTERVAL_MS / 2);
/// Tokens that a copy from another slot must save to be worth it.
pub const COPY_TOKENS_MIN: usize = 32;
/// Most tokens of an answer, in windows: a model that never ends is stopped, as Ollama does.
pub const RUNAWAY_WINDOWS: u32 = 10;
/// A slide leaves room for this many tokens at least, as llama-server does.
pub const SLIDE_TOKENS_MIN: usize = 4;

// --- templates and what comes of them ---
/// Steps a template may take, whatever it renders.
pub const TEMPLATE_FUEL: u64 = 5_000_000;
/// Steps for an empty conversation: hundreds of times what known templates take.
pub const TEMPLATE_FUEL_BASE: u64 = 400_000;
/// More for each turn and tool.
pub const TEMPLATE_FUEL_PER_TURN: u64 = 5_000;
/// Values in a value of a Jinja template, where it is written out: beyond what a conversation of 64 MiB holds.
pub const TEMPLATE_VALUE_NODES_MAX: usize = 1_000_000;
/// Nesting of such a value: JSON of a client, in some lists of the template.
pub const TEMPLATE_VALUE_DEPTH_MAX: usize = JSON_DEPTH_MAX + 64;
/// A text of so many bytes is compared for nothing.
pub const TEMPLATE_SMALL_BYTES: usize = 4096;
/// Bytes of a chat template; the largest known ones have 30 KB.
pub const TEMPLATE_BYTES_MAX: usize = MIB;
/// Characters of one Jinja expression, strings and white space left out: each may be one level of recursion.
pub const TEMPLATE_EXPRESSION_CHARS_MAX: usize = 8192;
/// Branches of all conditions of a Jinja template, each of which may be one level of recursion.
pub const TEMPLATE_BRANCHES_MAX: usize = 2048;
/// Nodes that a Go template may visit, estimated before it runs.
pub const TEMPLATE_NODES_MAX: u64 = 20_000_000;
/// Bytes of text that a Go template may compare: a fraction of a second.
pub const TEMPLATE_COMPARED_BYTES_MAX: usize = 1024 * MIB;
/// Bytes of a tool call in the making; a longer one becomes content.
pub const TOOL_CALL_BYTES_MAX: usize = MIB;
/// Bytes of white space that may be held back before a tool call; a longer run is content.
pub const HELD_SPACE_BYTES_MAX: usize = 1024;
/// Bytes of a header in a tool call (its name) or of a channel before it is content.
pub const CALL_HEAD_BYTES_MAX: usize = 1024;
/// Bytes of a JSON Schema of a request.
pub const SCHEMA_BYTES_MAX: usize = 2 * MIB;
/// Schemas that one stands for, its references apart: the compiler itself goes no further.
pub const SCHEMA_NODES_MAX: u64 = 50_000;
/// Schemas that its intersections may copy, some 300 bytes each.
pub const SCHEMA_COPIES_MAX: u64 = 200_000;
/// Pairs of patterns of properties to be compared with each other; a pair takes up to a millisecond.
pub const SCHEMA_PAIRS_MAX: u64 = 1_000;
/// Patterns and formats of strings, each of which takes up to a millisecond.
pub const SCHEMA_PATTERNS_MAX: u64 = 1_000;
/// Bytes of all patterns together.
pub const SCHEMA_PATTERN_BYTES_MAX: u64 = 16 * 1024;
/// Properties of one object: some time is their square.
pub const SCHEMA_PROPERTIES_MAX: u64 = 5_000;
/// Fuel for compiling a grammar, some 50,000 a millisecond; the largest schemas known take half of it.
pub const GRAMMAR_FUEL: u64 = 1_000_000;
/// Fuel for the tokens that may come next, some 14,000 a millisecond: companions wait for each such step.
pub const GRAMMAR_STEP_FUEL: u64 = 100_000;
/// Items of the parser for the same, some 20,000 a millisecond.
pub const GRAMMAR_STEP_ITEMS_MAX: usize = 50_000;
/// States of a grammar's lexer, 1 to 2 KiB each, kept for as long as its request runs.
pub const GRAMMAR_STATES_MAX: usize = 30_000;
/// Symbols of a grammar's rules.
pub const GRAMMAR_SYMBOLS_MAX: usize = 500_000;
/// Stack of a thread that runs a template or compiles a grammar, both of which recurse. Only what is used is ever
/// taken. A template can nest one list per step, and dropping it takes some 200 bytes of stack per level.
pub const DEEP_STACK_BYTES: usize = 256 * MIB;
/// Bytes of a rendered prompt.
pub const RENDERED_BYTES_MAX: usize = 64 * MIB;
/// End markers tried for one call, when those before were inside strings.
pub const END_TRIES_MAX: u32 = 64;
/// Nesting of literals.
pub const LITERAL_DEPTH_MAX: usize = 64;
/// Bytes of one token that the trie takes; longer ones are never allowed by a grammar.
pub const GRAMMAR_TOKEN_BYTES_MAX: usize = 512;
