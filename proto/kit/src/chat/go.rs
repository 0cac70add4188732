//! Go chat templates as Ollama runs them.
//!
//! Values have Go's field names. A map or list that is printed, or given to `json`, appears as the JSON the client
//! sent, in the client's key order: such values are known by identity. Templates without `.Messages` are run once per
//! turn, the last run cut at `.Response`.
//!
//! Hostile templates: the source has a size limit; the work is estimated before it runs (source length with all
//! `template` calls expanded; recursion is refused) and bounds the iterations; functions charge a budget for the text
//! they make and compare; those that could double text (`js`, `html`, `urlquery`) do not exist; output has a cap.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering as AtomicOrdering};

use chrono::{DateTime, Duration, Local};
use gotmpl::parse::{CommandNode, DefineNode, Expr, ListNode, Node, Parser};
use gotmpl::{MissingKey, Template, TemplateError, Value};
use ollmlx_proto::{Failure, FailureKind, ThinkMode};
use serde_json::Value as Json;

use super::on_deep_stack;
use super::view::{Conversation, PastCall, Turn, level_word};
use crate::limits;

/// Stands for the end of the last turn's `.Response`; a noncharacter, which no text has any business with.
const CUT: &str = "\u{fdd0}\u{fdd1}\u{fdd0}";

/// One template. Parsed at each render, since its functions count what that render uses.
pub(super) struct GoTemplate {
    source: String,
}

impl GoTemplate {
    /// Takes `source`; errors in it show when it is rendered.
    pub(super) fn new(source: &str) -> Self {
        let mut source = source.to_owned();
        let is_refused = source.len() > limits::TEMPLATE_BYTES_MAX;
        if !is_refused && !source.contains(".Messages") && !source.contains(".Response") {
            source.push_str("{{ .Response }}");
        }
        Self { source }
    }

    /// Whether it has a place for the text after the insertion point.
    pub(super) fn has_suffix(&self) -> bool {
        self.source.contains(".Suffix")
    }

    /// Renders a chat.
    pub(super) fn render(&self, conversation: &Conversation) -> Result<String, Failure> {
        let conversation = conversation.with_merged_roles();
        let mut known = Known::default();
        let mut fields = fields(&conversation, &mut known);
        if self.source.contains(".Messages") {
            fields.insert("System", text(&conversation.system_text()));
            let messages = conversation.turns.iter().map(|turn| message(turn, &mut known));
            fields.insert("Messages", Value::List(messages.collect()));
            return self.execute(vec![fields], known, conversation.asked_at);
        }
        self.execute(legacy_turns(&conversation, &fields), known, conversation.asked_at).map(|text| {
            match text.find(CUT) {
                Some(end) => text[..end].to_owned(),
                None => text,
            }
        })
    }

    /// Renders a prompt and what comes after the insertion point.
    pub(super) fn render_suffix(
        &self,
        prompt: &str,
        suffix: &str,
        asked_at: DateTime<Local>,
    ) -> Result<String, Failure> {
        let empty = Conversation { turns: Vec::new(), tools: Vec::new(), think: ThinkMode::Unset, bytes: 0, asked_at };
        let mut known = Known::default();
        let mut fields = fields(&empty, &mut known);
        fields.insert("Prompt", text(prompt));
        fields.insert("Suffix", text(suffix));
        self.execute(vec![fields], known, asked_at)
    }

    fn execute(&self, runs: Vec<Fields>, known: Known, asked_at: DateTime<Local>) -> Result<String, Failure> {
        if known.bytes > limits::RENDERED_BYTES_MAX {
            let text = "the tools and calls of this conversation are too large for this template";
            return Err(Failure::new(FailureKind::InvalidRequest, text));
        }
        let known = Arc::new(known);
        on_deep_stack(|| {
            let template = compile(&self.source, runs.len(), known, asked_at)?;
            let mut out = Capped(String::new());
            for fields in runs {
                template.execute_template_fmt(&mut out, "main", &data(fields))?;
            }
            Ok(out.0)
        })?
        .map_err(|error: TemplateError| {
            let text: String = error.to_string().chars().take(500).collect();
            Failure::new(FailureKind::TemplateFailed, format!("template error: {text}"))
        })
    }
}

/// A string that refuses to grow over the cap.
struct Capped(String);

impl Write for Capped {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > limits::RENDERED_BYTES_MAX {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

/// The data of one run.
type Fields = BTreeMap<&'static str, Value>;

/// The JSON text of maps and lists that came from the client, by address. The data outlives the render.
#[derive(Default)]
struct Known {
    texts: HashMap<usize, String>,
    /// Keeps the addresses taken.
    kept: Vec<Value>,
    /// Of all texts: what is nested is in each text around it.
    bytes: usize,
}

impl Known {
    fn remember(&mut self, value: Value, json: &Json) -> Value {
        if self.bytes > limits::RENDERED_BYTES_MAX {
            return value;
        }
        if let Some(address) = address(&value) {
            let text = json.to_string();
            self.bytes += text.len();
            self.texts.insert(address, text);
            self.kept.push(value.clone());
        }
        value
    }
}

fn address(value: &Value) -> Option<usize> {
    match value {
        Value::Map(map) => Some(Arc::as_ptr(map).addr()),
        Value::List(list) if !list.is_empty() => Some(list.as_ptr().addr()),
        _ => None,
    }
}

fn fields(conversation: &Conversation, known: &mut Known) -> Fields {
    let tools: Vec<Value> = conversation.tools.iter().map(|tool| cased(tool, known)).collect();
    let tools = known.remember(Value::List(tools.into()), &Json::Array(conversation.tools.clone()));
    let (think, level, is_set) = match conversation.think {
        ThinkMode::Unset => (false, "", false),
        ThinkMode::Off => (false, "", true),
        ThinkMode::On(level) => (true, level_word(level), true),
    };
    let mut fields = Fields::new();
    for name in ["System", "Prompt", "Response", "Suffix"] {
        fields.insert(name, text(""));
    }
    fields.insert("Messages", Value::List(Arc::from([])));
    fields.insert("Tools", tools);
    fields.insert("Think", Value::Bool(think));
    fields.insert("ThinkLevel", text(level));
    fields.insert("IsThinkSet", Value::Bool(is_set));
    fields
}

/// One run per exchange; the last one's response ends with [`CUT`].
fn legacy_turns(conversation: &Conversation, base: &Fields) -> Vec<Fields> {
    let mut runs = Vec::new();
    let [mut system, mut prompt, mut response] = [const { String::new() }; 3];
    let run = |parts: [&mut String; 3], end: &str| {
        let mut fields = base.clone();
        let [system, prompt, response] = parts.map(std::mem::take);
        fields.insert("System", text(&system));
        fields.insert("Prompt", text(&prompt));
        fields.insert("Response", text(&(response + end)));
        fields
    };
    for turn in &conversation.turns {
        let (begins_new, slot) = match turn.role.as_str() {
            "system" => (!prompt.is_empty() || !response.is_empty(), 0),
            "user" | "tool" => (!response.is_empty(), 1),
            "assistant" => (false, 2),
            _ => continue,
        };
        if begins_new {
            runs.push(run([&mut system, &mut prompt, &mut response], ""));
        }
        *[&mut system, &mut prompt, &mut response][slot] = turn.content.clone();
    }
    runs.push(run([&mut system, &mut prompt, &mut response], CUT));
    runs
}

fn message(turn: &Turn, known: &mut Known) -> Value {
    let calls: Vec<Value> = turn.calls.iter().enumerate().map(|(index, call)| past_call(index, call, known)).collect();
    map([
        ("Role", text(&turn.role)),
        ("Content", text(&turn.content)),
        ("Thinking", text(&turn.thinking)),
        ("Images", Value::List(Arc::from([]))),
        ("ToolCalls", Value::List(calls.into())),
        ("ToolName", text(turn.tool_name.as_deref().unwrap_or_default())),
        ("ToolCallID", text(turn.tool_call_id.as_deref().unwrap_or_default())),
    ])
}

fn past_call(index: usize, call: &PastCall, known: &mut Known) -> Value {
    let json = serde_json::json!({ "name": call.name, "arguments": call.arguments });
    let arguments = plain(&call.arguments, known);
    let function = map([
        ("Index", Value::Int(i64::try_from(index).unwrap_or(0))),
        ("Name", text(&call.name)),
        ("Arguments", arguments),
    ]);
    let function = known.remember(function, &json);
    let id = call.id.as_deref().unwrap_or_default();
    let whole = map([("ID", text(id)), ("Function", function)]);
    known.remember(whole, &serde_json::json!({ "id": id, "function": json }))
}

/// A tool object with Go's field names, except below `properties`, whose keys are the client's.
fn cased(json: &Json, known: &mut Known) -> Value {
    let value = match json {
        Json::Object(object) => {
            let mut fields = BTreeMap::new();
            for (key, item) in object {
                let item = match (key.as_str(), item) {
                    ("properties" | "$defs", Json::Object(properties)) => {
                        let inner = properties.iter().map(|(name, item)| (Arc::from(&**name), cased(item, known)));
                        let inner = Value::Map(Arc::new(inner.collect()));
                        known.remember(inner, item)
                    }
                    ("default" | "enum" | "const" | "example" | "examples" | "required", _) => plain(item, known),
                    _ => cased(item, known),
                };
                fields.insert(Arc::from(go_name(key)), item);
            }
            Value::Map(Arc::new(fields))
        }
        Json::Array(items) => Value::List(items.iter().map(|item| cased(item, known)).collect()),
        scalar => return plain(scalar, known),
    };
    known.remember(value, json)
}

fn go_name(key: &str) -> String {
    let key = if key == "$defs" { "defs" } else { key };
    let mut characters = key.chars();
    characters.next().map(|first| first.to_uppercase().chain(characters).collect()).unwrap_or_default()
}

fn plain(json: &Json, known: &mut Known) -> Value {
    let value = match json {
        Json::Null => return Value::Nil,
        Json::Bool(truth) => return Value::Bool(*truth),
        Json::String(string) => return text(string),
        Json::Number(number) => {
            return match (number.as_i64(), number.as_u64()) {
                (Some(number), _) => Value::Int(number),
                (None, Some(number)) => Value::Uint(number),
                (None, None) => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
            };
        }
        Json::Array(items) => Value::List(items.iter().map(|item| plain(item, known)).collect()),
        Json::Object(object) => {
            Value::Map(Arc::new(object.iter().map(|(key, item)| (Arc::from(&**key), plain(item, known))).collect()))
        }
    };
    known.remember(value, json)
}

fn data(fields: Fields) -> Value {
    Value::Map(Arc::new(fields.into_iter().map(|(name, value)| (Arc::from(name), value)).collect()))
}

fn text(string: &str) -> Value {
    Value::String(string.into())
}

fn map<const N: usize>(pairs: [(&str, Value); N]) -> Value {
    Value::Map(Arc::new(pairs.into_iter().map(|(name, value)| (Arc::from(name), value)).collect()))
}

/// Parses, bounds and equips a template that is going to run `runs` times.
fn compile(source: &str, runs: usize, known: Arc<Known>, asked_at: DateTime<Local>) -> Result<Template, TemplateError> {
    if source.len() > limits::TEMPLATE_BYTES_MAX {
        return Err(TemplateError::Exec("the template is too large".into()));
    }
    let (mut main, mut defines) = Parser::new(source, "{{", "}}")?.parse()?;
    let nodes = estimate(&main, &defines)?.saturating_mul(runs as u64);
    if nodes > limits::TEMPLATE_NODES_MAX {
        return Err(TemplateError::Exec("the template is too large for this conversation".into()));
    }
    show_values(&mut main.nodes);
    let mut template = Template::new("")
        .missing_key(MissingKey::ZeroValue)
        .max_range_iters((limits::TEMPLATE_NODES_MAX / nodes.max(1)).clamp(1, 1_000_000));
    for define in &mut defines {
        show_values(&mut define.body.nodes);
        template = template.add_parse_tree(define.name.as_str(), define.body.clone());
    }
    Ok(functions(template.add_parse_tree("main", main), known, asked_at))
}

/// Nodes visited where every range runs once, `template` calls included.
fn estimate(main: &ListNode, defines: &[DefineNode]) -> Result<u64, TemplateError> {
    let bodies: HashMap<&str, &ListNode> = defines.iter().map(|define| (define.name.as_str(), &define.body)).collect();
    let mut done: HashMap<&str, Option<u64>> = HashMap::new();
    count(&main.nodes, &bodies, &mut done)
}

/// `done` holds `None` for a template that is being counted. Depth is bounded by the parser and by the number of
/// definitions, each of which takes source text; the caller has a deep stack.
fn count<'a>(
    nodes: &'a [Node],
    bodies: &HashMap<&'a str, &'a ListNode>,
    done: &mut HashMap<&'a str, Option<u64>>,
) -> Result<u64, TemplateError> {
    let mut sum = 1u64;
    for node in nodes {
        sum = sum.saturating_add(match node {
            Node::List(list) => count(&list.nodes, bodies, done)?,
            Node::If(branch) | Node::Range(branch) | Node::With(branch) => {
                let other = branch.else_body.as_ref().map_or(Ok(0), |body| count(&body.nodes, bodies, done))?;
                count(&branch.body.nodes, bodies, done)?.saturating_add(other)
            }
            Node::Template(call) => match (done.get(call.name.as_str()), bodies.get(call.name.as_str())) {
                (Some(Some(known)), _) => *known,
                (Some(None), _) => return Err(TemplateError::RecursionLimit),
                (None, None) => 1,
                (None, Some(body)) => {
                    if done.len() > 200 {
                        return Err(TemplateError::RecursionLimit);
                    }
                    done.insert(call.name.as_str(), None);
                    let inner = count(&body.nodes, bodies, done)?;
                    done.insert(call.name.as_str(), Some(inner));
                    inner
                }
            },
            _ => 1,
        });
    }
    Ok(sum)
}

/// Makes every action that prints a lone value go through `show`, as Ollama's types print themselves as JSON.
fn show_values(nodes: &mut [Node]) {
    for node in nodes {
        match node {
            Node::List(list) => show_values(&mut list.nodes),
            Node::If(branch) | Node::Range(branch) | Node::With(branch) => {
                show_values(&mut branch.body.nodes);
                branch.else_body.iter_mut().for_each(|body| show_values(&mut body.nodes));
            }
            Node::Action(action) if action.pipe.decl.is_empty() => {
                let [CommandNode { args, .. }] = action.pipe.commands.as_mut_slice() else { continue };
                if let [Expr::Dot(_) | Expr::Field(..) | Expr::Variable(..)] = args.as_slice() {
                    args.insert(0, Expr::Identifier(action.pos, "show".into()));
                }
            }
            _ => {}
        }
    }
}

fn functions(template: Template, known: Arc<Known>, asked_at: DateTime<Local>) -> Template {
    let budget = Arc::new(AtomicUsize::new(limits::RENDERED_BYTES_MAX));
    let charge = move |text: String| {
        let paid = budget
            .fetch_update(AtomicOrdering::Relaxed, AtomicOrdering::Relaxed, |left| left.checked_sub(text.len() + 1));
        paid.map(|_| Value::String(text.into())).map_err(|_| too_much())
    };
    let shown = known.clone();
    let [for_show, for_print, for_format, for_slice, for_type] = std::array::from_fn(|_| charge.clone());
    let date = move |days: i64| (asked_at - Duration::days(days)).format("%Y-%m-%d").to_string();
    comparisons(template)
        .func("json", move |args| charge(args.first().map_or_else(|| "null".into(), |value| json(value, &known))))
        .func("show", move |args| match args.first() {
            Some(Value::Nil) | None => Ok(text("")),
            Some(value @ (Value::Map(_) | Value::List(_))) => for_show(json(value, &shown)),
            Some(value) => Ok(value.clone()),
        })
        .func("currentDate", move |_| Ok(text(&date(0))))
        .func("yesterdayDate", move |_| Ok(text(&date(1))))
        .func("toTypeScriptType", move |args| for_type(args.first().map_or_else(|| "any".into(), typescript)))
        .func("print", move |args| {
            // Each is a copy of what may be a whole conversation.
            let mut out = String::new();
            args.iter().try_for_each(|value| push(&mut out, &value.to_string()))?;
            for_print(out)
        })
        .func("printf", move |args| for_format(format_go(args)?))
        .func("slice", move |args| {
            let [value, bounds @ ..] = args else { return Err(TemplateError::Exec("slice needs a value".into())) };
            for_slice(" ".repeat(value.len().unwrap_or(0) / 16))?;
            value.slice(bounds.first().and_then(Value::as_int), bounds.get(1).and_then(Value::as_int))
        })
        .func("println", absent)
        .func("html", absent)
        .func("js", absent)
        .func("urlquery", absent)
        .func("call", absent)
}

fn absent(_: &[Value]) -> Result<Value, TemplateError> {
    Err(TemplateError::Exec("this function is not available in chat templates".into()))
}

fn json(value: &Value, known: &Known) -> String {
    if let Some(text) = address(value).and_then(|address| known.texts.get(&address)) {
        return text.clone();
    }
    match value {
        Value::Map(map) => {
            let items = map.iter().map(|(key, item)| format!("{}:{}", Json::from(&**key), json(item, known)));
            format!("{{{}}}", items.collect::<Vec<_>>().join(","))
        }
        Value::List(items) => {
            format!("[{}]", items.iter().map(|item| json(item, known)).collect::<Vec<_>>().join(","))
        }
        Value::String(text) => Json::from(&**text).to_string(),
        Value::Nil | Value::Function(_) => "null".into(),
        Value::Bool(_) | Value::Int(_) | Value::Uint(_) | Value::Float(_) => value.to_string(),
    }
}

fn comparisons(template: Template) -> Template {
    let compares = Arc::new(AtomicUsize::new(limits::TEMPLATE_COMPARED_BYTES_MAX));
    let [for_eq, for_ne] = std::array::from_fn(|_| Arc::clone(&compares));
    template
        .func("eq", move |args| {
            let [first, others @ ..] = args else { return Err(TemplateError::Exec("eq needs two values".into())) };
            for other in others {
                if same(first, other, &for_eq)? {
                    return Ok(Value::Bool(true));
                }
            }
            Ok(Value::Bool(false))
        })
        .func("ne", move |args| match args {
            [one, other] => same(one, other, &for_ne).map(|same| Value::Bool(!same)),
            _ => Err(TemplateError::Exec("ne needs two values".into())),
        })
        .func("lt", ordered(Ordering::is_lt, &compares))
        .func("le", ordered(Ordering::is_le, &compares))
        .func("gt", ordered(Ordering::is_gt, &compares))
        .func("ge", ordered(Ordering::is_ge, &compares))
}

/// Go's `==` on what templates have, as the engine's own function has it; each byte compared is paid for.
fn same(one: &Value, other: &Value, budget: &AtomicUsize) -> Result<bool, TemplateError> {
    match (one, other) {
        (Value::Nil, Value::Nil) => Ok(true),
        (Value::Nil, _) | (_, Value::Nil) => Ok(false),
        (Value::Bool(one), Value::Bool(other)) => Ok(one == other),
        (Value::List(_) | Value::Map(_) | Value::Function(_), _) => {
            Err(TemplateError::Exec(format!("non-comparable type {}", one.type_name())))
        }
        _ => order(one, other, budget).map(|order| order == Some(Ordering::Equal)),
    }
}

/// `None` where one of them is not a number.
fn order(one: &Value, other: &Value, budget: &AtomicUsize) -> Result<Option<Ordering>, TemplateError> {
    Ok(match (one, other) {
        (Value::Int(one), Value::Int(other)) => Some(one.cmp(other)),
        (Value::Uint(one), Value::Uint(other)) => Some(one.cmp(other)),
        (Value::Int(one), Value::Uint(other)) => Some(i128::from(*one).cmp(&i128::from(*other))),
        (Value::Uint(one), Value::Int(other)) => Some(i128::from(*one).cmp(&i128::from(*other))),
        (Value::Float(one), Value::Float(other)) => one.partial_cmp(other),
        (Value::String(one), Value::String(other)) => {
            let bytes = one.len().min(other.len());
            let left = |left: usize| left.checked_sub(bytes);
            budget.fetch_update(AtomicOrdering::Relaxed, AtomicOrdering::Relaxed, left).map_err(|_| too_much())?;
            Some(one.cmp(other))
        }
        _ => {
            let (one, other) = (one.type_name(), other.type_name());
            return Err(TemplateError::Exec(format!("incompatible types for comparison: {one} and {other}")));
        }
    })
}

fn ordered(
    holds: fn(Ordering) -> bool,
    budget: &Arc<AtomicUsize>,
) -> impl Fn(&[Value]) -> Result<Value, TemplateError> + Send + Sync + 'static {
    let budget = Arc::clone(budget);
    move |args| {
        let [one, other] = args else { return Err(TemplateError::Exec("a comparison needs two values".into())) };
        match order(one, other, &budget)? {
            Some(order) => Ok(Value::Bool(holds(order))),
            None => Err(TemplateError::Exec("invalid type for comparison".into())),
        }
    }
}

/// Appends within the bound of a render.
fn push(out: &mut String, text: &str) -> Result<(), TemplateError> {
    if out.len() + text.len() > limits::RENDERED_BYTES_MAX {
        return Err(too_much());
    }
    out.push_str(text);
    Ok(())
}

fn too_much() -> TemplateError {
    TemplateError::Exec("the template makes too much text".into())
}

/// `%s %v %d %q %t %f %%` without widths, which is all that chat templates use.
fn format_go(args: &[Value]) -> Result<String, TemplateError> {
    let [Value::String(format), args @ ..] = args else {
        return Err(TemplateError::Exec("printf needs a format".into()));
    };
    let mut args = args.iter();
    let mut pieces = format.split('%');
    let mut out = pieces.next().unwrap_or_default().to_owned();
    while let Some(piece) = pieces.next() {
        let Some(verb) = piece.chars().next() else {
            out.push('%');
            out.push_str(pieces.next().unwrap_or_default());
            continue;
        };
        let value = args.next().unwrap_or(&Value::Nil);
        match verb {
            's' | 'v' | 'd' | 't' | 'f' => push(&mut out, &value.to_string())?,
            'q' => push(&mut out, &Json::from(value.to_string()).to_string())?,
            _ => return Err(TemplateError::Exec(format!("printf: verb %{verb} is not supported"))),
        }
        push(&mut out, &piece[verb.len_utf8()..])?;
    }
    Ok(out)
}

/// The TypeScript spelling of a property's type.
fn typescript(property: &Value) -> String {
    let one = |word: &str| match word {
        "string" => "string",
        "integer" | "number" => "number",
        "boolean" => "boolean",
        "object" => "Record<string, any>",
        "null" => "null",
        _ => "any",
    };
    if let Some(Value::List(options)) = property.field("AnyOf") {
        return options.iter().map(typescript).collect::<Vec<_>>().join(" | ");
    }
    match property.field("Type") {
        Some(Value::String(word)) if &**word == "array" => match property.field("Items") {
            Some(items) => format!("{}[]", typescript(items)),
            None => "any[]".into(),
        },
        Some(Value::String(word)) => one(word).into(),
        Some(Value::List(words)) => words.iter().filter_map(Value::as_str).map(one).collect::<Vec<_>>().join(" | "),
        _ => "any".into(),
    }
}
