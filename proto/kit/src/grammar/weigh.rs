//! What a schema will cost to compile, estimated before it is compiled.
//!
//! The compiler has fuel for regular expressions and a limit on the size of the grammar, but none for what comes before:
//! `allOf`, `$ref` with siblings and the like are intersected, and an intersection copies. Of two unions each option of
//! the one is joined with a copy of each option of the other, so a kilobyte of schema can become gigabytes. It also
//! compares all patterns of an object with each other at every intersection. So the schema is weighed first: [`check`]
//! goes through it as the compiler does, with sizes in the place of schemas, always to the high side.

use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::limits::{
    SCHEMA_COPIES_MAX, SCHEMA_NODES_MAX, SCHEMA_PAIRS_MAX, SCHEMA_PATTERN_BYTES_MAX, SCHEMA_PATTERNS_MAX,
    SCHEMA_PROPERTIES_MAX,
};

/// Refuses a schema that costs too much.
///
/// # Errors
/// What there is too much of.
pub(super) fn check(schema: &Value) -> Result<(), String> {
    let mut scales = Scales { root: schema, references: HashMap::new(), cost: Cost::default() };
    let size = scales.schema(schema)?;
    scales.cost.pay(size)
}

/// How much of something there is in a schema.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    /// Schemas in it, itself included.
    nodes: u64,
    /// Those of them that have a regular expression.
    patterns: u64,
    /// Patterns of names of properties.
    names: u64,
}

impl Count {
    fn plus(self, other: Self) -> Self {
        Self {
            nodes: self.nodes.saturating_add(other.nodes),
            patterns: self.patterns.saturating_add(other.patterns),
            names: self.names.saturating_add(other.names),
        }
    }

    fn times(self, times: u64) -> Self {
        Self {
            nodes: self.nodes.saturating_mul(times),
            patterns: self.patterns.saturating_mul(times),
            names: self.names.saturating_mul(times),
        }
    }
}

/// The size of what a schema compiles to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size {
    /// A reference counts as one.
    plain: Count,
    /// A reference counts as what it stands for, as it does once it is intersected.
    full: Count,
    /// Of a union, references resolved.
    options: u64,
    /// Nodes of its largest part that a copy may multiply: an option, a property, the items of a list.
    widest: u64,
}

impl Size {
    const NODE: Count = Count { nodes: 1, patterns: 0, names: 0 };
    const ONE: Self = Self { plain: Self::NODE, full: Self::NODE, options: 1, widest: 1 };

    fn of(count: Count) -> Self {
        Self { plain: count, full: count, ..Self::ONE }
    }

    /// A union of this and another one.
    fn or(self, other: Self) -> Self {
        Self { options: self.options.saturating_add(other.options), ..self.beside(other) }
    }

    /// Both, as parts of one schema.
    fn beside(self, part: Self) -> Self {
        Self {
            plain: self.plain.plus(part.plain),
            full: self.full.plus(part.full),
            options: self.options,
            widest: self.widest.max(part.full.nodes),
        }
    }

    /// What a value must be that is to be both.
    fn and(self, other: Self) -> Self {
        let crossed = self.full.times(other.options).plus(other.full.times(self.options));
        // Where parts of the two meet, they are intersected in turn.
        let widest = self.widest.saturating_mul(other.widest);
        let met = self.widest.saturating_mul(other.full.nodes).min(other.widest.saturating_mul(self.full.nodes));
        let met = if self.widest > 1 && other.widest > 1 { met } else { 0 };
        let count = Count { nodes: crossed.nodes.saturating_add(met), ..crossed };
        Self { options: self.options.saturating_mul(other.options), widest: widest.min(count.nodes), ..Self::of(count) }
    }
}

/// What has been spent.
#[derive(Default)]
struct Cost {
    copies: u64,
    pairs: u64,
    patterns: u64,
    pattern_bytes: u64,
}

impl Cost {
    /// For what is compiled.
    fn pay(&mut self, size: Size) -> Result<(), String> {
        self.patterns = self.patterns.saturating_add(size.plain.patterns);
        if size.plain.nodes > SCHEMA_NODES_MAX {
            return Err(format!("it stands for more than {SCHEMA_NODES_MAX} schemas"));
        }
        if self.patterns > SCHEMA_PATTERNS_MAX {
            return Err(format!("it has more than {SCHEMA_PATTERNS_MAX} patterns and formats of strings"));
        }
        Ok(())
    }

    fn pay_pairs(&mut self, count: u64) -> Result<(), String> {
        self.pairs = self.pairs.saturating_add(count.saturating_mul(count) / 2);
        if self.pairs > SCHEMA_PAIRS_MAX {
            return Err("it has too many patternProperties to compare with each other".to_owned());
        }
        Ok(())
    }

    fn pay_copies(&mut self, count: u64) -> Result<(), String> {
        self.copies = self.copies.saturating_add(count);
        if self.copies > SCHEMA_COPIES_MAX {
            return Err("its allOf, anyOf and $ref combine to too many schemas".to_owned());
        }
        Ok(())
    }
}

struct Scales<'a> {
    root: &'a Value,
    /// Sizes of what references stand for; `None` while it is being weighed.
    references: HashMap<&'a str, Option<Size>>,
    cost: Cost,
}

impl<'a> Scales<'a> {
    /// Nesting was bounded before; a chain of references is as deep as there are references, on a deep stack.
    fn schema(&mut self, schema: &'a Value) -> Result<Size, String> {
        let Value::Object(object) = schema else { return Ok(Size::ONE) };
        let mut parts: Vec<Size> = Vec::new();
        if let Some(own) = self.own(object)? {
            parts.push(own);
        }
        if let Some(value) = object.get("const") {
            parts.push(constant(value));
        }
        if let Some(values) = object.get("enum").and_then(Value::as_array) {
            let union = values.iter().map(constant).reduce(Size::or);
            parts.extend(union);
        }
        for word in ["anyOf", "oneOf"] {
            let Some(options) = object.get(word).and_then(Value::as_array) else { continue };
            if word == "oneOf" {
                // Each is compared with each.
                self.cost.pay_copies((options.len() as u64).saturating_pow(2) / 2)?;
            }
            parts.extend(self.each(options)?.into_iter().reduce(Size::or));
        }
        if let Some(all) = object.get("allOf").and_then(Value::as_array) {
            parts.append(&mut self.each(all)?);
        }
        if let Some(reference) = object.get("$ref").and_then(Value::as_str) {
            parts.push(Size { plain: Size::NODE, ..self.reference(reference)? });
        }
        let mut parts = parts.into_iter();
        let Some(mut whole) = parts.next() else { return Ok(Size::ONE) };
        for part in parts {
            whole = whole.and(part);
            self.cost.pay_copies(whole.full.nodes)?;
            self.cost.pay_pairs(whole.full.names)?;
        }
        Ok(whole)
    }

    /// Of the words that say what values of one type look like.
    fn own(&mut self, object: &'a Map<String, Value>) -> Result<Option<Size>, String> {
        const ABOUT_OTHERS: [&str; 13] = [
            "const",
            "enum",
            "anyOf",
            "oneOf",
            "allOf",
            "$ref",
            "$defs",
            "definitions",
            "title",
            "description",
            "default",
            "examples",
            "$schema",
        ];
        if object.keys().all(|word| ABOUT_OTHERS.contains(&word.as_str())) {
            return Ok(None);
        }
        // A union of types, of which each meets its own kind only.
        let types = match object.get("type") {
            Some(Value::String(_)) => 1,
            Some(Value::Array(types)) => (types.len() as u64).max(1),
            _ => 6,
        };
        let mut size = Size::of(Size::NODE.times(types));
        for word in ["properties", "patternProperties"] {
            let Some(properties) = object.get(word).and_then(Value::as_object) else { continue };
            let count = properties.len() as u64;
            let bounded = object.contains_key("minProperties") || object.contains_key("maxProperties");
            // With a bound on their number each is written out beside all the others.
            self.cost.pay_copies(if bounded { count.saturating_mul(count) } else { 0 })?;
            if count > SCHEMA_PROPERTIES_MAX {
                return Err(format!("an object has more than {SCHEMA_PROPERTIES_MAX} properties"));
            }
            for part in self.each(properties.values())? {
                size = size.beside(part);
            }
            if word == "patternProperties" {
                self.cost.pay_pairs(count)?;
                size = size.beside(Size::of(Count { names: count, ..Count::default() }));
                properties.keys().try_for_each(|pattern| self.pattern(pattern))?;
            }
        }
        for word in ["additionalProperties", "items", "additionalItems"] {
            match object.get(word) {
                Some(Value::Array(items)) => {
                    size = self.each(items)?.into_iter().fold(size, Size::beside);
                }
                Some(other) => size = size.beside(self.schema(other)?),
                None => {}
            }
        }
        if let Some(items) = object.get("prefixItems").and_then(Value::as_array) {
            size = self.each(items)?.into_iter().fold(size, Size::beside);
        }
        if let Some(pattern) = object.get("pattern").and_then(Value::as_str) {
            self.pattern(pattern)?;
        }
        let patterns = ["pattern", "format"].iter().filter(|word| object.contains_key(**word)).count() as u64;
        Ok(Some(size.beside(Size::of(Count { patterns, ..Count::default() }))))
    }

    fn each(&mut self, schemas: impl IntoIterator<Item = &'a Value>) -> Result<Vec<Size>, String> {
        schemas.into_iter().map(|schema| self.schema(schema)).collect()
    }

    fn pattern(&mut self, pattern: &str) -> Result<(), String> {
        self.cost.pattern_bytes += pattern.len() as u64;
        if self.cost.pattern_bytes > SCHEMA_PATTERN_BYTES_MAX {
            return Err(format!("its patterns have more than {SCHEMA_PATTERN_BYTES_MAX} bytes"));
        }
        Ok(())
    }

    fn reference(&mut self, reference: &'a str) -> Result<Size, String> {
        match self.references.get(reference) {
            Some(Some(known)) => return Ok(*known),
            // It refers to itself.
            Some(None) => return Ok(Size::ONE),
            None => {}
        }
        let target = reference.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer));
        // What is elsewhere is refused by the compiler.
        let Some(target) = target else { return Ok(Size::ONE) };
        self.references.insert(reference, None);
        let size = self.schema(target)?;
        self.cost.pay(size)?;
        self.references.insert(reference, Some(size));
        Ok(size)
    }
}

fn constant(value: &Value) -> Size {
    match value {
        Value::Array(items) => items.iter().map(constant).fold(Size::ONE, Size::beside),
        Value::Object(object) => object.values().map(constant).fold(Size::ONE, Size::beside),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Size::ONE,
    }
}
