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

    pub(crate) fn short(self, key: &str, value: u16) -> Self {
        self.raw(key, 2, &value.to_le_bytes())
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

/// Numbers without order, always the same.
fn random() -> impl FnMut(u64, f32) -> Vec<f32> {
    let mut seed = 1_u32;
    move |len: u64, scale: f32| {
        let mut next = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (f32::from(u16::try_from(seed >> 16).unwrap()) / 32_768.0 - 1.0) * scale
        };
        (0..len).map(|_| next()).collect()
    }
}

/// The vocabulary of [`words`] for the architecture `llama`, and no weights.
fn with_words() -> Writer {
    let tokens = words();
    let kind = |token: &String| match token.as_str() {
        "<unk>" => 2,
        "<s>" | "</s>" | "<|im_end|>" => 3,
        token if token.starts_with("<0x") => 6,
        _ => 1,
    };
    let types: Vec<i32> = tokens.iter().map(kind).collect();
    base(&tokens, &types)
}

impl Writer {
    /// Tensors by their names and shapes: norms of ones, and random numbers.
    fn weights<'a>(mut self, prefix: &str, shapes: impl IntoIterator<Item = (&'a str, &'a [u64])>) -> Self {
        let mut random = random();
        for (name, shape) in shapes {
            let len = shape.iter().product();
            let values = if name.ends_with("norm.weight") {
                vec![1.0; usize::try_from(len).unwrap()]
            } else {
                random(len, if prefix.is_empty() { 1.0 } else { 0.3 })
            };
            self = self.tensor(&format!("{prefix}{name}"), shape, values);
        }
        self
    }

    /// The keys of `llama` under another architecture's name.
    fn renamed(mut self, architecture: &str) -> Self {
        for (key, _) in &mut self.entries {
            if let Some(suffix) = key.strip_prefix(b"llama.") {
                *key = [architecture.as_bytes(), b".", suffix].concat();
            }
        }
        self.text("general.architecture", architecture)
    }
}

const ATTENTION: [(&str, &[u64]); 5] = [
    ("attn_norm.weight", &[32]),
    ("attn_q.weight", &[32, 32]),
    ("attn_k.weight", &[32, 16]),
    ("attn_v.weight", &[32, 16]),
    ("attn_output.weight", &[32, 32]),
];
const FEED_FORWARD: [(&str, &[u64]); 4] = [
    ("ffn_norm.weight", &[32]),
    ("ffn_gate.weight", &[32, 64]),
    ("ffn_up.weight", &[32, 64]),
    ("ffn_down.weight", &[64, 32]),
];

fn decoder(architecture: &str, layer: &[(&str, &[u64])]) -> Writer {
    let vocab = words().len() as u64;
    let mut writer = with_words().renamed(architecture);
    writer = writer.weights(
        "",
        [("token_embd.weight", &[32, vocab][..]), ("output.weight", &[32, vocab]), ("output_norm.weight", &[32])],
    );
    for number in 0..2 {
        writer = writer.weights(&format!("blk.{number}."), layer.iter().copied());
    }
    writer
}

/// A llama of two layers with random weights, that llama.cpp loads and computes in no time.
pub(crate) fn tiny_llama() -> Writer {
    decoder("llama", &[&ATTENTION[..], &FEED_FORWARD].concat())
}

/// The same with four experts, of which two are used.
pub(crate) fn tiny_experts() -> Writer {
    let experts: [(&str, &[u64]); 5] = [
        ("ffn_norm.weight", &[32]),
        ("ffn_gate_inp.weight", &[32, 4]),
        ("ffn_gate_exps.weight", &[32, 64, 4]),
        ("ffn_up_exps.weight", &[32, 64, 4]),
        ("ffn_down_exps.weight", &[64, 32, 4]),
    ];
    decoder("llama", &[&ATTENTION[..], &experts].concat())
        .number("llama.expert_count", 4)
        .number("llama.expert_used_count", 2)
}

/// Layers with a window and layers without, and heads of a width of their own.
pub(crate) fn tiny_windows() -> Writer {
    let more: [(&str, &[u64]); 4] = [
        ("attn_q_norm.weight", &[16]),
        ("attn_k_norm.weight", &[16]),
        ("post_attention_norm.weight", &[32]),
        ("post_ffw_norm.weight", &[32]),
    ];
    decoder("gemma3", &[&ATTENTION[..], &FEED_FORWARD, &more].concat())
        .number("gemma3.attention.sliding_window", 16)
        .number("gemma3.attention.key_length", 16)
        .number("gemma3.attention.value_length", 16)
}

/// Positions of several angles.
pub(crate) fn tiny_sections() -> Writer {
    decoder("qwen2vl", &[&ATTENTION[..], &FEED_FORWARD].concat())
        .signeds("qwen2vl.rope.dimension_sections", &[4, 2, 2, 0])
}

/// Without attention.
pub(crate) fn tiny_states() -> Writer {
    let layer: [(&str, &[u64]); 9] = [
        ("attn_norm.weight", &[32]),
        ("ssm_in.weight", &[32, 64 + 64 + 2 * 16 + 4]),
        ("ssm_conv1d.weight", &[4, 64 + 2 * 16]),
        ("ssm_conv1d.bias", &[64 + 2 * 16]),
        ("ssm_dt.bias", &[4]),
        ("ssm_a", &[1, 4]),
        ("ssm_d", &[1, 4]),
        ("ssm_norm.weight", &[64, 1]),
        ("ssm_out.weight", &[64, 32]),
    ];
    let keys = [("conv_kernel", 4), ("inner_size", 64), ("state_size", 16), ("time_step_rank", 4), ("group_count", 1)];
    keys.iter()
        .fold(decoder("mamba2", &layer), |writer, (key, value)| writer.number(&format!("mamba2.ssm.{key}"), *value))
}

/// A model that looks both ways, with whole words.
pub(crate) fn tiny_encoder() -> Writer {
    let layer: [(&str, &[u64]); 16] = [
        ("attn_q.weight", &[32, 32]),
        ("attn_q.bias", &[32]),
        ("attn_k.weight", &[32, 32]),
        ("attn_k.bias", &[32]),
        ("attn_v.weight", &[32, 32]),
        ("attn_v.bias", &[32]),
        ("attn_output.weight", &[32, 32]),
        ("attn_output.bias", &[32]),
        ("attn_output_norm.weight", &[32]),
        ("attn_output_norm.bias", &[32]),
        ("ffn_up.weight", &[32, 64]),
        ("ffn_up.bias", &[64]),
        ("ffn_down.weight", &[64, 32]),
        ("ffn_down.bias", &[32]),
        ("layer_output_norm.weight", &[32]),
        ("layer_output_norm.bias", &[32]),
    ];
    let tokens: Vec<String> = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "##c"].map(str::to_owned).into();
    let vocab = tokens.len() as u64;
    let mut writer = base(&tokens, &[3, 3, 3, 3, 1, 1, 1]).renamed("bert").weights(
        "",
        [
            ("token_embd.weight", &[32, vocab][..]),
            ("token_types.weight", &[32, 2]),
            ("position_embd.weight", &[32, 512]),
            ("token_embd_norm.weight", &[32]),
            ("token_embd_norm.bias", &[32]),
        ],
    );
    for number in 0..2 {
        writer = writer.weights(&format!("blk.{number}."), layer.iter().copied());
    }
    writer
        .without("bert.rope.dimension_count")
        .number("bert.attention.head_count_kv", 2)
        .float("bert.attention.layer_norm_epsilon", 0.00001)
        .flag("bert.attention.causal", false)
        .number("bert.pooling_type", 2)
        .text("tokenizer.ggml.model", "bert")
        .number("tokenizer.ggml.token_type_count", 2)
        .number("tokenizer.ggml.unknown_token_id", 1)
        .number("tokenizer.ggml.bos_token_id", 2)
        .number("tokenizer.ggml.seperator_token_id", 3)
        .without("tokenizer.ggml.eos_token_id")
}
