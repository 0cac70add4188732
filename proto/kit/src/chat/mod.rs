//! Messages to prompt, output text to content, thinking and tool calls.

/// Where a model's chat template comes from. Order of preference: a Go template of the request, Jinja, the Go template
/// of the store, a built-in one by architecture, else plain text.
#[derive(Clone, Debug, Default)]
pub struct ChatSource {
    /// The model's own Jinja template.
    pub jinja: Option<String>,
    /// The store's Go template.
    pub go: Option<String>,
    /// `general.architecture` or `model_type`, for the built-in ones.
    pub architecture: String,
}

use ollmlx_proto::{Chat, ContentPart, Failure, JsonText};

use crate::vocab::Vocab;

/// Renders chats.
#[derive(Debug)]
pub struct ChatFormat;

impl ChatFormat {
    /// Never fails.
    #[must_use]
    pub fn new(_source: &ChatSource, _vocab: &Vocab) -> Self {
        Self
    }

    /// A chat as one text.
    ///
    /// # Errors
    /// The template failed.
    pub fn render(&self, chat: &Chat) -> Result<RenderedPrompt, Failure> {
        let mut text = String::new();
        for message in &chat.messages {
            text.push_str(message.role.as_str());
            text.push(' ');
            for part in &message.content {
                if let ContentPart::Text(part) = part {
                    text.push_str(part);
                }
            }
            text.push('\n');
        }
        Ok(RenderedPrompt { text, cuts: Vec::new(), add_special: true, thinking_open: false })
    }

    /// Fill-in-the-middle.
    ///
    /// # Errors
    /// The model can't.
    pub fn render_suffix(&self, prompt: &str, suffix: &str, _vocab: &Vocab) -> Result<RenderedPrompt, Failure> {
        let text = format!("{prompt}{suffix}");
        Ok(RenderedPrompt { text, cuts: Vec::new(), add_special: true, thinking_open: false })
    }

    /// Reads the answer.
    #[must_use]
    pub fn parser(&self, _chat: &Chat, _rendered: &RenderedPrompt) -> OutputParser {
        OutputParser::passthrough()
    }
}

/// A prompt.
#[derive(Clone, Debug)]
pub struct RenderedPrompt {
    /// All of it.
    pub text: String,
    /// Byte offsets where it is cut before it is tokenised.
    pub cuts: Vec<usize>,
    /// Whether the tokenizer adds its own tokens.
    pub add_special: bool,
    /// Whether the model already thinks.
    pub thinking_open: bool,
}

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Answer.
    Content(String),
    /// Reasoning.
    Thinking(String),
    /// Call.
    ToolCall {
        /// Which tool.
        name: String,
        /// A JSON object.
        arguments: JsonText,
    },
}

/// Reads an answer.
#[derive(Debug)]
pub struct OutputParser;

impl OutputParser {
    /// Everything is content.
    #[must_use]
    pub fn passthrough() -> Self {
        Self
    }

    /// Takes text.
    pub fn push(&mut self, text: &str) -> Vec<Parsed> {
        if text.is_empty() { Vec::new() } else { vec![Parsed::Content(text.to_owned())] }
    }

    /// At the end.
    pub fn finish(&mut self) -> Vec<Parsed> {
        Vec::new()
    }

    /// Control tokens that are markers.
    #[must_use]
    pub fn visible_controls(&self) -> &std::collections::BTreeSet<ollmlx_proto::TokenId> {
        const NONE: &std::collections::BTreeSet<ollmlx_proto::TokenId> = &std::collections::BTreeSet::new();
        NONE
    }

    /// Whether the model thinks.
    #[must_use]
    pub fn in_thinking(&self) -> bool {
        false
    }
}
