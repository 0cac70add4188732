//! The numbers of this engine, each with its unit and reason: of model folders, and of how MLX is used. What only makes the
//! estimate is in [`crate::memory`].

use std::time::Duration;

// --- model folders ---
/// Bytes of `tokenizer.json`; that of Gemma 3 has 33 MB.
pub const TOKENIZER_BYTES_MAX: u64 = 128 * 1024 * 1024;
/// Bytes of a chat template.
pub const TEMPLATE_BYTES_MAX: u64 = 1024 * 1024;
/// Added tokens of a vocabulary; the largest known has about 6500.
pub const ADDED_TOKENS_MAX: usize = 100_000;
/// Bytes of their spellings: an automaton is built of them, of dozens of bytes for each. The largest known have 100 KB.
pub const ADDED_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Values of `tokenizer.json`, each of which the library copies several times as it reads them; that of Gemma 3 has 2 million.
pub const JSON_VALUES_MAX: usize = 6_000_000;
/// Bytes of its normaliser; those with a map of SentencePiece have half a megabyte.
pub const NORMALISER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of its pre-tokenizer, post-processor or decoder; real ones have a few kilobytes.
pub const SECTION_BYTES_MAX: usize = 256 * 1024;
/// Steps of one of these, sequences among them; real ones have at most ten.
pub const STEPS_MAX: usize = 64;
/// Bytes that a normaliser may put in place of a match; real ones put one letter.
pub const REPLACEMENT_BYTES_MAX: usize = 32;
/// Bytes of a text that a SentencePiece map puts in place of a letter; the longest of Unicode's own has 33.
pub const CHARSMAP_PIECE_BYTES_MAX: usize = 64;
/// Tokens that a template puts around a text; real ones put two.
pub const MARKERS_MAX: usize = 64;
/// Bytes of what marks parts of words (`##`, `</w>`): it is put before each of their letters.
pub const WORD_AFFIX_BYTES_MAX: usize = 32;
/// Letters of a word that WordPiece looks into, which it needs time by the cube of; real ones have 100.
pub const WORD_LETTERS_MAX: u64 = 1024;
/// Bytes of a piece of a unigram vocabulary: all pieces that begin at a letter are copied. Real ones have 50.
pub const UNIGRAM_PIECE_BYTES_MAX: usize = 256;
/// Times its length that a text may grow on its way to tokens: one letter is at most eleven times as long when Unicode's
/// normal forms take it apart.
pub const GROWTH_MAX: usize = 16;
/// Bytes that a short text may grow to; and of a text that a second more is allowed for.
pub const GROWTH_BYTES_MIN: usize = 64 * 1024;
/// What a text may take on its way to tokens, in which known tokenizers do megabytes.
pub const TEXT_TIME: Duration = Duration::from_secs(3);
/// And for each further `GROWTH_BYTES_MIN` of it.
pub const TEXT_MORE_TIME: Duration = Duration::from_secs(1);
/// Bytes of one header; that of a model of 100 000 tensors has about 12 MB.
pub const HEADER_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Tensors of one model.
pub const TENSORS_MAX: usize = 200_000;
/// Files of one model.
pub const SHARDS_MAX: usize = 2_048;
/// Bytes of an index file.
pub const INDEX_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Bytes of a configuration file.
pub const CONFIG_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Layers of a model; the largest known has 128.
pub const LAYERS_MAX: u32 = 1024;
/// Width of a hidden state or of a feed-forward layer; the largest known is 131072.
pub const WIDTH_MAX: u32 = 1 << 20;
/// Attention heads.
pub const HEADS_MAX: u32 = 4096;
/// Vocabulary entries; the largest known is 262208.
pub const VOCAB_MAX: u32 = 1 << 22;
/// Experts of a layer; the largest known has 512.
pub const EXPERTS_MAX: u32 = 4096;
/// Dimensions of a tensor.
pub const DIMENSIONS_MAX: usize = 8;

// --- computing ---
/// On a CPU device a quantised model is unpacked to 32-bit floats where that takes at most this many bytes: BLAS on
/// plain floats is then several times faster than MLX's quantised product.
pub const CPU_UNPACK_BYTES_MAX: u64 = 2 << 30;
/// Most bytes of freed buffers that MLX may keep for reuse.
pub const BUFFER_CACHE_BYTES: usize = 256 << 20;
/// Least of it.
pub const BUFFER_CACHE_BYTES_MIN: usize = 16 << 20;
/// Up to this many rows OpenBLAS is faster with one thread: it splits the rows (measured on two cores: 8 rows of
/// 576 by 3072 take 0.38 ms with one thread and 0.92 ms with two).
pub const ONE_THREAD_ROWS: usize = 16;
/// Bytes of weights times tokens of a batch on a CPU from which a batch is evaluated layer by layer, with a sign of life after each.
/// Below that, 500 tokens of a model of a gigabyte, it is done within seconds; a layer's end costs a wait for all threads.
pub const LONG_BYTE_TOKENS: u64 = 600_000_000_000;
/// Tokens times layers of a text that are computed between two signs of life, a layer at least.
pub const EMBED_STEP: usize = 64;
/// Batches between two emptyings of MLX's buffer cache, which fragments as caches grow (mlx-lm does it every 256).
pub const BATCHES_PER_CLEAR: u64 = 256;
/// Buffers have room for a multiple of this many tokens.
pub const CELLS_MULTIPLE: i32 = 64;
/// A growing cache gets room for this part of its tokens more, and for [`CELLS_MULTIPLE`] at least: to copy a slot now and
/// then costs less than what idle room costs in memory.
pub const SPARE_PART: i32 = 8;
/// Tokens that a sliding cache holds beyond its window, before it is moved to the front again.
pub const SLIDING_SLACK_TOKENS: i32 = 512;
/// From this many rows on, dequantising a weight once and multiplying by BLAS beats MLX's quantised product on a CPU,
/// which is linear in the rows (measured on x86: 2048×2048, 4 bits, 8 rows 22 ms against 17 ms for 64 rows).
pub const CPU_DEQUANTISE_ROWS: i32 = 6;
/// Values that are unpacked at once as a weight is loaded.
pub const UNPACK_PIECE_VALUES: i32 = 1 << 22;
