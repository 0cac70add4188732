//! What Jinja's values may cost: memory and time of a render are bounded, not only its steps.
//!
//! The engine charges fuel for every step, every byte of text and every slot of a list that it makes. What it can't know
//! is how much a value *unfolds* to: a list that holds another one twice, which holds a third one twice, takes a few
//! steps to build, and prints, compares and sorts as if it had been written out. A namespace that holds itself unfolds
//! for ever. So a template runs with more instructions than it was written with ([`compile`]):
//!
//! - after each one that makes a list or a map, its unfolded size is counted, charged for, and refused beyond
//!   [`TEMPLATE_VALUE_NODES_MAX`], [`TEMPLATE_VALUE_DEPTH_MAX`] and [`RENDERED_BYTES_MAX`];
//! - before each one that reads values through and through, what it reads is charged for;
//! - nothing is assigned to a namespace that holds a namespace, so that no value ever holds itself.
//!
//! The functions that do this have names that no template can spell. Uses the engine's unstable interface to its
//! instructions, so its version is pinned.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;

use minijinja::machinery::{CompiledTemplate, Instruction, Instructions, TemplateConfig};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Object, ObjectRepr, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value};

use super::charges;
use crate::limits::{RENDERED_BYTES_MAX, TEMPLATE_SMALL_BYTES, TEMPLATE_VALUE_DEPTH_MAX, TEMPLATE_VALUE_NODES_MAX};

/// Bytes that one step pays for, as in the engine.
pub(super) const STEP_BYTES: usize = 64;
/// Values looked at that one step pays for.
const STEP_NODES: usize = 4;
/// A key of every namespace, by which one is known.
const NAMESPACE_MARK: &str = "\0namespace";
/// A key of every loop, which holds what it iterates over.
const LOOP_MARK: &str = "revindex0";

const MADE: &str = "\0made";
const READ: &str = "\0read";
const READ_ITEMS: &str = "\0read items";
const KEPT: &str = "\0kept";
const CONCAT: &str = "\0concat";
const FILTER: &str = "\0filter";
const TEST: &str = "\0test";
const METHOD: &str = "\0method";

/// Filters that look at no more than the items of what they are given, for which the engine charges.
const SHALLOW_FILTERS: [&str; 23] = [
    "abs",
    "attr",
    "batch",
    "bool",
    "count",
    "d",
    "default",
    "first",
    "float",
    "int",
    "items",
    "last",
    "length",
    "list",
    "reject",
    "rejectattr",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "tojson",
];
/// Tests that look at a value's kind, or at a number.
const SHALLOW_TESTS: [&str; 20] = [
    "boolean", "callable", "defined", "escaped", "even", "false", "filter", "float", "int", "integer", "iterable",
    "mapping", "none", "number", "odd", "safe", "sameas", "sequence", "string", "true",
];

/// Compiles a template into bounded instructions.
///
/// # Errors
/// It does not parse, or passes arguments as Python's `*` does.
pub(super) fn compile<'a>(source: &'a str, syntax: SyntaxConfig) -> Result<CompiledTemplate<'a>, Error> {
    let config = TemplateConfig { syntax_config: syntax, default_auto_escape: Arc::new(|_| AutoEscape::None) };
    let mut template = CompiledTemplate::new("<string>", source, &config)?;
    template.instructions = bounded(&template.instructions)?;
    for block in template.blocks.values_mut() {
        *block = bounded(block)?;
    }
    Ok(template)
}

/// A function that is given its arguments as they are, keywords among them.
struct Raw<F>(F);

impl<F> fmt::Debug for Raw<F> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("function")
    }
}

impl<F> Object for Raw<F>
where
    F: Fn(&mut State<'_, '_>, &[Value]) -> Result<Value, Error> + Send + Sync + 'static,
{
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        self.0(state, args)
    }
}

fn raw<F>(function: F) -> Value
where
    F: Fn(&mut State<'_, '_>, &[Value]) -> Result<Value, Error> + Send + Sync + 'static,
{
    Value::from_object(Raw(function))
}

/// Adds what [`compile`] calls, and takes away what prints more than it is given.
pub(super) fn equip(environment: &mut Environment<'_>) {
    environment.remove_global("debug");
    let built_in = environment.globals().find(|(name, _)| *name == "namespace").map(|(_, value)| value);
    if let Some(built_in) = built_in {
        environment.add_global("namespace", raw(move |state, args| namespace(&built_in, state, args)));
    }
    environment.add_global(MADE, raw(|state, args| made(state, args).map(Value::from)));
    environment.add_global(READ, raw(|state, args| read_all(state, args).map(Value::from)));
    environment.add_global(READ_ITEMS, raw(|state, args| read_items(state, args).map(Value::from)));
    environment.add_global(KEPT, raw(kept));
    environment.add_global(CONCAT, raw(concat));
    environment.add_global(
        FILTER,
        raw(|state, args| {
            let (name, args) = named(args);
            charges::filter(state, name, args)?;
            state.apply_filter(name, args)
        }),
    );
    environment.add_global(
        TEST,
        raw(|state, args| {
            let (name, args) = named(args);
            read_all(state, args)?;
            state.perform_test(name, args).map(Value::from)
        }),
    );
    environment.add_global(
        METHOD,
        raw(|state, args| {
            let (name, args) = named(args);
            charges::method(state, name, args)?;
            let Some((object, args)) = args.split_first() else { return Err(ErrorKind::UnknownMethod.into()) };
            object.call_method(state, name, args)
        }),
    );
}

/// What is called comes last, as it is put on the stack last.
fn named(args: &[Value]) -> (&str, &[Value]) {
    args.split_last().map_or(("", args), |(name, args)| (name.as_str().unwrap_or_default(), args))
}

fn made(state: &State<'_, '_>, args: &[Value]) -> Result<(), Error> {
    for value in args.iter().filter(|value| value.as_object().is_some()) {
        state.consume_fuel((Size::of(value, Reads::Any)?.nodes / STEP_NODES) as u64)?;
    }
    Ok(())
}

fn read_all(state: &State<'_, '_>, args: &[Value]) -> Result<(), Error> {
    args.iter().try_for_each(|value| read(state, value))
}

/// Of the right side of `in`: a key of a map and a part of a text are found without reading the rest, or charged for.
fn read_items(state: &State<'_, '_>, args: &[Value]) -> Result<(), Error> {
    let is_list = |value: &&Value| matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable);
    args.iter().filter(is_list).try_for_each(|value| read(state, value))
}

/// The `~` operator.
fn concat(state: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
    let [left, right] = args else { return Err(invalid("~ joins two values")) };
    for value in [left, right].into_iter().filter(|value| value.as_object().is_some()) {
        read(state, value)?;
    }
    Ok(Value::from(match (left.as_str(), right.as_str()) {
        (Some(left), Some(right)) => [left, right].concat(),
        _ => format!("{left}{right}"),
    }))
}

/// Pays for reading a value through.
pub(super) fn read(state: &State<'_, '_>, value: &Value) -> Result<(), Error> {
    let size = match value.as_str() {
        Some(text) => Size { nodes: 0, bytes: text.len() },
        None if value.as_object().is_none() => return Ok(()),
        None => Size::of(value, Reads::Any)?,
    };
    state.consume_fuel((size.nodes / STEP_NODES + size.bytes / STEP_BYTES) as u64)
}

/// Bytes of a value where it is written out, at least.
pub(super) fn bytes(value: &Value) -> Result<usize, Error> {
    Size::of(value, Reads::Any).map(|size| size.bytes.saturating_add(size.nodes))
}

/// Whether reading it through costs next to nothing.
pub(super) fn is_small(value: &Value) -> bool {
    value.as_object().is_none() && value.as_str().is_none_or(|text| text.len() <= TEMPLATE_SMALL_BYTES)
}

/// Which values a count accepts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reads {
    Any,
    /// None that holds something other than what it shows.
    Plain,
}

/// What a value is when it is written out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Size {
    nodes: usize,
    bytes: usize,
}

impl Size {
    fn of(value: &Value, reads: Reads) -> Result<Self, Error> {
        let mut size = Self::default();
        size.add(value, reads, 0)?;
        Ok(size)
    }

    /// Recurses as deep as values may nest.
    fn add(&mut self, value: &Value, reads: Reads, depth: usize) -> Result<(), Error> {
        self.nodes += 1;
        self.bytes += value.as_str().map_or(0, str::len);
        if self.nodes > TEMPLATE_VALUE_NODES_MAX || self.bytes > RENDERED_BYTES_MAX {
            return Err(invalid("a value is too large"));
        }
        if value.as_object().is_none() {
            return Ok(());
        }
        if depth >= TEMPLATE_VALUE_DEPTH_MAX {
            return Err(invalid("a value is nested too deeply"));
        }
        match value.kind() {
            ValueKind::Map => {
                if reads == Reads::Plain && (has(value, NAMESPACE_MARK) || has(value, LOOP_MARK)) {
                    return Err(invalid("a namespace can't hold a namespace or a loop"));
                }
                for key in value.try_iter()? {
                    let item = value.get_item(&key)?;
                    self.add(&key, reads, depth + 1)?;
                    self.add(&item, reads, depth + 1)?;
                }
            }
            ValueKind::Iterable if reads == Reads::Plain => {
                return Err(invalid("a namespace can't hold this: make it a list first"));
            }
            ValueKind::Seq | ValueKind::Iterable => {
                for item in value.try_iter()? {
                    self.add(&item, reads, depth + 1)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn has(map: &Value, key: &str) -> bool {
    map.get_attr(key).is_ok_and(|value| !value.is_undefined())
}

fn invalid(text: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, text)
}

/// What a namespace is given: it holds no namespace, be it out of sight.
fn kept(state: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
    let value = args.first().cloned().unwrap_or_default();
    if value.as_object().is_none() {
        return Ok(value);
    }
    let value = match value.kind() {
        // What it is made of is not to be seen.
        ValueKind::Iterable => {
            state.consume_fuel((Size::of(&value, Reads::Any)?.nodes / STEP_NODES) as u64)?;
            Value::from(value.try_iter()?.collect::<Vec<_>>())
        }
        _ => value,
    };
    state.consume_fuel((Size::of(&value, Reads::Plain)?.nodes / STEP_NODES) as u64)?;
    Ok(value)
}

fn namespace(built_in: &Value, state: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
    let mut pairs = vec![(Value::from(NAMESPACE_MARK), Value::from(true))];
    if let Some(given) = args.first() {
        if given.kind() != ValueKind::Map {
            return Err(invalid("a namespace is made of a map or of keyword arguments"));
        }
        for key in given.try_iter()? {
            let item = given.get_item(&key)?;
            pairs.push((key, item));
        }
    }
    built_in.call(state, &[pairs.into_iter().collect::<BTreeMap<_, _>>().into()])
}

/// The same instructions with those that bound them.
fn bounded<'a>(plain: &Instructions<'a>) -> Result<Instructions<'a>, Error> {
    let mut bounded = Instructions::new(plain.name(), plain.source());
    let targets = targets(plain);
    // Where each instruction is now, with what goes before it.
    let mut places = Vec::new();
    let mut index = 0;
    let mut end = 0;
    while let Some(instruction) = plain.get(index) {
        places.push(end);
        // What is on top of the stack, if one instruction alone can have put it there.
        let top = index.checked_sub(1).filter(|_| !targets.contains(&index)).and_then(|before| plain.get(before));
        for instruction in around(instruction, top)? {
            end = 1 + match (plain.get_span(index), plain.get_line(index)) {
                (Some(span), _) => bounded.add_with_span(instruction, span),
                (None, Some(line)) => bounded.add_with_line(instruction, u16::try_from(line).unwrap_or(u16::MAX)),
                (None, None) => bounded.add(instruction),
            };
        }
        index += 1;
    }
    places.push(end);
    for index in 0..end {
        if let Some(target) = bounded.get_mut(index).and_then(target) {
            *target = places.get(*target as usize).copied().unwrap_or(*target);
        }
    }
    Ok(bounded)
}

/// Where an instruction may go on.
fn target<'i>(instruction: &'i mut Instruction<'_>) -> Option<&'i mut u32> {
    match instruction {
        Instruction::Iterate(target)
        | Instruction::Jump(target)
        | Instruction::JumpIfFalse(target)
        | Instruction::JumpIfFalseOrPop(target)
        | Instruction::JumpIfTrueOrPop(target)
        | Instruction::BuildMacro(_, target, _) => Some(target),
        _ => None,
    }
}

fn targets(plain: &Instructions<'_>) -> HashSet<u32> {
    let all = (0..).map_while(|index| plain.get(index));
    all.filter_map(|instruction| target(&mut instruction.clone()).copied()).collect()
}

/// Whether a filter looks at no more than the engine charges for: not where items are compared with an argument.
fn is_shallow(filter: &str, args: Option<u16>) -> bool {
    let with_test = match filter {
        "select" | "reject" => 3,
        "selectattr" | "rejectattr" => 4,
        _ => u16::MAX,
    };
    SHALLOW_FILTERS.contains(&filter) && args.is_some_and(|args| args < with_test)
}

/// One instruction, and what it needs before and after.
fn around<'a>(instruction: &Instruction<'a>, top: Option<&Instruction<'a>>) -> Result<Vec<Instruction<'a>>, Error> {
    let own = instruction.clone();
    let shown = |name| [Instruction::DupTop, Instruction::CallFunction(name, Some(1)), Instruction::DiscardTop];
    let made = |own| Ok([own].into_iter().chain(shown(MADE)).collect());
    let called = |function, name, count: &Option<u16>| match count {
        Some(count) => {
            let name = Instruction::LoadConst(Value::from(name));
            let call = Instruction::CallFunction(function, Some(count + 1));
            Ok([name, call].into_iter().chain(shown(MADE)).collect())
        }
        None => {
            Err(invalid("unpacked arguments (*) of filters, tests and methods are not supported in chat templates"))
        }
    };
    let is_const = matches!(top, Some(Instruction::LoadConst(value)) if is_small(value));
    match instruction {
        Instruction::StringConcat => Ok(vec![Instruction::CallFunction(CONCAT, Some(2))]),
        Instruction::In => {
            let right = shown(READ_ITEMS).into_iter().chain([Instruction::Swap]);
            Ok(right.chain(shown(READ)).chain([Instruction::Swap, own]).collect())
        }
        // With one small operand there is little to compare.
        Instruction::Eq
        | Instruction::Ne
        | Instruction::Gt
        | Instruction::Gte
        | Instruction::Lt
        | Instruction::Lte
        | Instruction::CompareAndPreserve(_)
            if !is_const =>
        {
            let other = [Instruction::Swap].into_iter().chain(shown(READ)).chain([Instruction::Swap]);
            Ok(shown(READ).into_iter().chain(other).chain([own]).collect())
        }
        Instruction::GetItem if !is_const => Ok(shown(READ).into_iter().chain([own]).collect()),
        Instruction::SetAttr(_) => {
            Ok(vec![Instruction::Swap, Instruction::CallFunction(KEPT, Some(1)), Instruction::Swap, own])
        }
        Instruction::ApplyFilter(name, count, _) if !is_shallow(name, *count) => called(FILTER, *name, count),
        Instruction::PerformTest(name, count, _) if !SHALLOW_TESTS.contains(name) => called(TEST, *name, count),
        Instruction::CallMethod(name, count) => called(METHOD, *name, count),
        Instruction::ApplyFilter(..)
        | Instruction::BuildList(_)
        | Instruction::BuildTuple(_)
        | Instruction::BuildMap(_)
        | Instruction::Add
        | Instruction::Mul
        | Instruction::CallFunction(..)
        | Instruction::CallObject(_) => made(own),
        _ => Ok(vec![own]),
    }
}
