//! What hostile and damaged files lead to: a specific error, never a panic, and little memory.

use std::io::Cursor;

use super::testing::{Writer, small, text};
use super::{Header, check, parse};

fn parse_bytes(bytes: &[u8]) -> Result<Header, String> {
    let header = parse::parse(Cursor::new(bytes), bytes.len() as u64).map_err(|error| error.to_string())?;
    check::check(&header).map_err(|error| error.to_string())?;
    Ok(header)
}

#[track_caller]
fn assert_refused(writer: &Writer, reason: &str) {
    assert_bytes_refused(&writer.bytes(), reason);
}

#[track_caller]
fn assert_bytes_refused(bytes: &[u8], reason: &str) {
    let error = parse_bytes(bytes).expect_err("the file is refused");
    assert!(error.contains(reason), "{error:?} does not say {reason:?}");
}

#[test]
fn sound_file_is_read() {
    let header = parse_bytes(&small().bytes()).unwrap();
    assert_eq!(header.architecture(), "llama");
    assert_eq!(header.vocab_size(), 6);
    assert_eq!(header.tokens.types, [2, 3, 3, 6, 1, 1]);
    assert_eq!(header.weight_bytes(), 32 * 6 * 4);
    assert_eq!(header.arch_number("block_count"), Some(2));
}

#[test]
fn version_two_is_read_and_others_are_refused() {
    let with_version = |version: u32| {
        let mut bytes = small().bytes();
        bytes[4..8].copy_from_slice(&version.to_le_bytes());
        parse_bytes(&bytes)
    };
    assert!(with_version(2).is_ok());
    assert_eq!(with_version(3_u32.swap_bytes()).unwrap_err(), "not a GGUF file for this machine: it is big-endian");
    assert!(with_version(1).unwrap_err().contains("version 1"));
    assert!(with_version(4).unwrap_err().contains("version 4"));
}

#[test]
fn short_files_and_wrong_magic_are_refused() {
    assert_bytes_refused(b"", "not a GGUF file");
    assert_bytes_refused(b"G", "not a GGUF file");
    assert_bytes_refused(b"GGML\x03\0\0\0", "not a GGUF file");
    assert_bytes_refused(b"GGUF", "truncated: the file ends at byte 4, within the version");
    assert_bytes_refused(&small().bytes()[..8], "within the tensor count");
    assert_bytes_refused(&small().bytes()[..23], "the tensor count at byte 8 is 1, but only 7 bytes follow");
    assert_bytes_refused(&Writer::new().bytes()[..23], "within the metadata count");
}

#[test]
fn every_prefix_of_a_sound_file_is_refused() {
    let bytes = small().bytes();
    assert!(bytes.len() > 1500, "{}", bytes.len());
    for end in 0..bytes.len() {
        let error = parse_bytes(&bytes[..end]).expect_err("a prefix is refused");
        assert!(!error.is_empty());
    }
}

#[test]
fn any_changed_byte_is_survived() {
    let sound = small().bytes();
    for at in 0..sound.len() {
        for value in [0x00, 0x01, 0x09, 0x7f, 0x80, 0xff] {
            let mut bytes = sound.clone();
            bytes[at] = value;
            // Some changes are harmless; none may panic or allocate much.
            let _ = parse_bytes(&bytes);
        }
    }
}

#[test]
fn truncated_weights_are_refused_with_numbers() {
    let bytes = small().bytes();
    let error = parse_bytes(&bytes[..bytes.len() - 1]).unwrap_err();
    assert_eq!(error, "truncated: header says 1 tensors of 768 bytes, file has 767 bytes for them");
}

#[test]
fn absurd_counts_are_refused_without_allocating() {
    assert_bytes_refused(&small().bytes_with(1, 1 << 62), "the metadata count at byte 16 is 4611686018427387904");
    assert_bytes_refused(&small().bytes_with(1 << 62, 19), "the tensor count at byte 8 is 4611686018427387904");
    let key_of = |len: u64| {
        let mut bytes = Writer::new().number("k", 1).bytes_with(0, 1);
        bytes[24..32].copy_from_slice(&len.to_le_bytes());
        bytes
    };
    assert_bytes_refused(&key_of(1 << 63), "the length of a key");
    let array_of = |kind: u32| [&kind.to_le_bytes()[..], &(1_u64 << 60).to_le_bytes()].concat();
    assert_refused(&small().raw("k", 8, &(1_u64 << 40).to_le_bytes()), "the length of a text");
    assert_refused(&small().raw("k", 9, &array_of(4)), "the length of an array");
    assert_refused(&small().raw("k", 9, &array_of(8)), "the length of an array");
    assert_refused(&small().raw("k", 9, &array_of(9)), "key \"k\": arrays of arrays");
    assert_refused(&small().raw("k", 9, &9_u32.to_le_bytes().repeat(1000)), "arrays of arrays");
    assert_refused(&small().raw("k", 77, &[]), "key \"k\": unknown value type 77");
}

#[test]
fn long_tokens_are_refused() {
    let long = "x".repeat(3 << 20);
    assert_refused(&small().texts("tokenizer.ggml.tokens", &[long]), "over the limit of 65536");
    let mut items = [&8_u32.to_le_bytes()[..], &1_u64.to_le_bytes()].concat();
    items.extend((1_u64 << 31).to_le_bytes());
    assert_refused(&small().raw("tokenizer.ggml.tokens", 9, &items), "the length of a text in an array");
}

#[test]
fn impossible_tensors_are_refused() {
    let header = |dimensions: u32, sides: &[u64], kind: u32, offset: u64| {
        let mut bytes = [&b"GGUF"[..], &3_u32.to_le_bytes(), &1_u64.to_le_bytes(), &0_u64.to_le_bytes()].concat();
        bytes.extend(text(b"t"));
        bytes.extend(dimensions.to_le_bytes());
        bytes.extend(sides.iter().flat_map(|side| side.to_le_bytes()));
        bytes.extend(kind.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        bytes.resize(1024, 0);
        bytes
    };
    assert_bytes_refused(&header(65, &[1; 65], 0, 0), "65 dimensions");
    assert_bytes_refused(&header(2, &[1 << 40, 1 << 40], 0, 0), "too large");
    assert_bytes_refused(&header(1, &[1 << 62], 0, 0), "too large");
    assert_bytes_refused(&header(1, &[0], 0, 0), "zero");
    assert_bytes_refused(&header(1, &[33], 2, 0), "no whole blocks of Q4_0");
    assert_bytes_refused(&header(1, &[8], 4, 0), "unknown type 4");
    assert_bytes_refused(&header(1, &[8], 0, 7), "no multiple of 32");
    assert_bytes_refused(&header(1, &[8], 0, u64::MAX - 31), "too large");
    assert_bytes_refused(&header(1, &[1 << 20], 0, 0), "truncated: header says 1 tensors of 4194304 bytes");
    let twice = small().tensor("token_embd.weight", &[8], vec![0.0; 8]);
    assert_refused(&twice, "it is there twice");
    assert_refused(&small().tensor(&"n".repeat(64), &[8], vec![0.0; 8]), "over the limit of 63");
    assert_refused(&small().number("general.alignment", 24), "general.alignment");
}

#[test]
fn nonsense_metadata_is_refused() {
    assert_refused(&small().twice("llama.block_count"), "key \"llama.block_count\" is there twice");
    assert_refused(&small().without("general.architecture"), "key \"general.architecture\" is missing");
    assert_refused(&small().number("general.architecture", 1), "an unsigned integer where a text belongs");
    assert_refused(&small().text("general.architecture", "../x"), "not a name");
    assert_refused(&small().number("llama.block_count", 600), "600, which is not between 1 and 512");
    assert_refused(&small().number("llama.embedding_length", 0), "llama.embedding_length");
    assert_refused(&small().without("llama.context_length"), "key \"llama.context_length\" is missing");
    assert_refused(&small().numbers("llama.attention.head_count_kv", &[1; 600]), "600 elements for 2 layers");
    assert_refused(&small().numbers("llama.attention.head_count", &[1]), "1 elements for 2 layers");
    assert_refused(&small().number("llama.attention.head_count", u32::MAX), "not between 0 and 65536");
}

#[test]
fn keys_that_do_not_go_together_are_refused() {
    let experts =
        |count: u32, used: u32| small().number("llama.expert_count", count).number("llama.expert_used_count", used);
    assert!(parse_bytes(&experts(8, 2).bytes()).is_ok());
    assert!(parse_bytes(&experts(0, 0).bytes()).is_ok());
    assert_refused(&experts(u32::MAX, 2), "key \"llama.expert_count\": 4294967295, which is not between 0 and 1024");
    assert_refused(&experts(2, 9), "key \"llama.expert_used_count\": 9 of 2 experts");
    assert_refused(&experts(8, 0), "none of 8 experts");
    assert_refused(&experts(0, 2), "2 of 0 experts");
    let groups = |count: u32, used: u32| {
        experts(8, 2).number("llama.expert_group_count", count).number("llama.expert_group_used_count", used)
    };
    assert!(parse_bytes(&groups(2, 1).bytes()).is_ok());
    assert_refused(&groups(3, 1), "3 groups of 8 experts");
    assert_refused(&groups(2, 2), "llama.expert_group_used_count");
    assert_refused(&small().number("llama.expert_gating_func", 0), "llama.expert_gating_func");
    assert_refused(&small().number("llama.nextn_predict_layers", 2), "2 of 2 layers");
    assert_refused(&small().number("llama.attention.head_count_kv", 3), "does not divide its 2 heads");
    assert_refused(&small().number("llama.attention.head_count", 0), "0 in the first layer");
    assert_refused(&small().without("llama.attention.head_count"), "is missing");
    assert_refused(&small().number("llama.rope.dimension_count", 15), "no even part of a head of 16");
    assert_refused(&small().number("llama.rope.dimension_count", 18), "no even part of a head of 16");
    assert_refused(&small().text("llama.rope.scaling.type", "x"), "an unknown word");
    assert_refused(&small().signeds("llama.rope.dimension_sections", &[9, 9, 0, 0]), "of a head of 16");
    assert_refused(&small().number("llama.full_attention_interval", 0), "llama.full_attention_interval");
    assert_refused(&small().number("llama.wkv.head_size", 5), "5 of a width of 32");
    assert_refused(&small().float("llama.attention.layer_norm_rms_epsilon", -1.0), "-1, which is not between 0 and 1");
    assert_refused(&small().float("llama.rope.freq_base", f32::NAN), "NaN");
    assert_refused(&small().number("llama.pooling_type", 5), "llama.pooling_type");
    assert_refused(&small().number("llama.embedding_length_out", 64), "llama.embedding_length_out");
    assert_refused(&small().text("general.architecture", "eagle3"), "a draft model");
}

#[test]
fn weights_that_nothing_computes_with_are_refused() {
    let mut bytes = small().bytes();
    let name = b"token_embd.weight";
    let at = bytes.windows(name.len()).position(|part| part == name).unwrap() + name.len() + 4 + 16;
    bytes[at] = 24;
    assert_bytes_refused(&bytes, "tensor \"token_embd.weight\": weights of type I8");
    let mut bytes = small().tensor("output_norm.weight", &[32], vec![0.0; 32]).bytes();
    let name = b"output_norm.weight";
    let at = bytes.windows(name.len()).position(|part| part == name).unwrap() + name.len() + 4 + 8;
    bytes[at] = 1;
    assert_bytes_refused(&bytes, "tensor \"output_norm.weight\": its type is F16");
}

#[test]
fn other_kinds_of_files_are_named() {
    assert_refused(&small().text("general.architecture", "clip"), "this is a projector");
    assert_refused(&small().text("general.type", "mmproj"), "this is a projector");
    assert_refused(&small().text("general.type", "adapter"), "this is an adapter");
    assert_refused(&small().text("general.architecture", "t5"), "encoder-decoder");
    assert_refused(&small().text("tokenizer.ggml.model", "no_vocab"), "no vocabulary");
}

#[test]
fn broken_vocabularies_are_refused() {
    assert_refused(&small().without("tokenizer.ggml.tokens"), "key \"tokenizer.ggml.tokens\" is missing");
    assert_refused(&small().without("tokenizer.ggml.scores"), "key \"tokenizer.ggml.scores\" is missing");
    assert_refused(&small().text("tokenizer.ggml.model", "gpt2"), "key \"tokenizer.ggml.merges\" is missing");
    let merges_only = small().without("tokenizer.ggml.tokens").texts("tokenizer.ggml.merges", &["a b".to_owned()]);
    assert_refused(&merges_only, "key \"tokenizer.ggml.tokens\" is missing");
    assert_refused(&small().signeds("tokenizer.ggml.token_type", &[1, 1]), "2 elements for 6 tokens");
    assert_refused(&small().floats("tokenizer.ggml.scores", &[0.0]), "1 elements for 6 tokens");
    let tokens = ["<unk>", "<s>", "</s>", "<0x-1>", "a", "b"].map(str::to_owned);
    assert_refused(&small().texts("tokenizer.ggml.tokens", &tokens), "token 3 is a byte token but not spelled as one");
    let twice = ["<unk>", "<s>", "</s>", "<0x0A>", "a", "a"].map(str::to_owned);
    assert_refused(&small().texts("tokenizer.ggml.tokens", &twice), "token 5 is spelled as one before it");
    let empty = ["<unk>", "<s>", "</s>", "<0x0A>", "", ""].map(str::to_owned);
    assert!(
        parse_bytes(&small().texts("tokenizer.ggml.tokens", &empty).bytes()).is_ok(),
        "each gets a name of its own"
    );
    assert_refused(&small().text("tokenizer.ggml.model", "bert"), "a byte token, which this tokenizer does not have");
    assert_refused(&small().text("tokenizer.ggml.model", "plamo2"), "<0x00> is missing");
    let other = small().text("tokenizer.ggml.model", "t5").raw(
        "tokenizer.ggml.precompiled_charsmap",
        9,
        &[&0_u32.to_le_bytes()[..], &64_u64.to_le_bytes(), &[255; 64]].concat(),
    );
    assert_refused(&other, "precompiled_charsmap");
    let bytes_of_words = small().text("tokenizer.ggml.model", "gpt2").texts("tokenizer.ggml.merges", &[]);
    let nowhere = bytes_of_words.without("tokenizer.ggml.bos_token_id");
    assert_refused(&nowhere, "key \"tokenizer.ggml.bos_token_id\" is missing");
    assert!(parse_bytes(&nowhere.clone().flag("tokenizer.ggml.add_bos_token", false).bytes()).is_ok());
}

#[test]
fn special_ids_outside_the_vocabulary_are_refused() {
    assert_refused(&small().signed("tokenizer.ggml.bos_token_id", -1), "not a token id");
    assert_refused(&small().number("tokenizer.ggml.bos_token_id", 1 << 31), "2147483648, but there are 6 tokens");
    assert_refused(&small().number("tokenizer.ggml.eos_token_id", 6), "6, but there are 6 tokens");
    assert!(parse_bytes(&small().number("tokenizer.ggml.padding_token_id", 6).bytes()).is_ok());
}
