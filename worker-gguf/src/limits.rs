//! The numbers of this engine, each with its unit and reason: of model files, and of how llama.cpp is used. What only makes the
//! estimate is in [`crate::memory`].

// --- model files ---
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
/// Bytes read at once.
pub const BUFFER_BYTES: usize = 256 * 1024;
/// Bytes of all metadata of a card as JSON; entries beyond it are left out.
pub const METADATA_BYTES_MAX: usize = 768 * 1024;
/// Elements of an array that is shown whole.
pub const SHOWN_LEN_MAX: u64 = 5;

// --- computing ---
/// Tokens of a micro-batch, what one pass over the weights computes. Larger ones are no faster on a CPU, and buffers
/// grow with it.
pub const MICRO_BATCH_TOKENS: u32 = 512;
/// llama.cpp rounds a stream up to this many cells.
pub const CELLS_MULTIPLE: u32 = 256;
/// Longest input of a model that looks both ways: it is computed in one piece, and buffers grow with its length.
pub const EMBED_TOKENS_MAX: u32 = 8192;
/// Tokens of an input that are computed at once where it can be parted: enough for a CPU to be busy with, and so few that
/// a slow one still gives a sign of life every few seconds.
pub const EMBED_CHUNK_TOKENS: u32 = 128;
/// The same where every token's hidden state is wanted, each of which brings a row of logits along.
pub const MEAN_CHUNK_TOKENS: u32 = 32;
/// Bytes of weights up to which a model on the CPU gets a stream of cells per slot.
pub const STREAMS_WEIGHT_BYTES_MAX: u64 = 1 << 30;
/// Tokens computed together where several inputs fit. More would not be faster: attention is computed between all
/// of them and masked, so its cost grows with the square.
pub const TOGETHER_TOKENS: usize = 512;
/// Whole inputs computed together.
pub const TOGETHER_SEQUENCES: u32 = 64;
/// About half a layer. A beat looks at the clock and at a lock, which costs a tenth of a microsecond or two; a token of a small
/// model has a thousand nodes and takes ten milliseconds. The matrices of half a layer take a slow CPU seconds at most, even
/// for thousands of tokens.
pub const NODES_PER_BEAT: u32 = 16;
/// Error lines kept for the failure text of a load.
pub const ERRORS_KEPT_MAX: usize = 8;
/// Bytes of a log line that are kept; llama.cpp quotes from the model file.
pub const LINE_BYTES_MAX: usize = 1024;
