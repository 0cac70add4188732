//! The numbers of this engine, each with its unit and reason: of model files, and of how llama.cpp is used. What only makes the
//! estimate is in [`crate::memory`].

// --- model files, whose parser has limits of its own: [`crate::gguf::limits`] ---
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
