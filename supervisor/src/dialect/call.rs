//! What a client asked for, in the words that all dialects share.

use ollmlx_proto::{ContentPart, Format, Logprobs, Message, ThinkMode, TokenId, ToolSpec};
use serde_json::{Map, Value};

use super::Rejection;
use crate::types::KeepAlive;

/// What a client asked for, before the model is known.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// The name as the client wrote it.
    pub model: String,
    /// The work.
    pub body: CallBody,
    /// Whether the answer comes in pieces.
    pub stream: bool,
    /// How long the model stays; `None` where the client said nothing.
    pub keep_alive: Option<KeepAlive>,
    /// Native options of the request, raw; see [`super::options::sampling`].
    pub options: Map<String, Value>,
    /// What the text must look like.
    pub format: Format,
    /// Whether to think; `None` where the client said nothing.
    pub think: Option<ThinkMode>,
    /// Whether log probabilities are reported.
    pub logprobs: Option<Logprobs>,
    /// Shorten an over-long prompt instead of failing.
    pub truncate: bool,
    /// Let the window slide; `None` where the client said nothing.
    pub shift: Option<bool>,
    /// Answer with the rendered prompt and compute nothing.
    pub render_only: bool,
    /// Report token counts in a stream.
    pub include_usage: bool,
    /// `temperature` and `top_p` are 1.0 unless given, whatever the model's own parameters say.
    pub openai_defaults: bool,
    /// A wish to think that the model can't fulfil is dropped instead of refused.
    pub think_if_able: bool,
}

impl Call {
    /// A call with Ollama's defaults; parsers fill in the rest.
    #[must_use]
    pub fn new(model: String, body: CallBody) -> Self {
        Self {
            model,
            body,
            stream: true,
            keep_alive: None,
            options: Map::new(),
            format: Format::Text,
            think: None,
            logprobs: None,
            truncate: true,
            shift: None,
            render_only: false,
            include_usage: false,
            openai_defaults: false,
            think_if_able: false,
        }
    }
}

/// The work of a [`Call`].
#[derive(Clone, Debug, PartialEq)]
pub enum CallBody {
    /// Load the model: an empty prompt or no messages.
    Load,
    /// Unload it: the same with `keep_alive` 0.
    Unload,
    /// Continue a conversation.
    Chat {
        /// In order, without the model's own.
        messages: Vec<Message>,
        /// Empty means none.
        tools: Vec<ToolSpec>,
    },
    /// Answer one prompt.
    Generate {
        /// The text; not empty.
        prompt: String,
        /// Replaces the model's.
        system: Option<String>,
        /// Replaces the model's.
        template: Option<String>,
        /// Text after the insertion point.
        suffix: Option<String>,
        /// No template at all.
        raw: bool,
        /// Token ids of an earlier exchange.
        context: Vec<TokenId>,
        /// Encoded images.
        images: Vec<Vec<u8>>,
    },
    /// OpenAI's completions: goes through the model's template as `Generate` does.
    Complete {
        /// The text; not empty.
        prompt: String,
        /// Text after the insertion point.
        suffix: Option<String>,
    },
    /// Embed texts.
    Embed {
        /// Not empty.
        inputs: Vec<String>,
        /// Cut an over-long input instead of failing.
        truncate: bool,
        /// Keep only the first components.
        dimensions: Option<u32>,
        /// Divide by the Euclidean length.
        normalize: bool,
        /// Answer with base64 instead of numbers.
        base64: bool,
    },
}

impl CallBody {
    /// Whether `raw` is asked for together with something that needs a template. Checked after the model was found.
    ///
    /// # Errors
    /// 400 with Ollama's text.
    pub fn check_raw(&self) -> Result<(), Rejection> {
        match self {
            Self::Generate { raw: true, template, system, context, .. }
                if template.is_some() || system.is_some() || !context.is_empty() =>
            {
                Err(Rejection::bad_request("raw mode does not support template, system, or context"))
            }
            _ => Ok(()),
        }
    }

    /// Characters of a conversation's texts; 0 for everything else.
    #[must_use]
    pub fn chat_chars(&self) -> u64 {
        let Self::Chat { messages, .. } = self else { return 0 };
        let parts = messages.iter().flat_map(|message| &message.content);
        parts
            .map(|part| match part {
                ContentPart::Text(text) => text.chars().count() as u64,
                ContentPart::Image(_) => 0,
            })
            .sum()
    }
}
