//! Tables: how models mark thinking and tool calls, and how a template tells which of them a model uses.
//!
//! A new family is a new row here, and a reader in `calls`, `markup` or `literal` if its inside is new too.

use std::collections::BTreeSet;

use ollmlx_proto::TokenId;

use super::calls::{self, Call, Tools};
use super::{literal, markup};
use crate::vocab::{TokenKind, Vocab};

/// Marks around reasoning.
#[derive(Debug)]
pub(super) struct ThinkTags {
    pub(super) open: &'static str,
    pub(super) close: &'static str,
}

const THINK: [ThinkTags; 6] = [
    ThinkTags { open: "<|channel>thought\n", close: "<channel|>" },
    ThinkTags { open: "<|open|>think<|sep|>", close: "<|close|>think<|sep|>" },
    ThinkTags { open: "<longcat_think>", close: "</longcat_think>" },
    ThinkTags { open: "<|think:start|>", close: "<|think:end|>" },
    ThinkTags { open: "[THINK]", close: "[/THINK]" },
    ThinkTags { open: "<think>", close: "</think>" },
];

/// The tags that clients send back inside assistant turns, where templates look for them.
pub(in crate::chat) const THINK_WORDS: &[&str] =
    &["<think>", "</think>", "[THINK]", "[/THINK]", "<longcat_think>", "</longcat_think>"];

/// How the end of a call is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// By a marker.
    Marker(&'static str),
    /// By the end of the JSON value.
    Balanced,
    /// By the end of the answer.
    Answer,
}

/// How a call begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    /// By a marker, anywhere.
    Marker(&'static str),
    /// By an object at the very beginning of the answer.
    BareObject,
    /// By a Python list of calls at the very beginning of the answer.
    BareCalls,
}

/// One way of writing calls.
#[derive(Debug)]
pub(super) struct CallFormat {
    pub(super) begin: Begin,
    pub(super) end: End,
    /// Dropped where it follows the end.
    pub(super) trailer: &'static str,
    /// Whether an end marker inside a JSON string does not count.
    pub(super) json: bool,
    /// Markers inside.
    inner: &'static [&'static str],
    /// Reads what is between begin and end; `None` if it is malformed.
    pub(super) read: fn(&str, &Tools) -> Option<Vec<Call>>,
}

const PLAIN: CallFormat = CallFormat {
    begin: Begin::BareObject,
    end: End::Balanced,
    trailer: "",
    json: true,
    inner: &[],
    read: calls::json_of_known,
};

static TAG: CallFormat = CallFormat {
    begin: Begin::Marker("<tool_call>"),
    end: End::Marker("</tool_call>"),
    inner: &["<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"],
    read: markup::tag,
    ..PLAIN
};
static LONGCAT: CallFormat = CallFormat {
    begin: Begin::Marker("<longcat_tool_call>"),
    end: End::Marker("</longcat_tool_call>"),
    inner: &["<longcat_arg_key>", "</longcat_arg_key>", "<longcat_arg_value>", "</longcat_arg_value>"],
    read: markup::longcat,
    ..PLAIN
};
static MINIMAX: CallFormat = CallFormat {
    begin: Begin::Marker("<minimax:tool_call>"),
    end: End::Marker("</minimax:tool_call>"),
    json: false,
    read: markup::minimax,
    ..PLAIN
};
static DSML: CallFormat = CallFormat {
    begin: Begin::Marker("<｜DSML｜function_calls>"),
    end: End::Marker("</｜DSML｜function_calls>"),
    json: false,
    inner: &["<｜DSML｜", "</｜DSML｜"],
    read: markup::dsml,
    ..PLAIN
};
static FUNCTION: CallFormat = CallFormat {
    begin: Begin::Marker("<function name="),
    end: End::Marker("</function>"),
    json: false,
    read: markup::function,
    ..PLAIN
};
static GEMMA4: CallFormat = CallFormat {
    begin: Begin::Marker("<|tool_call>"),
    end: End::Marker("<tool_call|>"),
    json: false,
    inner: &["<|\"|>"],
    read: literal::gemma4,
    ..PLAIN
};
static FUNCTION_GEMMA: CallFormat = CallFormat {
    begin: Begin::Marker("<start_function_call>"),
    end: End::Marker("<end_function_call>"),
    json: false,
    inner: &["<escape>"],
    read: literal::function_gemma,
    ..PLAIN
};
static LFM2: CallFormat = CallFormat {
    begin: Begin::Marker("<|tool_call_start|>"),
    end: End::Marker("<|tool_call_end|>"),
    json: false,
    read: literal::pythonic,
    ..PLAIN
};
static KIMI: CallFormat = CallFormat {
    begin: Begin::Marker("<|tool_calls_section_begin|>"),
    end: End::Marker("<|tool_calls_section_end|>"),
    inner: &["<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"],
    read: calls::kimi,
    ..PLAIN
};
static DEEPSEEK: CallFormat = CallFormat {
    begin: Begin::Marker("<｜tool▁calls▁begin｜>"),
    end: End::Marker("<｜tool▁calls▁end｜>"),
    inner: &["<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"],
    read: calls::deepseek,
    ..PLAIN
};
static MISTRAL: CallFormat =
    CallFormat { begin: Begin::Marker("[TOOL_CALLS]"), inner: &["[ARGS]", "[CALL_ID]"], read: calls::mistral, ..PLAIN };
static COHERE: CallFormat = CallFormat {
    begin: Begin::Marker("<|START_ACTION|>"),
    end: End::Marker("<|END_ACTION|>"),
    read: calls::json,
    ..PLAIN
};
static BAR: CallFormat =
    CallFormat { begin: Begin::Marker("<|tool_call|>"), trailer: "<|/tool_call|>", read: calls::json, ..PLAIN };
static PYTHON_TAG: CallFormat =
    CallFormat { begin: Begin::Marker("<|python_tag|>"), end: End::Answer, read: calls::python_tag, ..PLAIN };
static BARE_OBJECT: CallFormat = PLAIN;
static BARE_CALLS: CallFormat =
    CallFormat { begin: Begin::BareCalls, end: End::Answer, json: false, read: literal::pythonic, ..PLAIN };

/// Substrings of a template (all of them needed) and the formats they tell. First match wins; the order is
/// `engines` E5's, since later substrings are less specific.
const ROWS: &[(&[&str], &[&CallFormat])] = &[
    (&["<minimax:tool_call>"], &[&MINIMAX]),
    (&["<|tool_call>"], &[&GEMMA4]),
    (&["<tool_call|>"], &[&GEMMA4]),
    (&["<start_function_call>"], &[&FUNCTION_GEMMA]),
    (&["<longcat_tool_call>"], &[&LONGCAT]),
    (&["<arg_key>"], &[&TAG]),
    (&["<|tool_call_start|>"], &[&LFM2]),
    (&["<|tool_list_start|>"], &[&LFM2]),
    (&["<tool_call>"], &[&TAG]),
    (&["<|tool_calls_section_begin|>"], &[&KIMI]),
    (&["DSML"], &[&DSML]),
    (&["<｜tool▁calls▁begin｜>"], &[&DEEPSEEK]),
    (&["<function name=\"", "<param name=\""], &[&FUNCTION]),
    (&["[TOOL_CALLS]"], &[&MISTRAL]),
    (&["<|START_ACTION|>"], &[&COHERE]),
    (&["<|tool_call|>"], &[&BAR]),
    (&["<|python_start|>"], &[&BARE_CALLS, &BARE_OBJECT]),
    (&["<|python_tag|>"], &[&PYTHON_TAG, &BARE_OBJECT]),
    (&["<|start_header_id|>", "tools"], &[&PYTHON_TAG, &BARE_OBJECT]),
    (&["tools"], &[&BARE_OBJECT]),
    (&[".Tools"], &[&BARE_OBJECT]),
];

/// What a template tells about answers.
#[derive(Clone, Debug, Default)]
pub(in crate::chat) struct Detected {
    pub(super) harmony: bool,
    pub(super) think: Option<&'static ThinkTags>,
    pub(super) formats: Vec<&'static CallFormat>,
    /// Control tokens that are markers.
    pub(in crate::chat) controls: BTreeSet<TokenId>,
}

impl Detected {
    /// Whether `prompt` ends with an open thinking tag.
    pub(in crate::chat) fn opens_thinking(&self, prompt: &str) -> bool {
        self.think.is_some_and(|tags| prompt.trim_end().ends_with(tags.open.trim_end()))
    }

    /// Fills `controls` from the control tokens of a vocabulary.
    pub(in crate::chat) fn find_controls(&mut self, all: &[(TokenId, String)]) {
        let mut markers: Vec<&str> = Vec::new();
        if self.harmony {
            markers.extend(super::harmony::MARKERS);
        }
        markers.extend(self.think.iter().flat_map(|tags| [tags.open, tags.close]));
        for format in &self.formats {
            markers.extend(format.inner);
            markers.push(format.trailer);
            if let Begin::Marker(marker) = format.begin {
                markers.push(marker);
            }
            if let End::Marker(marker) = format.end {
                markers.push(marker);
            }
        }
        let is_marker = |text: &str| markers.iter().any(|marker| marker.contains(text));
        self.controls = all.iter().filter(|(_, text)| is_marker(text)).map(|(id, _)| *id).collect();
    }
}

/// Whether a template has tags for thinking, or channels.
pub(in crate::chat) fn knows_thinking(template: &str) -> bool {
    template.contains("<|channel|>") || think_of(template).is_some()
}

/// Reads a template; where it says nothing about calls, markers in the vocabulary do.
pub(in crate::chat) fn detect(template: &str, vocab: &Vocab) -> Detected {
    if template.contains("<|channel|>") && template.contains("<|message|>") {
        return Detected { harmony: true, ..Detected::default() };
    }
    let row = ROWS.iter().find(|(words, _)| words.iter().all(|word| template.contains(word)));
    let mut formats = row.map(|(_, formats)| formats.to_vec()).unwrap_or_default();
    if matches!(formats.as_slice(), [] | [CallFormat { begin: Begin::BareObject, .. }]) {
        let in_vocab = |format: &&&CallFormat| match format.begin {
            Begin::Marker(marker) => vocab.bytes.iter().zip(&vocab.kinds).any(|(bytes, kind)| {
                bytes == marker.as_bytes() && matches!(kind, TokenKind::Control | TokenKind::UserDefined)
            }),
            Begin::BareObject | Begin::BareCalls => false,
        };
        formats.extend([&TAG, &MISTRAL, &LFM2].iter().find(in_vocab));
    }
    Detected { harmony: false, think: think_of(template), formats, controls: BTreeSet::new() }
}

fn think_of(template: &str) -> Option<&'static ThinkTags> {
    // The close tag alone is enough: templates split earlier answers at it. Gemma 4 writes its open tag in parts.
    const TAGS: &[ThinkTags] = &THINK;
    TAGS.iter().find(|tags| template.contains(tags.open) || template.contains(tags.close))
}
