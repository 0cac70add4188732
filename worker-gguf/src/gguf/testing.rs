//! Writes small GGUF files for tests, sound and damaged ones.

/// A file to be.
#[derive(Clone)]
pub(crate) struct Writer {
    entries: Vec<(Vec<u8>, Vec<u8>)>,
    tensors: Vec<(String, Vec<u64>, Vec<f32>)>,
}

impl Writer {
    pub(crate) fn new() -> Self {
        Self { entries: Vec::new(), tensors: Vec::new() }
    }

    /// A value in its encoded form, replacing the one that is there.
    pub(crate) fn raw(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self = self.without(key);
        self.entries.push((key.into(), [&kind.to_le_bytes(), value].concat()));
        self
    }

    pub(crate) fn without(mut self, key: &str) -> Self {
        self.entries.retain(|(name, _)| name != key.as_bytes());
        self
    }

    pub(crate) fn twice(mut self, key: &str) -> Self {
        let entry = self.entries.iter().find(|(name, _)| name == key.as_bytes()).cloned();
        self.entries.extend(entry);
        self
    }

    pub(crate) fn number(self, key: &str, value: u32) -> Self {
        self.raw(key, 4, &value.to_le_bytes())
    }

    pub(crate) fn signed(self, key: &str, value: i32) -> Self {
        self.raw(key, 5, &value.to_le_bytes())
    }

    pub(crate) fn float(self, key: &str, value: f32) -> Self {
        self.raw(key, 6, &value.to_le_bytes())
    }

    pub(crate) fn flag(self, key: &str, value: bool) -> Self {
        self.raw(key, 7, &[u8::from(value)])
    }

    pub(crate) fn text(self, key: &str, value: &str) -> Self {
        self.raw(key, 8, &text(value.as_bytes()))
    }

    pub(crate) fn texts(self, key: &str, values: &[String]) -> Self {
        let items: Vec<u8> = values.iter().flat_map(|value| text(value.as_bytes())).collect();
        self.raw(key, 9, &[&8_u32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes(), &items].concat())
    }

    pub(crate) fn numbers(self, key: &str, values: &[u32]) -> Self {
        self.words(key, 4, values.iter().copied())
    }

    pub(crate) fn signeds(self, key: &str, values: &[i32]) -> Self {
        self.words(key, 5, values.iter().map(|value| value.cast_unsigned()))
    }

    pub(crate) fn floats(self, key: &str, values: &[f32]) -> Self {
        self.words(key, 6, values.iter().map(|value| value.to_bits()))
    }

    fn words(self, key: &str, kind: u32, values: impl ExactSizeIterator<Item = u32>) -> Self {
        let len = (values.len() as u64).to_le_bytes();
        let items: Vec<u8> = values.flat_map(u32::to_le_bytes).collect();
        self.raw(key, 9, &[&kind.to_le_bytes()[..], &len, &items].concat())
    }

    /// A tensor of 32-bit floats.
    pub(crate) fn tensor(mut self, name: &str, shape: &[u64], values: Vec<f32>) -> Self {
        self.tensors.push((name.to_owned(), shape.to_vec(), values));
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.bytes_with(self.tensors.len() as u64, self.entries.len() as u64)
    }

    /// With other counts than there are.
    pub(crate) fn bytes_with(&self, tensor_count: u64, entry_count: u64) -> Vec<u8> {
        let mut file =
            [&b"GGUF"[..], &3_u32.to_le_bytes(), &tensor_count.to_le_bytes(), &entry_count.to_le_bytes()].concat();
        for (key, value) in &self.entries {
            file.extend(text(key));
            file.extend(value);
        }
        let mut data = Vec::new();
        for (name, shape, values) in &self.tensors {
            file.extend(text(name.as_bytes()));
            file.extend(u32::try_from(shape.len()).unwrap().to_le_bytes());
            file.extend(shape.iter().flat_map(|side| side.to_le_bytes()));
            file.extend(0_u32.to_le_bytes());
            file.extend((data.len() as u64).to_le_bytes());
            data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            data.resize(data.len().next_multiple_of(32), 0);
        }
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(data);
        file
    }
}

pub(crate) fn text(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes(), bytes].concat()
}

/// The vocabulary of the tiny model: four special tokens, all bytes, some words.
pub(crate) fn words() -> Vec<String> {
    let special = ["<unk>", "<s>", "</s>", "<|im_end|>"].map(str::to_owned);
    let bytes = (0..=255).map(|byte: u8| format!("<0x{byte:02X}>"));
    let words = ["▁", "▁hello", "▁world", "h", "e", "l", "o"].map(str::to_owned);
    special.into_iter().chain(bytes).chain(words).collect()
}

/// Metadata of a model that passes every check, and one tensor: a file of two or three kilobytes with `words` cut off.
pub(crate) fn small() -> Writer {
    let tokens: Vec<String> = ["<unk>", "<s>", "</s>", "<0x0A>", "a", "b"].map(str::to_owned).into();
    base(&tokens, &[2, 3, 3, 6, 1, 1]).tensor("token_embd.weight", &[32, 6], vec![0.5; 32 * 6])
}

fn base(tokens: &[String], types: &[i32]) -> Writer {
    Writer::new()
        .text("general.architecture", "llama")
        .text("general.name", "tiny")
        .number("general.file_type", 0)
        .number("llama.block_count", 2)
        .number("llama.context_length", 512)
        .number("llama.embedding_length", 32)
        .number("llama.feed_forward_length", 64)
        .number("llama.attention.head_count", 2)
        .number("llama.attention.head_count_kv", 1)
        .number("llama.rope.dimension_count", 16)
        .float("llama.attention.layer_norm_rms_epsilon", 0.00001)
        .text("tokenizer.ggml.model", "llama")
        .texts("tokenizer.ggml.tokens", tokens)
        .floats("tokenizer.ggml.scores", &vec![0.0; tokens.len()])
        .signeds("tokenizer.ggml.token_type", types)
        .number("tokenizer.ggml.bos_token_id", 1)
        .number("tokenizer.ggml.eos_token_id", 2)
        .number("tokenizer.ggml.unknown_token_id", 0)
        .flag("tokenizer.ggml.add_bos_token", true)
        .text("tokenizer.chat_template", "{{ messages }}")
}

/// A llama of two layers with random weights, that llama.cpp loads and computes in no time.
pub(crate) fn tiny_llama() -> Writer {
    let tokens = words();
    let kind = |token: &String| match token.as_str() {
        "<unk>" => 2,
        "<s>" | "</s>" | "<|im_end|>" => 3,
        token if token.starts_with("<0x") => 6,
        _ => 1,
    };
    let types: Vec<i32> = tokens.iter().map(kind).collect();
    let mut seed = 1_u32;
    let mut random = move |len: u64, scale: f32| -> Vec<f32> {
        let mut next = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (f32::from(u16::try_from(seed >> 16).unwrap()) / 32_768.0 - 1.0) * scale
        };
        (0..len).map(|_| next()).collect()
    };
    let vocab = tokens.len() as u64;
    let mut writer = base(&tokens, &types)
        .tensor("token_embd.weight", &[32, vocab], random(32 * vocab, 1.0))
        .tensor("output.weight", &[32, vocab], random(32 * vocab, 1.0))
        .tensor("output_norm.weight", &[32], vec![1.0; 32]);
    for layer in 0..2 {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        writer =
            writer.tensor(&name("attn_norm"), &[32], vec![1.0; 32]).tensor(&name("ffn_norm"), &[32], vec![1.0; 32]);
        for (part, rows, columns) in [
            ("attn_q", 32, 32),
            ("attn_k", 32, 16),
            ("attn_v", 32, 16),
            ("attn_output", 32, 32),
            ("ffn_gate", 32, 64),
            ("ffn_up", 32, 64),
            ("ffn_down", 64, 32),
        ] {
            writer = writer.tensor(&name(part), &[rows, columns], random(rows * columns, 0.3));
        }
    }
    writer
}
