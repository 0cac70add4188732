//! Messages to prompt, output text to content, thinking and tool calls.
//!
//! [`ChatFormat`] is made once per loaded model from its [`ChatSource`]. It renders chats ([`ChatFormat::render`]) and
//! makes a parser for the answer of each ([`ChatFormat::parser`]). Templates come out of model files and, where a
//! request brings its own, from clients; both are hostile: see `jinja` and `go` for the bounds.

use std::cell::Cell;
use std::collections::BTreeSet;

use ollmlx_proto::{Capability, Chat, Failure, FailureKind, TokenId, UnixSeconds};

use crate::limits;
use crate::vocab::{TokenKind, Vocab};

mod bounds;
mod builtin;
mod charges;
mod go;
mod guard;
mod jinja;
mod json_text;
mod parse;
mod view;

#[cfg(test)]
mod bounds_tests;
#[cfg(test)]
mod tests;

pub use parse::{OutputParser, Parsed};

use go::GoTemplate;
use guard::{Guard, take_marks};
use jinja::{JinjaTemplate, RenderError};
use parse::Detected;
use view::Conversation;

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

/// How a loaded model is talked to.
pub struct ChatFormat {
    plan: Plan,
    /// The store's template, for fill-in-the-middle.
    store: Option<GoTemplate>,
    guard: Guard,
    words: Words,
    infill: Option<[String; 3]>,
    detected: Detected,
    /// Control tokens by spelling, to find those that are markers of the output.
    controls: Vec<(TokenId, String)>,
}

/// What renders a chat.
enum Plan {
    Jinja(Box<JinjaTemplate>),
    Go(GoTemplate),
    /// Contents joined by newlines.
    Plain,
    /// The model's template does not parse; said at each render.
    Broken(Failure),
}

/// Spellings that templates and checks use.
struct Words {
    bos: String,
    eos: String,
    add_bos: bool,
}

/// A prompt, ready for the tokenizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenderedPrompt {
    /// The whole prompt. Control tokens in it are to be parsed, except across a cut.
    pub text: String,
    /// Byte offsets into `text`, ascending, none at its ends, each on a character's boundary. Text left and right of
    /// one must be tokenized separately (`tokenize(piece, add_special only for the first, parse_special = true)`):
    /// there a client typed the spelling of a control token.
    pub cuts: Vec<usize>,
    /// Whether the tokenizer is to put the beginning-of-sequence token in front; false where the text spells it.
    pub add_special: bool,
    /// Whether the prompt ends inside the model's thinking, so that the answer begins there.
    pub thinking_open: bool,
}

impl ChatFormat {
    /// Chooses the template. A bad one is reported when it is rendered.
    #[must_use]
    pub fn new(source: &ChatSource, vocab: &Vocab) -> Self {
        let words = Words {
            bos: vocab.bos.map(|id| vocab.spelling_lossy(id)).unwrap_or_default(),
            eos: vocab.eos.map(|id| vocab.spelling_lossy(id)).unwrap_or_default(),
            add_bos: vocab.add_bos,
        };
        let controls: Vec<_> = vocab
            .kinds
            .iter()
            .enumerate()
            .filter(|(_, kind)| **kind == TokenKind::Control)
            .filter_map(|(id, _)| {
                let id = TokenId::try_from(id).ok()?;
                let text = std::str::from_utf8(vocab.spelling(id)).ok()?;
                (text.len() > 1).then(|| (id, text.to_owned()))
            })
            .collect();
        let store = source.go.as_deref().map(GoTemplate::new);
        let (plan, text) = choose(source, vocab);
        let mut detected = parse::detect(&text, vocab);
        detected.find_controls(&controls);
        Self {
            plan,
            store,
            guard: Guard::new(vocab, &text, parse::THINK_WORDS),
            words,
            infill: vocab.infill.map(|(a, b, c)| [a, b, c].map(|id| vocab.spelling_lossy(id))),
            detected,
            controls,
        }
    }

    /// The prompt that asks the model for the next turn.
    ///
    /// # Errors
    /// `Unsupported` for images and for a suffix that the model can't take, `InvalidRequest` where the template
    /// refuses the conversation or a tool is not JSON, `TemplateFailed` where the template is bad or hostile.
    pub fn render(&self, chat: &Chat, asked_at: UnixSeconds) -> Result<RenderedPrompt, Failure> {
        let mut conversation = Conversation::new(chat, asked_at)?;
        let replaced = chat.template.as_deref().map(GoTemplate::new);
        if let Some(suffix) = chat.suffix.as_deref().filter(|suffix| !suffix.is_empty()) {
            return self.render_infill(&conversation, suffix, replaced.as_ref());
        }
        let mark = self.guard.mark(&mut conversation);
        let rendered = match (&replaced, &self.plan) {
            (Some(template), _) | (None, Plan::Go(template)) => template.render(&conversation)?,
            (None, Plan::Jinja(template)) => self.render_jinja(template, &conversation)?,
            (None, Plan::Plain) => {
                conversation.turns.iter().map(|turn| turn.content.as_str()).collect::<Vec<_>>().join("\n")
            }
            (None, Plan::Broken(failure)) => return Err(failure.clone()),
        };
        self.finish(&rendered, mark)
    }

    /// The prompt that asks for what belongs between `prompt` and `suffix`, by the model's own markers.
    ///
    /// # Errors
    /// `Unsupported` where the model has none.
    pub fn render_suffix(&self, prompt: &str, suffix: &str, vocab: &Vocab) -> Result<RenderedPrompt, Failure> {
        let infill = vocab.infill.map(|(a, b, c)| [a, b, c].map(|id| vocab.spelling_lossy(id)));
        self.infill(infill.as_ref(), prompt, suffix)
    }

    /// A parser for the answer to `rendered`.
    #[must_use]
    pub fn parser(&self, chat: &Chat, rendered: &RenderedPrompt) -> OutputParser {
        let replaced = chat.template.as_deref().map(|template| {
            let mut detected = parse::detect(looked_at(template), &Vocab::default());
            detected.find_controls(&self.controls);
            detected
        });
        OutputParser::new(replaced.as_ref().unwrap_or(&self.detected), chat, rendered.thinking_open)
    }

    /// Control tokens that may be markers of thinking or of a tool call. Their spelling must be fed to the parser
    /// although they add nothing to an answer; see [`OutputParser::visible_controls`] for those of one request.
    #[must_use]
    pub fn visible_controls(&self) -> &BTreeSet<TokenId> {
        &self.detected.controls
    }

    fn render_infill(
        &self,
        conversation: &Conversation,
        suffix: &str,
        replaced: Option<&GoTemplate>,
    ) -> Result<RenderedPrompt, Failure> {
        let prompt = conversation.last_user_text();
        let Some(template) = replaced.or(self.store.as_ref()).filter(|template| template.has_suffix()) else {
            return self.infill(self.infill.as_ref(), prompt, suffix);
        };
        let ([prompt, suffix], mark) = self.guard.mark_texts([prompt, suffix]);
        self.finish(&template.render_suffix(&prompt, &suffix, conversation.asked_at)?, mark)
    }

    fn infill(&self, markers: Option<&[String; 3]>, prompt: &str, suffix: &str) -> Result<RenderedPrompt, Failure> {
        let Some([before, after, middle]) = markers else {
            return Err(Failure::new(FailureKind::Unsupported, "this model does not support insert"));
        };
        let ([prompt, suffix], mark) = self.guard.mark_texts([prompt, suffix]);
        self.finish(&format!("{before}{prompt}{after}{suffix}{middle}"), mark)
    }

    /// First as it is; where the template refuses, with the rewrites that most templates accept.
    fn render_jinja(&self, template: &JinjaTemplate, conversation: &Conversation) -> Result<String, Failure> {
        let rewrites: [fn(&Conversation) -> Conversation; 4] = [
            Conversation::with_leading_system,
            |conversation| conversation.with_leading_system().with_merged_roles(),
            Conversation::with_folded_system,
            |conversation| conversation.with_folded_system().with_merged_roles(),
        ];
        let mut result = template.render(conversation, &self.words);
        for rewrite in rewrites {
            if !matches!(result, Err(RenderError::Refused(_))) {
                break;
            }
            let again = template.render(&rewrite(conversation), &self.words);
            if !matches!(again, Err(RenderError::Refused(_))) {
                result = again;
            }
        }
        result.map_err(|error| match error {
            RenderError::Failed(failure) => failure,
            RenderError::Refused(text) => Failure::new(
                FailureKind::InvalidRequest,
                format!("this model's chat template refuses these messages: {text}"),
            ),
        })
    }

    fn finish(&self, rendered: &str, mark: Option<char>) -> Result<RenderedPrompt, Failure> {
        let (text, cuts) = take_marks(rendered, mark);
        if text.len() > limits::RENDERED_BYTES_MAX {
            return Err(Failure::new(FailureKind::InvalidRequest, "the rendered prompt is too large"));
        }
        let spelled = !self.words.bos.is_empty() && text.starts_with(&self.words.bos);
        Ok(RenderedPrompt {
            add_special: self.words.add_bos && !spelled,
            thinking_open: self.detected.opens_thinking(&text),
            text,
            cuts,
        })
    }
}

/// What of a template is searched for markers: one that is refused anyway is not.
fn looked_at(template: &str) -> &str {
    if template.len() > limits::TEMPLATE_BYTES_MAX { "" } else { template }
}

/// The template to use, and its text for detection.
fn choose(source: &ChatSource, vocab: &Vocab) -> (Plan, String) {
    let mut broken = None;
    if let Some(text) = source.jinja.as_deref().filter(|text| !text.trim().is_empty()) {
        let template = JinjaTemplate::new(text);
        match template.check() {
            Ok(()) => return (Plan::Jinja(Box::new(template)), text.to_owned()),
            Err(failure) => broken = Some((Plan::Broken(failure), looked_at(text).to_owned())),
        }
    }
    if let Some(text) = source.go.as_deref().filter(|text| !text.trim().is_empty()) {
        return (Plan::Go(GoTemplate::new(text)), looked_at(text).to_owned());
    }
    broken.unwrap_or_else(|| match builtin::choose(&source.architecture, vocab) {
        Some(text) => (Plan::Jinja(Box::new(JinjaTemplate::new(text))), text.to_owned()),
        None => (Plan::Plain, String::new()),
    })
}

/// Which template of a model would be used, without loading it: why its own one can't be, and the built-in one where there is
/// none. `specials` are special tokens of its vocabulary.
#[must_use]
pub fn template_facts(jinja: Option<&str>, architecture: &str, specials: &[&str]) -> (Option<String>, Option<String>) {
    match jinja.filter(|text| !text.trim().is_empty()) {
        Some(text) => (JinjaTemplate::new(text).check().err().map(|failure| failure.public), None),
        None => (None, builtin::choose_by(architecture, false, |word| specials.contains(&word)).map(str::to_owned)),
    }
}

/// What a model's templates tell about it, without loading it: tools, thinking, insert.
#[must_use]
pub fn template_capabilities(jinja: Option<&str>, go: Option<&str>) -> Vec<Capability> {
    let mut found = BTreeSet::new();
    if let Some(text) = jinja {
        if builtin::uses_word(text, "tools") {
            found.insert(Capability::Tools);
        }
        let switches = ["enable_thinking", "reasoning_content", "reasoning_effort"];
        if parse::knows_thinking(text) || switches.iter().any(|word| builtin::uses_word(text, word)) {
            found.insert(Capability::Thinking);
        }
    }
    if let Some(text) = go {
        if text.contains(".Tools") {
            found.insert(Capability::Tools);
        }
        if text.contains(".Suffix") {
            found.insert(Capability::Insert);
        }
        if parse::knows_thinking(text) || text.contains(".Think") || text.contains(".IsThinkSet") {
            found.insert(Capability::Thinking);
        }
    }
    found.into_iter().collect()
}

thread_local! {
    /// Whether this thread's stack has [`limits::DEEP_STACK_BYTES`].
    static IS_DEEP: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` on this thread, which was started with [`limits::DEEP_STACK_BYTES`] of stack.
pub(crate) fn as_deep_thread<T>(work: impl FnOnce() -> T) -> T {
    IS_DEEP.set(true);
    work()
}

/// Runs `work` where recursion has room.
pub(crate) fn on_deep_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, Failure> {
    if IS_DEEP.get() {
        return Ok(work());
    }
    let internal =
        |text: String| Failure::new(FailureKind::Internal, "the worker could not run this").with_detail(text);
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("deep-stack".into())
            .stack_size(limits::DEEP_STACK_BYTES)
            .spawn_scoped(scope, || as_deep_thread(work))
            .map_err(|error| internal(error.to_string()))?
            .join()
            .map_err(|_| internal("a panic in a template or grammar".into()))
    })
}
