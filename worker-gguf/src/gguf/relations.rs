//! What must hold between keys of a header: where it does not, llama.cpp ends the process by an assertion, a division by
//! zero or a wrapped product, as it loads the model or as it first computes with it.

use super::kv_cost::slides;
use super::limits::LAYERS_MAX;
use super::{GgufError, Header, Value};

/// Architectures without attention, which need no heads.
const HEADLESS: [&str; 6] = ["mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"];
/// Architectures whose positions are several angles.
const SECTIONED: [&str; 9] =
    ["qwen2vl", "paddleocr", "qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe", "clef", "qwen4exp", "qwen3tts"];
/// Architectures that can't be without experts.
const ALL_EXPERTS: [&str; 2] = ["bailingmoe2", "glm4moe"];
/// Architectures whose recurrent layers have as many elements per head as there are states.
const DELTA_NETS: [&str; 5] = ["qwen3next", "qwen35", "qwen35moe", "clef", "qwen4exp"];
/// Architectures whose recurrent layers are in groups.
const GROUPED: [&str; 5] = ["mamba2", "granitehybrid", "nemotron_h", "nemotron_h_moe", "falcon-h1"];
/// Architectures whose last layers use the cells of earlier ones, and layers with cells of their own where it is fixed.
const SHARED_CELLS: [(&str, Option<u64>); 2] = [("gemma3n", Some(20)), ("gemma4", None)];
/// Those that can do without rotation.
const UNROTATED: [&str; 5] = ["granitehybrid", "nemotron_h", "nemotron_h_moe", "jamba", "lfm2"];
/// Words of `rope.scaling.type`.
const ROPE_SCALINGS: [&str; 4] = ["none", "linear", "yarn", "longrope"];

type Checked = Result<(), GgufError>;

/// Checks all of them; every value is within its bound already.
///
/// # Errors
/// The first that does not hold.
pub(super) fn check(header: &Header) -> Checked {
    let facts = Facts { header, layers: header.arch_number("block_count").unwrap_or_default() };
    facts.layer_counts()?;
    facts.experts()?;
    facts.heads()?;
    facts.rope()?;
    facts.states()?;
    facts.shared_cells()?;
    facts.particulars()
}

struct Facts<'h> {
    header: &'h Header,
    layers: u64,
}

impl Facts<'_> {
    fn number(&self, suffix: &str) -> Option<u64> {
        self.header.arch_number(suffix)
    }

    fn is(&self, architectures: &[&str]) -> bool {
        architectures.contains(&self.header.architecture())
    }

    fn key(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.header.architecture())
    }

    fn bad(&self, suffix: &str, reason: impl Into<String>) -> Checked {
        Err(GgufError::Value { key: self.key(suffix), reason: reason.into() })
    }

    /// Refuses where `holds` is false.
    fn must(&self, holds: bool, suffix: &str, reason: impl FnOnce() -> String) -> Checked {
        if holds { Ok(()) } else { self.bad(suffix, reason()) }
    }

    fn each_layer(&self) -> impl Iterator<Item = usize> + use<> {
        0..usize::try_from(self.layers.min(LAYERS_MAX)).unwrap_or_default()
    }

    fn layer_counts(&self) -> Checked {
        let layers = self.layers;
        for suffix in ["nextn_predict_layers", "decision.block_count"] {
            let number = self.number(suffix).unwrap_or_default();
            self.must(number < layers, suffix, || format!("{number} of {layers} layers"))?;
        }
        let dense = self.number("leading_dense_block_count").unwrap_or_default();
        self.must(dense <= layers, "leading_dense_block_count", || format!("{dense} of {layers} layers"))
    }

    /// The assertions of `llama_model_base::load_hparams`, and the divisions that follow.
    fn experts(&self) -> Checked {
        let experts = self.number("expert_count").unwrap_or_default();
        // Of these one expert is none.
        if self.is(&["hunyuan-dense", "hunyuan_vl"]) && experts <= 1 {
            return Ok(());
        }
        let used = |layer| self.header.per_layer("expert_used_count", layer).unwrap_or_default();
        let used_max = self.each_layer().map(used).max().unwrap_or_default();
        let groups = self.number("expert_group_count").unwrap_or_default();
        self.must(used_max <= experts, "expert_used_count", || format!("{used_max} of {experts} experts"))?;
        if experts == 0 {
            self.must(!self.is(&ALL_EXPERTS), "expert_count", || "0, but this architecture is made of experts".into())?;
            return self.must(groups == 0, "expert_group_count", || format!("{groups} groups of 0 experts"));
        }
        self.must(used_max > 0, "expert_used_count", || format!("none of {experts} experts"))?;
        // The width of an expert is divided by it, by some of the first layer's.
        let may_skip = self.header.architecture().starts_with("nemotron_h");
        self.must(used(0) > 0 || may_skip, "expert_used_count", || "0 in the first layer".into())?;
        self.must(groups < experts, "expert_group_count", || format!("{groups} groups of {experts} experts"))?;
        if groups > 1 {
            let each = experts / groups;
            self.must(experts.is_multiple_of(groups) && each > 1, "expert_group_count", || {
                format!("{groups} groups of {experts} experts")
            })?;
            let chosen = self.number("expert_group_used_count").unwrap_or_default();
            self.must((1..groups).contains(&chosen), "expert_group_used_count", || format!("{chosen} of {groups}"))?;
        }
        let together = self.number("experts_per_group").unwrap_or(1);
        self.must(experts.is_multiple_of(together), "experts_per_group", || format!("{together} of {experts} experts"))
    }

    fn heads(&self) -> Checked {
        if self.is(&HEADLESS) {
            return Ok(());
        }
        let heads = |layer| self.header.per_layer("attention.head_count", layer).unwrap_or_default();
        if self.header.arch("attention.head_count").is_none() {
            return Err(GgufError::Missing { key: self.key("attention.head_count") });
        }
        // A few architectures have layers without attention, but none begins with one.
        let width = self.number("embedding_length").unwrap_or_default();
        let first = heads(0);
        self.must((1..=width).contains(&first), "attention.head_count", || {
            format!("{first} in the first layer, for a width of {width}")
        })?;
        for layer in self.each_layer() {
            let (own, shared) = (heads(layer), self.header.per_layer("attention.head_count_kv", layer));
            let shared = shared.unwrap_or(own);
            self.must(shared == 0 || own.is_multiple_of(shared), "attention.head_count_kv", || {
                format!("{shared} in layer {layer}, which does not divide its {own} heads")
            })?;
        }
        let latent = ["attention.key_length_mla", "attention.value_length_mla"];
        let [keys, values] = latent.map(|suffix| self.number(suffix).unwrap_or_default());
        self.must((keys == 0) == (values == 0), latent[0], || format!("{keys}, but {values} for values"))?;
        let turned = self.number("rope.dimension_count").unwrap_or_default();
        self.must(keys == 0 || keys > turned, latent[0], || format!("{keys}, of which {turned} are turned"))
    }

    /// ggml's assertions of a rotation: an even part of a head.
    fn rope(&self) -> Checked {
        if let Some(word) = self.header.text(&self.key("rope.scaling.type")) {
            self.must(ROPE_SCALINGS.contains(&word), "rope.scaling.type", || {
                format!("an unknown word; known are {}", ROPE_SCALINGS.join(", "))
            })?;
        }
        let heads = self.header.per_layer("attention.head_count", 0).unwrap_or_default();
        let width = self.number("embedding_length").unwrap_or_default();
        let head = self.number("attention.key_length").or(width.checked_div(heads)).unwrap_or_default();
        let head_swa = self.number("attention.key_length_swa").unwrap_or(head);
        for (suffix, head) in [("rope.dimension_count", head), ("rope.dimension_count_swa", head_swa)] {
            if let Some(turned) = self.number(suffix) {
                // Where there is nothing to turn, a rotation doesn't end. Hybrids that never rotate may say so.
                let turns = turned > 0 || heads == 0 || self.is(&UNROTATED);
                let fits = turns && turned.is_multiple_of(2) && (turned <= head || heads == 0);
                self.must(fits, suffix, || format!("{turned}, which is no even part of a head of {head}"))?;
            }
        }
        let sections: Vec<i128> = match self.header.arch("rope.dimension_sections") {
            Some(Value::Array(array)) => array.first.iter().map(whole).collect(),
            Some(one) => vec![whole(one); 4],
            None => Vec::new(),
        };
        let all: i128 = sections.iter().sum();
        let fits = all <= i128::from(head) && sections.iter().all(|section| *section >= 0);
        self.must(fits, "rope.dimension_sections", || format!("{sections:?} of a head of {head}"))?;
        let turns = sections.iter().take(3).any(|section| *section > 0);
        self.must(turns || !self.is(&SECTIONED), "rope.dimension_sections", || "none where they are needed".into())
    }

    /// Recurrent layers: what is divided, and ggml's assertions of a scan.
    fn states(&self) -> Checked {
        let width = self.number("embedding_length").unwrap_or_default();
        if let Some(head) = self.number("wkv.head_size") {
            self.must(width.is_multiple_of(head), "wkv.head_size", || format!("{head} of a width of {width}"))?;
            let (own, shared) = (width / head, self.number("attention.head_count_kv").unwrap_or_default());
            self.must(shared == 0 || own.is_multiple_of(shared), "attention.head_count_kv", || {
                format!("{shared}, which does not divide {own} heads")
            })?;
        }
        let inner = self.number("ssm.inner_size").unwrap_or_default();
        let heads = self.number("ssm.time_step_rank").unwrap_or(1);
        let groups = self.number("ssm.group_count").unwrap_or(1);
        let is_delta = self.is(&DELTA_NETS);
        if is_delta || self.is(&GROUPED) || self.is(&["plamo2"]) {
            self.must(inner.is_multiple_of(heads), "ssm.inner_size", || format!("{inner} for {heads} heads"))?;
        }
        if is_delta || self.is(&GROUPED) {
            let fits = groups > 0 && heads.is_multiple_of(groups) && inner.is_multiple_of(groups);
            self.must(fits, "ssm.group_count", || format!("{groups} for {heads} heads of a width of {inner}"))?;
        }
        let state = self.number("ssm.state_size").unwrap_or_default();
        self.must(!is_delta || inner / heads == state, "ssm.state_size", || {
            format!("{state} for {heads} heads of a width of {inner}")
        })
    }

    /// A layer without cells of its own uses those of the last one of its kind that has some.
    fn shared_cells(&self) -> Checked {
        const SUFFIX: &str = "attention.shared_kv_layers";
        let layers = self.layers;
        let shared = self.number(SUFFIX).unwrap_or_default();
        self.must(shared < layers, SUFFIX, || format!("{shared} of {layers} layers"))?;
        let Some((_, fixed)) = SHARED_CELLS.iter().find(|(name, _)| self.is(&[name])) else { return Ok(()) };
        let own = fixed.unwrap_or(layers - shared);
        let is_short = |layer: u64| slides(self.header, usize::try_from(layer).unwrap_or(usize::MAX), layer);
        for layer in own..layers {
            let lent = if is_short(layer) { own.checked_sub(2) } else { own.checked_sub(1) };
            let fits = lent.is_some_and(|lent| is_short(lent) == is_short(layer));
            self.must(fits, SUFFIX, || format!("{shared} of {layers} layers: layer {layer} has none to share with"))?;
        }
        self.must(own >= 2, SUFFIX, || format!("{shared} of {layers} layers"))
    }

    /// Assertions of single architectures.
    fn particulars(&self) -> Checked {
        let number = |suffix: &str| self.number(suffix);
        let or_zero = |suffix: &str| number(suffix).unwrap_or_default();
        let (layers, width) = (self.layers, or_zero("embedding_length"));
        let needs = |suffix: &str, holds: bool| {
            self.must(holds, suffix, || format!("{} is not possible for this architecture", or_zero(suffix)))
        };
        // Vectors are copied by this length, from what the last of these makes.
        let lengths = [0, width, or_zero("dense_2_feat_out"), or_zero("dense_3_feat_out")];
        needs("embedding_length_out", lengths.contains(&or_zero("embedding_length_out")))?;
        match self.header.architecture() {
            "ernie4_5-moe" => needs("interleave_moe_layer_step", or_zero("interleave_moe_layer_step") > 0),
            "hrm_text" => {
                let stacks = or_zero("hrm.layers_per_stack").saturating_mul(or_zero("hrm.h_cycles"));
                needs("hrm.l_cycles", stacks.saturating_mul(or_zero("hrm.l_cycles") + 1) == layers)
            }
            "nanbeige" => needs("num_loops", layers * number("num_loops").unwrap_or(1) <= LAYERS_MAX),
            "bailingmoe3" => {
                let is_safe = self.header.arch("kda.safe_gate") == Some(&Value::Bool(true));
                self.must(is_safe, "kda.safe_gate", || "it must be true for this architecture".into())?;
                let bound = self.header.arch("kda.gate_lower_bound");
                let is_below = matches!(bound, Some(Value::Float(bound)) if *bound < 0.0);
                self.must(is_below, "kda.gate_lower_bound", || "it must be below zero".into())
            }
            "deepseek4" => {
                let groups = or_zero("attention.output_group_count");
                let heads = self.header.per_layer("attention.head_count", 0).unwrap_or_default();
                needs("attention.output_group_count", groups > 0 && heads.is_multiple_of(groups))?;
                needs("hyper_connection.count", or_zero("hyper_connection.count") == 4)
            }
            "glm5-next" => {
                let pool = or_zero("attention.indexer.kpool");
                needs("attention.indexer.kpool", pool > 1 && or_zero("attention.indexer.top_k").is_multiple_of(pool))?;
                needs("hyper_connection.count", or_zero("hyper_connection.count") == 4)
            }
            "minimax-m3" => needs("attention.indexer.block_size", or_zero("attention.indexer.block_size") > 0),
            "hy_v4" => needs("attention.key_length_mla", or_zero("attention.key_length_mla") > 0),
            "deepseek32" | "glm-dsa" | "dots3note" => {
                needs("attention.key_length_mla", or_zero("attention.key_length_mla") > 0)?;
                let turned = or_zero("rope.dimension_count");
                needs("attention.indexer.key_length", or_zero("attention.indexer.key_length") >= turned)
            }
            "gemma-embedding" => {
                needs("dense_2_feat_in", [0, width].contains(&or_zero("dense_2_feat_in")))?;
                needs("dense_3_feat_out", [0, width].contains(&or_zero("dense_3_feat_out")))
            }
            "deepseek2" => {
                let scaled =
                    matches!(self.header.arch("attention.temperature_scale"), Some(Value::Float(it)) if *it != 0.0);
                needs("attention.temperature_length", !scaled || or_zero("attention.temperature_length") > 0)
            }
            _ => Ok(()),
        }
    }
}

fn whole(value: &Value) -> i128 {
    match value {
        Value::Unsigned(number) => i128::from(*number),
        Value::Signed(number) => i128::from(*number),
        _ => -1,
    }
}
