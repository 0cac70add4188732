//! A chat as templates see it: plain strings and parsed JSON, no wire types.
//!
//! Also the rewrites that make a conversation acceptable to templates which refuse a system turn or two turns of one
//! role in a row.

use chrono::{DateTime, Local};
use ollmlx_proto::{
    Chat, ContentPart, Failure, FailureKind, Message, PastToolCall, Role, ThinkLevel, ThinkMode, UnixSeconds,
};
use serde_json::{Map, Value};

/// A conversation to render.
#[derive(Clone, Debug)]
pub(super) struct Conversation {
    pub(super) turns: Vec<Turn>,
    /// Tool objects as the client sent them.
    pub(super) tools: Vec<Value>,
    pub(super) think: ThinkMode,
    /// Of all texts the client sent, roughly.
    pub(super) bytes: usize,
    /// When it was asked, where this machine is.
    pub(super) asked_at: DateTime<Local>,
}

/// One turn.
#[derive(Clone, Debug, Default)]
pub(super) struct Turn {
    pub(super) role: String,
    pub(super) content: String,
    pub(super) thinking: String,
    pub(super) calls: Vec<PastCall>,
    pub(super) tool_name: Option<String>,
    pub(super) tool_call_id: Option<String>,
}

/// An earlier tool call.
#[derive(Clone, Debug)]
pub(super) struct PastCall {
    pub(super) id: Option<String>,
    pub(super) name: String,
    /// An object; a string where the client's text was no JSON.
    pub(super) arguments: Value,
}

impl Conversation {
    /// Reads a chat. Templates that say the date say that of `asked_at`, so that an answer that goes on on another worker
    /// goes on with the prompt of the first.
    pub(super) fn new(chat: &Chat, asked_at: UnixSeconds) -> Result<Self, Failure> {
        let turns = chat.messages.iter().map(turn).collect::<Result<_, _>>()?;
        let tools = chat
            .tools
            .iter()
            .map(|tool| {
                serde_json::from_str(&tool.definition.0).map_err(|error| {
                    Failure::new(
                        FailureKind::InvalidRequest,
                        format!("the definition of tool {:?} is not JSON", tool.name),
                    )
                    .with_detail(error.to_string())
                })
            })
            .collect::<Result<_, _>>()?;
        let turn_bytes = |message: &Message| {
            let content: usize = message.content.iter().map(part_bytes).sum();
            let calls: usize = message.tool_calls.iter().map(|call| call.arguments.0.len()).sum();
            content + calls + message.thinking.as_ref().map_or(0, String::len)
        };
        let bytes = chat.messages.iter().map(turn_bytes).sum::<usize>()
            + chat.tools.iter().map(|tool| tool.definition.0.len()).sum::<usize>();
        let asked_at = DateTime::from_timestamp(asked_at.0, 0).unwrap_or_default().with_timezone(&Local);
        Ok(Self { turns, tools, think: chat.think, bytes, asked_at })
    }

    /// Calls `visitor` with every string that a client supplied, keys of objects included, and whether it is part of
    /// an assistant's turn.
    pub(super) fn visit(&mut self, visitor: &mut dyn FnMut(&mut String, bool)) {
        for turn in &mut self.turns {
            let from_model = turn.role == "assistant";
            visitor(&mut turn.content, from_model);
            visitor(&mut turn.thinking, from_model);
            visitor(&mut turn.role, false);
            for call in &mut turn.calls {
                visitor(&mut call.name, false);
                call.id.iter_mut().for_each(|id| visitor(id, false));
                visit_json(&mut call.arguments, &mut |text| visitor(text, false));
            }
            turn.tool_name.iter_mut().for_each(|name| visitor(name, false));
            turn.tool_call_id.iter_mut().for_each(|id| visitor(id, false));
        }
        for tool in &mut self.tools {
            visit_json(tool, &mut |text| visitor(text, false));
        }
    }

    /// All system turns become one, at the front.
    pub(super) fn with_leading_system(&self) -> Self {
        let (system, mut turns) = self.split_system();
        if let Some(content) = system {
            turns.insert(0, Turn { role: "system".into(), content, ..Turn::default() });
        }
        Self { turns, ..self.clone() }
    }

    /// All system turns become the beginning of the first user turn.
    pub(super) fn with_folded_system(&self) -> Self {
        let (system, mut turns) = self.split_system();
        if let Some(content) = system {
            match turns.iter_mut().find(|turn| turn.role == "user") {
                Some(turn) => turn.content = format!("{content}\n\n{}", turn.content),
                None => turns.insert(0, Turn { role: "user".into(), content, ..Turn::default() }),
            }
        }
        Self { turns, ..self.clone() }
    }

    /// Turns of one role in a row become one, joined by a blank line. Results of tools stay apart.
    pub(super) fn with_merged_roles(&self) -> Self {
        let mut turns: Vec<Turn> = Vec::with_capacity(self.turns.len());
        for turn in &self.turns {
            match turns.last_mut().filter(|last| last.role == turn.role && turn.role != "tool") {
                Some(last) => last.append(turn),
                None => turns.push(turn.clone()),
            }
        }
        Self { turns, ..self.clone() }
    }

    /// System texts joined by blank lines.
    pub(super) fn system_text(&self) -> String {
        self.split_system().0.unwrap_or_default()
    }

    /// The last user turn's text.
    pub(super) fn last_user_text(&self) -> &str {
        self.turns.iter().rev().find(|turn| turn.role == "user").map_or("", |turn| turn.content.as_str())
    }

    fn split_system(&self) -> (Option<String>, Vec<Turn>) {
        let (system, others): (Vec<_>, Vec<_>) = self.turns.iter().cloned().partition(|turn| turn.role == "system");
        let texts: Vec<_> = system.into_iter().map(|turn| turn.content).collect();
        ((!texts.is_empty()).then(|| texts.join("\n\n")), others)
    }
}

impl Turn {
    fn append(&mut self, other: &Self) {
        for (mine, theirs) in [(&mut self.content, &other.content), (&mut self.thinking, &other.thinking)] {
            if !mine.is_empty() && !theirs.is_empty() {
                mine.push_str("\n\n");
            }
            mine.push_str(theirs);
        }
        self.calls.extend(other.calls.iter().cloned());
    }
}

/// The word for a level of thinking.
pub(super) fn level_word(level: ThinkLevel) -> &'static str {
    match level {
        ThinkLevel::Low => "low",
        ThinkLevel::Medium => "medium",
        ThinkLevel::High => "high",
        ThinkLevel::Max => "max",
    }
}

fn turn(message: &Message) -> Result<Turn, Failure> {
    let mut content = String::new();
    for part in &message.content {
        match part {
            ContentPart::Text(text) => content.push_str(text),
            ContentPart::Image(_) => {
                return Err(Failure::new(FailureKind::Unsupported, "this model does not support image input"));
            }
        }
    }
    // No template knows the name that one dialect gave to system turns.
    let role = match &message.role {
        Role::Other(word) if word == "developer" => "system",
        role => role.as_str(),
    };
    Ok(Turn {
        role: role.to_owned(),
        content,
        thinking: message.thinking.clone().unwrap_or_default(),
        calls: message.tool_calls.iter().map(past_call).collect(),
        tool_name: message.tool_name.clone(),
        tool_call_id: message.tool_call_id.clone(),
    })
}

fn part_bytes(part: &ContentPart) -> usize {
    match part {
        ContentPart::Text(text) => text.len(),
        ContentPart::Image(bytes) => bytes.len(),
    }
}

fn past_call(call: &PastToolCall) -> PastCall {
    let text = &call.arguments.0;
    let arguments = match serde_json::from_str(text) {
        // One dialect wraps the object in a string; the supervisor unwraps it once, clients sometimes wrap it twice.
        Ok(Value::String(inner)) => serde_json::from_str(&inner).unwrap_or(Value::String(inner)),
        Ok(value) => value,
        Err(_) if text.trim().is_empty() => Value::Object(Map::new()),
        Err(_) => Value::String(text.clone()),
    };
    PastCall { id: call.id.clone(), name: call.name.clone(), arguments }
}

/// Depth is bounded by the parser that made the value (128).
fn visit_json(value: &mut Value, visitor: &mut dyn FnMut(&mut String)) {
    match value {
        Value::String(text) => visitor(text),
        Value::Array(items) => items.iter_mut().for_each(|item| visit_json(item, visitor)),
        Value::Object(object) => {
            *object = std::mem::take(object)
                .into_iter()
                .map(|(mut key, mut item)| {
                    visitor(&mut key);
                    visit_json(&mut item, visitor);
                    (key, item)
                })
                .collect();
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
