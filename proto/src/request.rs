//! What a worker is asked to do: the one request that every dialect is translated into.
//!
//! Defaults are the supervisor's business (options of the request over parameters of the model over the table of
//! `docs/conformance.md`, Options), so nothing here is optional that a sampler would need.

use serde::{Deserialize, Serialize};

use crate::ids::{RequestId, TokenId};

/// A JSON value as text, unparsed. Whoever uses it parses it and answers for the error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JsonText(pub String);

/// One unit of work for a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Named again in every [`crate::Output`] of this request.
    pub id: RequestId,
    /// What to compute.
    pub work: Work,
    /// How to choose tokens. Ignored by embeddings.
    pub sampling: Sampling,
    /// Generation ends before any of these; none is ever part of the output. Empty strings are dropped by the
    /// supervisor.
    pub stop: Vec<String>,
    /// What the text must look like.
    pub format: Format,
    /// Caps of this request.
    pub limits: Limits,
    /// Whether, and how deep, log probabilities are reported.
    pub logprobs: Option<Logprobs>,
    /// When it was asked: the date that its template may say, the same on every worker that computes it.
    pub asked_at: UnixSeconds,
    /// Whose caches it shares.
    pub cache_salt: CacheSalt,
    /// What earlier incarnations got done of it.
    pub progress: ResumePoint,
}

/// A wall clock's time, in seconds since 1970 in UTC. It dates things and decides nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnixSeconds(pub i64);

/// Requests of the same salt may use each other's computed prompts; others share nothing, since how fast a prompt is computed
/// would tell what somebody else has asked. It says nothing of who asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheSalt(pub u64);

/// How far a request got on the workers before this one. Nothing, for a fresh request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumePoint {
    /// Tokens that were produced and delivered. The worker prefills them after the prompt and replays them through
    /// sampler, text, grammar and chat state **without** emitting them again; the next token it emits has index
    /// `produced.len()`.
    pub produced: Vec<TokenId>,
    /// How many outputs without a token (the rest of a text, tool calls) were delivered behind the last of these. A
    /// write that a death tore may have brought a token and not all that it led to: the worker says what is missing.
    pub said_after: u32,
    /// For how many milliseconds they are computed one by one, as they were the first time, so that sums are rounded
    /// in the same order and the answer goes on as it would have; then in batches, which is many times as fast.
    pub replay_exact_ms: u32,
}

impl Request {
    /// About how many bytes it holds: its texts, images and token ids.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let format = match &self.format {
            Format::Text | Format::Json => 0,
            Format::JsonSchema(schema) => schema.0.len(),
        };
        let stop: usize = self.stop.iter().map(String::len).sum();
        let tokens = self.progress.produced.len() * size_of::<TokenId>();
        size_of::<Self>() + self.work.bytes() + format + stop + tokens
    }
}

impl Work {
    fn bytes(&self) -> usize {
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        match self {
            Self::Chat(chat) => {
                let messages: usize = chat.messages.iter().map(Message::bytes).sum();
                let tools: usize = chat.tools.iter().map(|tool| tool.name.len() + tool.definition.0.len()).sum();
                let context = chat.context.len() * size_of::<TokenId>();
                messages + tools + context + text(&chat.template) + text(&chat.suffix)
            }
            Self::Complete(complete) => complete.prompt.len() + text(&complete.suffix),
            Self::Embed(embed) => embed.inputs.iter().map(|input| size_of::<String>() + input.len()).sum(),
        }
    }
}

impl Message {
    fn bytes(&self) -> usize {
        let part = |part: &ContentPart| match part {
            ContentPart::Text(text) => text.len(),
            ContentPart::Image(image) => image.len(),
        };
        let content: usize = self.content.iter().map(part).sum();
        let calls: usize = self.tool_calls.iter().map(|call| call.name.len() + call.arguments.0.len()).sum();
        size_of::<Self>() + content + calls + self.thinking.as_ref().map_or(0, String::len)
    }
}

/// The kinds of work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Work {
    /// Messages, rendered by the model's own template in the worker.
    Chat(Chat),
    /// A raw prompt.
    Complete(Complete),
    /// Vectors for texts.
    Embed(Embed),
}

/// A conversation to continue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Chat {
    /// In order; model defaults (system, stored messages) are already merged in.
    pub messages: Vec<Message>,
    /// Tools the model may call; empty means none.
    pub tools: Vec<ToolSpec>,
    /// Whether the model should think first.
    pub think: ThinkMode,
    /// A Go template from the request that replaces the model's own.
    pub template: Option<String>,
    /// `true` where the answer is one of `/api/generate`: Go templates see `.Prompt`, and no parser of tool calls
    /// runs.
    pub single_turn: bool,
    /// Token ids of an earlier exchange (`context` of `/api/generate`), placed before the rendered prompt.
    pub context: Vec<TokenId>,
    /// Text after the insertion point, for fill-in-the-middle models. Only with `single_turn`.
    pub suffix: Option<String>,
    /// `true`: render, answer with one [`crate::Output::Rendered`], compute nothing.
    pub render_only: bool,
}

/// Who speaks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Instructions.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// The result of a tool call.
    Tool,
    /// Anything else a client sent, lower-cased; templates decide.
    Other(String),
}

impl Role {
    /// The word that templates compare with.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
            Self::Other(word) => word,
        }
    }
}

/// One turn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said, in order. Empty where a client sent no content.
    pub content: Vec<ContentPart>,
    /// Earlier reasoning of an assistant turn.
    pub thinking: Option<String>,
    /// Calls that an assistant turn made.
    pub tool_calls: Vec<PastToolCall>,
    /// For a tool turn: the name of the tool.
    pub tool_name: Option<String>,
    /// For a tool turn: the call it answers.
    pub tool_call_id: Option<String>,
}

/// A piece of a message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ContentPart {
    /// UTF-8 text.
    Text(String),
    /// Encoded image bytes (PNG, JPEG or WebP), not yet decoded.
    Image(Vec<u8>),
}

/// A call that an earlier assistant turn made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PastToolCall {
    /// The id that the tool turn refers to, if the dialect has one.
    pub id: Option<String>,
    /// The tool.
    pub name: String,
    /// A JSON object, or whatever text the client sent in its place.
    pub arguments: JsonText,
}

/// A tool the model may call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolSpec {
    /// What the model calls it.
    pub name: String,
    /// The whole tool object as the client sent it (`{"type":"function","function":{…}}`), key order kept, since
    /// templates print it.
    pub definition: JsonText,
}

/// Whether the model should think first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ThinkMode {
    /// The client said nothing: the template's own default.
    Unset,
    /// No thinking.
    Off,
    /// Thinking at a level.
    On(ThinkLevel),
}

/// How much thinking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ThinkLevel {
    /// `low`.
    Low,
    /// `medium`, also what `true` means.
    Medium,
    /// `high`.
    High,
    /// `max`.
    Max,
}

/// A raw prompt: control tokens in it are parsed, no template is applied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Complete {
    /// The text.
    pub prompt: String,
    /// Text after the insertion point, for fill-in-the-middle models.
    pub suffix: Option<String>,
}

/// Texts to embed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Embed {
    /// One vector each, in order.
    pub inputs: Vec<String>,
    /// Cut an over-long input to the context instead of failing.
    pub truncate: bool,
    /// Divide by the Euclidean length.
    pub normalize: bool,
    /// Keep only the first components, before normalising. `None` keeps all.
    pub dimensions: Option<u32>,
}

/// How to choose tokens: Ollama's options, in Ollama's order. See the kit's `sampler` for the rule of each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// The random draws are a function of this and the token's index. The supervisor draws one where the client
    /// gave none, so that a resumed request repeats them.
    pub seed: u64,
    /// Whether the client gave it, and so may expect the same answer another time.
    pub seeded: bool,
    /// 0 is greedy.
    pub temperature: f32,
    /// 0 keeps all.
    pub top_k: u32,
    /// 1 keeps all.
    pub top_p: f32,
    /// 0 keeps all.
    pub min_p: f32,
    /// 1 keeps all.
    pub typical_p: f32,
    /// 1 is off.
    pub repeat_penalty: f32,
    /// Tokens looked back on by the penalties; -1 is the whole context, 0 turns them off.
    pub repeat_last_n: i32,
    /// 0 is off.
    pub presence_penalty: f32,
    /// 0 is off.
    pub frequency_penalty: f32,
}

impl Sampling {
    /// Whether the same request has the same answer every time: there is but one choice, or the client's own seed.
    #[must_use]
    pub fn is_repeatable(&self) -> bool {
        self.seeded || self.temperature <= 0.0 || self.top_k == 1
    }

    /// Always the most likely token, with no penalty.
    #[must_use]
    pub const fn greedy() -> Self {
        Self {
            seed: 1,
            seeded: false,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            repeat_penalty: 1.0,
            repeat_last_n: 0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
        }
    }
}

/// What the text must look like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Format {
    /// Anything.
    Text,
    /// Any JSON object.
    Json,
    /// A JSON value valid under this schema.
    JsonSchema(JsonText),
}

/// Caps of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Most tokens to generate; `None` is until the model ends or the context is full.
    pub max_tokens: Option<u32>,
    /// This request's window, prompt and output together; at most the slot's.
    pub context_tokens: u32,
    /// Shorten an over-long prompt (drop the oldest turns, then cut tokens) instead of failing.
    pub truncate: bool,
    /// Let the window slide when it is full, instead of ending with [`crate::FinishReason::Length`].
    pub shift: bool,
    /// Tokens at the start that a slide or cut never drops; negative is all of the prompt.
    pub keep_tokens: i32,
}

/// Whether log probabilities are reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logprobs {
    /// Alternatives per token, `0..=20`.
    pub top: u8,
}
