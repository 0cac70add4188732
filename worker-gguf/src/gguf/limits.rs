//! The numbers of the parser of model files, each with its unit and reason. They are here and not with those of the engine,
//! since tests and fuzzing take the parser without it.

/// Bytes of a key.
pub const KEY_BYTES_MAX: u64 = 65_535;
/// Bytes of one text value; chat templates are the longest, at some tens of kilobytes.
pub const TEXT_BYTES_MAX: u64 = 4 << 20;
/// Bytes of all text values together.
pub const TEXT_BYTES_TOTAL_MAX: u64 = 32 << 20;
/// Metadata entries; real files have some dozens.
pub const ENTRIES_MAX: u64 = 65_536;
/// Tensors; the largest real models have some thousands.
pub const TENSORS_MAX: u64 = 100_000;
/// Bytes of a tensor's name, one less than llama.cpp's `GGML_MAX_NAME`.
pub const TENSOR_NAME_BYTES_MAX: u64 = 63;
/// Dimensions of a tensor (`GGML_MAX_DIMS`).
pub const DIMENSIONS_MAX: u32 = 4;
/// Elements of an array. Vocabularies have at most some hundred thousand, merges a little more.
pub const ARRAY_LEN_MAX: u64 = 16 << 20;
/// Bytes of a token or merge; longer ones overflow buffers in some tokenizers.
pub const TOKEN_BYTES_MAX: u64 = 65_536;
/// Leading numbers of an array that are kept: one per layer must fit.
pub const ARRAY_KEPT_LEN_MAX: usize = 1024;
/// Largest alignment that is believed.
pub const ALIGNMENT_MAX: u64 = 1 << 20;
/// Texts of an array that are kept.
pub const TEXTS_KEPT_MAX: usize = 5;
/// Bytes of each of them.
pub const TEXT_KEPT_BYTES_MAX: u64 = 4096;
/// Shards of one model; llama.cpp counts them in 16 bits, and real models have some dozens.
pub const SHARDS_MAX: u64 = 1024;
/// Layers; a fixed array in llama.cpp (`LLAMA_MAX_LAYERS`).
pub const LAYERS_MAX: u64 = 512;
/// Width of the hidden state.
pub const WIDTH_MAX: u64 = 1 << 20;
/// Window; llama.cpp counts positions in 31 bits.
pub const CONTEXT_MAX: u64 = 1 << 30;
/// Heads of a layer, and elements of a head.
pub const HEADS_MAX: u64 = 1 << 16;
/// Experts; llama.cpp ends the process for more (`LLAMA_MAX_EXPERTS`).
pub const EXPERTS_MAX: u64 = 1024;
/// Parts that states and connections are repeated by; real models have four.
pub const GROUPS_MAX: u64 = 8;
/// Steps of a convolution or an iteration; real models have four, and twenty.
pub const STATE_MAX: u64 = 64;
/// Tokens of a vocabulary; the largest known has 262,208.
pub const VOCAB_MAX: u64 = 1 << 22;
/// Factors and bases that are computed with; the largest known base is 10^9.
pub const SCALE_MAX: f64 = 1e18;
/// Bytes of a table of a tokenizer that are kept and followed; that of XLM-RoBERTa has 240 KB.
pub const CHARSMAP_BYTES_MAX: u64 = 4 << 20;
/// Bytes read at once.
pub const BUFFER_BYTES: usize = 256 * 1024;
/// Bytes that a tokenizer may put in place of a letter; the longest of Unicode's has 33.
pub const REPLACEMENT_BYTES_MAX: usize = 256;
