//! Structured output: which tokens may come next.
//!
//! A [`GrammarFactory`] is made once per loaded model and is cheap until the first structured request, which builds a
//! trie of the vocabulary. A [`Grammar`] is the state of one request. White space between JSON tokens is at most a line
//! break with a little indentation, so that a small model can't fill its budget with it.
//!
//! Schemas are hostile: size and nesting are checked before they are parsed, and what they will cost before they are compiled
//! ([`weigh`]); compiling runs on a deep stack and with fuel, each step of an answer has fuel of its own, and a panic inside
//! is a failure of the request.

mod weigh;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{JsonCompileOptions, Matcher, ParserFactory};
use ollmlx_proto::limits::JSON_DEPTH_MAX;
use ollmlx_proto::{Failure, FailureKind, Format, JsonText, TokenId};
use serde_json::Value;

use crate::chat::on_deep_stack;
use crate::limits;
use crate::vocab::{TokenKind, Vocab};

/// At most one line break and some indentation, or one space.
const WHITESPACE: &str = r"[ ]|\n[ ]{0,16}";

/// Makes grammars for one vocabulary.
pub struct GrammarFactory {
    vocab: Arc<Vocab>,
    parsers: OnceLock<Result<ParserFactory, String>>,
}

/// Which tokens may come next in one answer.
pub struct Grammar {
    matcher: Matcher,
    vocab: Arc<Vocab>,
}

impl GrammarFactory {
    /// Builds nothing yet.
    #[must_use]
    pub fn new(vocab: Arc<Vocab>) -> Self {
        Self { vocab, parsers: OnceLock::new() }
    }

    /// The grammar of a format; `None` for text.
    ///
    /// # Errors
    /// `GrammarFailed` for a schema that is not JSON, too large, too deep, contradictory or unsupported.
    pub fn compile(&self, format: &Format) -> Result<Option<Grammar>, Failure> {
        let schema = match format {
            Format::Text => return Ok(None),
            Format::Json => serde_json::json!({ "type": "object" }),
            Format::JsonSchema(text) => schema(text)?,
        };
        let matcher = on_deep_stack(move || {
            catch_unwind(AssertUnwindSafe(|| {
                let parsers = self.parsers.get_or_init(|| parsers(&self.vocab)).as_ref().map_err(Clone::clone)?;
                matcher(parsers, schema)
            }))
            .unwrap_or_else(|_| Err("the schema can't be compiled".into()))
        })?;
        match matcher {
            Ok(matcher) => Ok(Some(Grammar { matcher, vocab: self.vocab.clone() })),
            Err(text) => Err(refused(&text)),
        }
    }
}

impl Grammar {
    /// Sets the logits of all tokens that may not come next to minus infinity. After the end, only ends of generation
    /// remain.
    ///
    /// # Errors
    /// `GrammarFailed` where the grammar ran out of its budget.
    pub fn mask(&mut self, logits: &mut [f32]) -> Result<(), Failure> {
        let matcher = &mut self.matcher;
        let mask = catch_unwind(AssertUnwindSafe(|| matcher.compute_mask_or_eos().map_err(|error| error.to_string())))
            .unwrap_or_else(|_| Err("the grammar failed".into()))
            .map_err(|text| exhausted(&text))?;
        for (id, logit) in logits.iter_mut().enumerate() {
            if id >= self.vocab.len() || !mask.get(id) {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    /// Takes the token that was chosen.
    ///
    /// # Errors
    /// `GrammarFailed` for a token that the mask did not allow; the grammar is of no use afterwards.
    pub fn accept(&mut self, token: TokenId) -> Result<(), Failure> {
        if token as usize >= self.vocab.len() {
            return Err(exhausted("a token outside the vocabulary"));
        }
        // The library takes nothing more once a value is complete, not even the end it allows.
        if self.matcher.is_stopped() && !self.matcher.is_error() && self.vocab.ends.contains(&token) {
            return Ok(());
        }
        let matcher = &mut self.matcher;
        catch_unwind(AssertUnwindSafe(|| matcher.consume_token(token).map_err(|error| error.to_string())))
            .unwrap_or_else(|_| Err("the grammar failed".into()))
            .map_err(|text| exhausted(&text))
    }

    /// Whether the value is complete and nothing can follow it.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.matcher.is_stopped()
    }
}

/// Parses a schema from a client.
fn schema(text: &JsonText) -> Result<Value, Failure> {
    if text.0.len() > limits::SCHEMA_BYTES_MAX {
        return Err(refused("the schema is too large"));
    }
    if depth(&text.0) > JSON_DEPTH_MAX {
        return Err(refused("the schema is nested too deeply"));
    }
    let mut value: Value = serde_json::from_str(&text.0).map_err(|_| refused("the schema is not JSON"))?;
    match &mut value {
        Value::Object(object) => {
            // The compiler's own switches are ours to set.
            object.shift_remove("x-guidance");
            weigh::check(&value).map_err(|text| refused(&format!("the schema is too costly: {text}")))?;
            Ok(value)
        }
        Value::Bool(true) => Ok(Value::Object(serde_json::Map::new())),
        _ => Err(refused("the schema must be an object")),
    }
}

/// How deeply brackets nest, strings left out.
fn depth(text: &str) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0usize, 0, false, false);
    for byte in text.bytes() {
        match (in_string, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => in_string = !in_string,
            (false, b'{' | b'[') => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            (false, b'}' | b']') => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

fn parsers(vocab: &Vocab) -> Result<ParserFactory, String> {
    let len = u32::try_from(vocab.len()).map_err(|_| "the vocabulary is too large".to_owned())?;
    let mut ends: Vec<TokenId> = vocab.ends.iter().copied().filter(|id| *id < len).collect();
    let main = vocab.eos.filter(|id| *id < len).or_else(|| ends.first().copied());
    let Some(main) = main else { return Err("this model has no end of generation".into()) };
    ends.retain(|id| *id != main);
    ends.insert(0, main);
    let words: Vec<Vec<u8>> = (0..vocab.len()).map(|id| word(vocab, id, &ends)).collect();
    let trie = TokTrie::from(&TokRxInfo::new(len, main), &words).with_eos_tokens(&ends);
    let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let mut factory = ParserFactory::new_simple(&environment).map_err(|error| error.to_string())?;
    factory.quiet();
    *factory.limits_mut() = ParserLimits {
        initial_lexer_fuel: limits::GRAMMAR_FUEL,
        step_lexer_fuel: limits::GRAMMAR_STEP_FUEL,
        step_max_items: limits::GRAMMAR_STEP_ITEMS_MAX,
        max_lexer_states: limits::GRAMMAR_STATES_MAX,
        max_grammar_size: limits::GRAMMAR_SYMBOLS_MAX,
        verbose_errors: false,
        ..ParserLimits::default()
    };
    Ok(factory)
}

/// A token's bytes for the trie: control tokens are marked, so that no text matches them.
fn word(vocab: &Vocab, id: usize, ends: &[TokenId]) -> Vec<u8> {
    let bytes = &vocab.bytes[id];
    let is_end = ends.iter().any(|end| *end as usize == id);
    match vocab.kinds.get(id) {
        Some(TokenKind::Text | TokenKind::UserDefined) if !is_end => {
            if bytes.len() > limits::GRAMMAR_TOKEN_BYTES_MAX || bytes.first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER) {
                return Vec::new();
            }
            bytes.clone()
        }
        Some(TokenKind::Unused) | None if !is_end => Vec::new(),
        _ => {
            let mut word = vec![TokTrie::SPECIAL_TOKEN_MARKER];
            word.extend(bytes.iter().take(limits::GRAMMAR_TOKEN_BYTES_MAX));
            word
        }
    }
}

fn matcher(parsers: &ParserFactory, mut schema: Value) -> Result<Matcher, String> {
    let options = JsonCompileOptions {
        whitespace_flexible: true,
        whitespace_pattern: Some(WHITESPACE.into()),
        ..JsonCompileOptions::default()
    };
    options.apply_to(&mut schema);
    let parser = parsers.create_parser(TopLevelGrammar::from_json_schema(schema)).map_err(|error| error.to_string())?;
    let mut matcher = Matcher::new(Ok(parser));
    // A schema that allows nothing shows only when it is used; better now than after a prefill.
    matcher.compute_mask_or_eos().map_err(|error| error.to_string())?;
    Ok(matcher)
}

fn refused(text: &str) -> Failure {
    let text: String = text.chars().take(300).collect();
    Failure::new(FailureKind::GrammarFailed, format!("the format was refused: {text}"))
}

fn exhausted(text: &str) -> Failure {
    Failure::new(FailureKind::GrammarFailed, "the output grammar failed")
        .with_detail(text.chars().take(2000).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: TokenId = 257;

    /// A token per byte, then two control tokens, the second the end.
    fn factory() -> GrammarFactory {
        let mut vocab = Vocab {
            bytes: (0..=255u8).map(|byte| vec![byte]).collect(),
            kinds: vec![TokenKind::Text; 256],
            eos: Some(END),
            ..Vocab::default()
        };
        for word in ["{\"", "<end>"] {
            vocab.bytes.push(word.as_bytes().to_vec());
            vocab.kinds.push(TokenKind::Control);
        }
        // As long as tokens of real vocabularies get, and longer; and one word twice.
        for word in [vec![b' '; 128], vec![b'a'; 500], vec![b'a'; 5000], b"{}".to_vec(), b"{}".to_vec()] {
            vocab.bytes.push(word);
            vocab.kinds.push(TokenKind::Text);
        }
        vocab.ends.insert(END);
        GrammarFactory::new(Arc::new(vocab))
    }

    fn compile(schema: &str) -> Result<Grammar, Failure> {
        factory().compile(&Format::JsonSchema(JsonText(schema.into()))).map(|grammar| grammar.expect("not text"))
    }

    fn allowed(grammar: &mut Grammar) -> Vec<TokenId> {
        let mut logits = vec![0.0; 270];
        grammar.mask(&mut logits).unwrap();
        (0..270).filter(|id| logits[*id as usize] == 0.0).collect()
    }

    /// Whether `text` followed by the end is let through.
    fn accepts(mut grammar: Grammar, text: &str) -> bool {
        for byte in text.bytes() {
            if !allowed(&mut grammar).contains(&TokenId::from(byte)) {
                return false;
            }
            grammar.accept(TokenId::from(byte)).unwrap();
        }
        allowed(&mut grammar).contains(&END)
    }

    #[test]
    fn text_has_no_grammar() {
        assert!(factory().compile(&Format::Text).unwrap().is_none());
    }

    #[test]
    fn json_is_an_object_with_little_space() {
        let json = || factory().compile(&Format::Json).unwrap().unwrap();
        assert!(accepts(json(), r#"{"a": [1, {"b": null}], "c": "é\n"}"#.replace("\\n", "\\u000a").as_str()));
        assert!(accepts(json(), "{\n  \"a\": 1\n}"));
        assert!(accepts(json(), "{}"));
        assert!(allowed(&mut json()).ends_with(&[261, 262]), "whole words");
        for bad in ["[1]", "{", "{\"a\"}", "x", "{\n\n", "{  \"a\":1}", "{\"a\":\n\n\n1}"] {
            assert!(!accepts(json(), bad), "{bad:?}");
        }
        // The control token that spells the beginning of an object is no way in.
        assert!(!allowed(&mut json()).contains(&256));
    }

    #[test]
    fn a_complete_value_ends() {
        let mut grammar = compile(r#"{"type":"object","properties":{"ok":{"type":"boolean"}},"required":["ok"],"additionalProperties":false}"#).unwrap();
        for byte in br#"{"ok":true"# {
            assert!(!grammar.is_done());
            grammar.accept(TokenId::from(*byte)).unwrap();
        }
        assert!(allowed(&mut grammar).contains(&125));
        grammar.accept(125).unwrap();
        assert!(allowed(&mut grammar).contains(&END));
        grammar.accept(END).unwrap();
        assert!(grammar.is_done());
        assert_eq!(allowed(&mut grammar), [END]);
    }

    #[test]
    fn tokens_outside_the_mask_are_failures() {
        for token in [TokenId::from(b'x'), 256, 100_000] {
            let mut grammar = factory().compile(&Format::Json).unwrap().unwrap();
            assert_eq!(grammar.accept(token).map_err(|failure| failure.kind), Err(FailureKind::GrammarFailed));
        }
    }

    #[test]
    fn references_resolve_or_fail() {
        let tree = r##"{"$defs":{"node":{"type":"object","properties":{"v":{"enum":[0,1]},"kids":{"type":"array","items":{"$ref":"#/$defs/node"},"maxItems":2}},"required":["v","kids"],"additionalProperties":false}},"$ref":"#/$defs/node"}"##;
        assert!(accepts(compile(tree).unwrap(), r#"{"v":0,"kids":[{"v":1,"kids":[]}]}"#));
        for schema in [
            r##"{"type":"object","properties":{"l":{"anyOf":[{"type":"string","maxLength":3},{"type":"array","items":{"$ref":"#/properties/l"},"maxItems":2}]}},"required":["l"],"additionalProperties":false}"##,
            r##"{"type":"object","properties":{"l":{"type":"array","items":[{"enum":["a"]}],"minItems":1,"maxItems":1},"m":{"$ref":"#/properties/l/items/0"}},"required":["l","m"],"additionalProperties":false}"##,
            r##"{"$ref":"#"}"##,
            r##"{"$ref":"https://example.com/schema"}"##,
        ] {
            match compile(schema) {
                Ok(mut grammar) => assert!(!allowed(&mut grammar).is_empty()),
                Err(failure) => assert_eq!(failure.kind, FailureKind::GrammarFailed, "{schema}"),
            }
        }
    }

    #[test]
    fn row_56_hostile_schemas_are_refused_soon() {
        let began = std::time::Instant::now();
        let pattern = |pattern: &str| {
            format!(r#"{{"type":"object","properties":{{"s":{{"type":"string","pattern":"{pattern}"}}}}}}"#)
        };
        let deep =
            format!("{}{{\"type\":\"null\"}}{}", "{\"type\":\"array\",\"items\":".repeat(20_000), "}".repeat(20_000));
        let cases = [
            deep,
            pattern(&format!("^{}a{}$", "(".repeat(50_000), ")".repeat(50_000))),
            pattern("^(a{1,1000}){1,1000}(b{1,1000}){1,1000}$"),
            pattern("(?=x)y"),
            r#"{"type":"array","items":{"type":"integer"},"minItems":100000000}"#.into(),
            r#"{"type":"nonsense"}"#.into(),
            "false".into(),
            "7".into(),
            "{".into(),
            String::new(),
        ];
        for schema in cases {
            let head: String = schema.chars().take(60).collect();
            match compile(&schema) {
                // What compiles must be usable.
                Ok(mut grammar) => assert!(!allowed(&mut grammar).is_empty(), "{head}"),
                Err(failure) => assert_eq!(failure.kind, FailureKind::GrammarFailed, "{head}"),
            }
        }
        assert!(compile("{").is_err() && compile("7").is_err() && compile("").is_err());
        assert!(began.elapsed() < std::time::Duration::from_secs(10), "{:?}", began.elapsed());
    }

    #[track_caller]
    fn too_costly(schema: &str) {
        let head: String = schema.chars().take(80).collect();
        let failure = compile(schema).err().unwrap_or_else(|| panic!("{head} was compiled"));
        assert_eq!(failure.kind, FailureKind::GrammarFailed, "{head}");
        assert!(failure.public.contains("too costly"), "{head}: {}", failure.public);
    }

    /// What stands for much more than it says is refused before anything is compiled.
    #[test]
    fn schemas_are_weighed_before_they_are_compiled() {
        let list = |count: usize, item: &dyn Fn(usize) -> String| (0..count).map(item).collect::<Vec<_>>().join(",");
        let union = |options: usize| {
            let option = |index| format!(r#"{{"type":"object","properties":{{"p{index}":{{"type":"string"}}}}}}"#);
            format!(r#"{{"anyOf":[{}]}}"#, list(options, &option))
        };
        // Each option of the one with each of the other.
        too_costly(&format!(r#"{{"allOf":[{},{},{}]}}"#, union(60), union(60), union(60)));
        let refer = |_| r##"{"$ref":"#/$defs/a"}"##.to_owned();
        too_costly(&format!(r#"{{"$defs":{{"a":{}}},"allOf":[{}]}}"#, union(10), list(8, &refer)));
        // A kilobyte whose patterns are compared with each other at each intersection.
        let named = list(30, &|index| format!(r#""^a{index}":{{}}"#));
        let pairs =
            format!(r#"{{"$defs":{{"a":{{"patternProperties":{{{named}}}}}}},"allOf":[{}]}}"#, list(20, &refer));
        assert!(pairs.len() < 1024, "{}", pairs.len());
        too_costly(&pairs);
        let own = list(100, &|index| format!(r#""^a{index}":{{}}"#));
        too_costly(&format!(r#"{{"patternProperties":{{{own}}}}}"#));
        too_costly(&format!(r#"{{"oneOf":[{}]}}"#, list(1000, &|index| format!(r#"{{"const":{index}}}"#))));
        too_costly(&format!(r#"{{"enum":[{}]}}"#, list(100_000, &|index| index.to_string())));
        let properties = |count| list(count, &|index| format!(r#""p{index}":{{"type":"null"}}"#));
        too_costly(&format!(r#"{{"type":"object","properties":{{{}}}}}"#, properties(10_000)));
        too_costly(&format!(r#"{{"type":"object","maxProperties":1,"properties":{{{}}}}}"#, properties(1_000)));
        let strings = list(2_000, &|index| format!(r#""p{index}":{{"type":"string","pattern":"a"}}"#));
        too_costly(&format!(r#"{{"type":"object","properties":{{{strings}}}}}"#));
        too_costly(&format!(r#"{{"type":"string","pattern":"{}"}}"#, "a".repeat(20_000)));
        // References that nest: each stands for two of the next.
        let chain = list(40, &|index| {
            let next = index + 1;
            format!(
                r##""d{index}":{{"type":"object","properties":{{"a":{{"$ref":"#/$defs/d{next}"}}}},"allOf":[{{"$ref":"#/$defs/d{next}"}},{{"$ref":"#/$defs/d{next}"}}]}}"##
            )
        });
        too_costly(&format!(r##"{{"$defs":{{{chain},"d40":{{"type":"null"}}}},"$ref":"#/$defs/d0"}}"##));
    }

    #[test]
    fn ordinary_schemas_are_not_too_costly() {
        let fields: Vec<String> = (0..300)
            .map(|index| {
                format!(r#""f{index}":{{"anyOf":[{{"type":"string"}},{{"type":"null"}}],"default":null,"title":"F"}}"#)
            })
            .collect();
        let fields = fields.join(",");
        let words: Vec<String> = (0..1_000).map(|index| format!(r#""word{index}""#)).collect();
        let words = words.join(",");
        for schema in [
            format!(r#"{{"type":"object","properties":{{{fields}}},"required":["f0"],"additionalProperties":false}}"#),
            format!(r#"{{"type":"string","enum":[{words}]}}"#),
            r##"{"$defs":{"base":{"type":"object","properties":{"id":{"type":"integer"},"name":{"type":"string"}},"required":["id"]}},"allOf":[{"$ref":"#/$defs/base"},{"type":"object","properties":{"age":{"type":"integer"}}}]}"##.to_owned(),
            r#"{"type":"object","properties":{"at":{"type":"string","format":"date-time"},"mail":{"type":"string","pattern":"^[a-z]+@[a-z]+$"}}}"#.to_owned(),
            r#"{"oneOf":[{"type":"object","properties":{"k":{"const":"a"}},"required":["k"]},{"type":"object","properties":{"k":{"const":"b"}},"required":["k"]}]}"#.to_owned(),
        ] {
            let head: String = schema.chars().take(80).collect();
            if let Err(failure) = compile(&schema) {
                panic!("{head}: {}", failure.public);
            }
        }
    }

    #[test]
    fn nesting_is_counted_outside_strings() {
        assert_eq!(depth(r#"{"a":["}]]\"[[["],"b":{}}"#), 2);
        let at = |levels: usize| format!("{}true{}", "{\"not\":".repeat(levels), "}".repeat(levels));
        assert!(compile(&at(JSON_DEPTH_MAX + 1)).is_err());
    }
}
