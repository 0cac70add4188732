//! Chat templates for models that bring none, by the control tokens of their vocabulary and their architecture.

use std::collections::HashSet;

use crate::vocab::{TokenKind, Vocab};

const CHATML: &str = "\
{%- for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' }}{% endfor -%}
{{ '<|im_start|>assistant\\n' }}";

const GEMMA: &str = "\
{{- bos_token -}}
{%- if messages[0].role == 'system' %}{% set system = messages[0].content ~ '\\n\\n' %}{% set messages = messages[1:] %}
{%- else %}{% set system = '' %}{% endif -%}
{%- for m in messages -%}
{{ '<start_of_turn>' ~ ('model' if m.role == 'assistant' else 'user') ~ '\\n' -}}
{{ (system if loop.first else '') ~ (m.content | trim) ~ '<end_of_turn>\\n' }}
{%- endfor -%}
{{ '<start_of_turn>model\\n' }}";

const LLAMA3: &str = "\
{{- bos_token -}}
{%- for m in messages -%}
{{ '<|start_header_id|>' ~ m.role ~ '<|end_header_id|>\\n\\n' ~ (m.content | trim) ~ '<|eot_id|>' }}
{%- endfor -%}
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}";

const MISTRAL: &str = "\
{{- bos_token -}}
{%- if messages[0].role == 'system' %}{% set system = messages[0].content ~ '\\n\\n' %}{% set messages = messages[1:] %}
{%- else %}{% set system = '' %}{% endif -%}
{%- for m in messages -%}
{%- if m.role == 'assistant' %}{{ ' ' ~ (m.content | trim) ~ eos_token }}
{%- else %}{{ '[INST] ' ~ (system if loop.first else '') ~ m.content ~ ' [/INST]' }}{% endif -%}
{%- endfor -%}";

const PHI3: &str = "\
{%- for m in messages %}{{ '<|' ~ m.role ~ '|>\\n' ~ m.content ~ '<|end|>\\n' }}{% endfor -%}
{{ '<|assistant|>\\n' }}";

/// The template for a model, `None` for a plain base model.
pub(super) fn choose(architecture: &str, vocab: &Vocab) -> Option<&'static str> {
    let special: HashSet<&[u8]> = vocab
        .bytes
        .iter()
        .zip(&vocab.kinds)
        .filter(|(_, kind)| matches!(kind, TokenKind::Control | TokenKind::UserDefined))
        .map(|(bytes, _)| bytes.as_slice())
        .collect();
    choose_by(architecture, vocab.is_empty(), |word| special.contains(word.as_bytes()))
}

/// The same by which special tokens there are.
pub(super) fn choose_by(architecture: &str, is_unknown: bool, has: impl Fn(&str) -> bool) -> Option<&'static str> {
    match architecture {
        _ if architecture.starts_with("gemma") && (is_unknown || has("<start_of_turn>")) => Some(GEMMA),
        _ if has("<|start_header_id|>") => Some(LLAMA3),
        _ if has("<|im_start|>") => Some(CHATML),
        _ if has("<start_of_turn>") => Some(GEMMA),
        _ if has("[INST]") => Some(MISTRAL),
        _ if has("<|assistant|>") && has("<|end|>") => Some(PHI3),
        _ if architecture.starts_with("mistral") => Some(MISTRAL),
        _ => None,
    }
}

/// Whether `word` stands by itself in `text`.
pub(super) fn uses_word(text: &str, word: &str) -> bool {
    let joins = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| !text[..at].ends_with(joins) && !text[at + word.len()..].starts_with(joins))
}
