//! Ollama's `options`: defaults, types and bounds (`docs/conformance.md`, Options).
//!
//! The request's options go over the model's parameters, those over the table of defaults. A wrong type is
//! Ollama's 500; an unknown key or `null` is ignored; a number that makes no sense is brought to the nearest one that
//! does, so that no engine ever sees it.

use crate::limits::{
    BATCH_TOKENS_MAX, CONTEXT_TOKENS_MAX, CONTEXT_TOKENS_MIN, MEMORY_LIMIT_BYTES_MIN, PRIORITY_MAX,
    STOP_STRING_BYTES_MAX, STOP_STRINGS_MAX,
};
use ollmlx_proto::Sampling;
use ollmlx_proto::memory::{MODEL_LIMIT_RULE, parse_model_limit};
use serde_json::{Map, Value};

use super::Rejection;
use super::json::{JsonKind, RawJson};

/// The options that are read; every other one is skipped.
const NAMES: &[&str] = &[
    "draft_num_predict",
    "frequency_penalty",
    "main_gpu",
    "min_p",
    "num_batch",
    "num_ctx",
    "num_gpu",
    "num_keep",
    "num_predict",
    "num_thread",
    "ollmlx_memory_limit",
    "ollmlx_priority",
    "presence_penalty",
    "repeat_last_n",
    "repeat_penalty",
    "seed",
    "stop",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "use_mmap",
];

/// The options of a request, as far as they are known. What is no option by its type alone is as empty as it can be.
pub(super) fn read(options: Option<RawJson<'_>>) -> Result<Map<String, Value>, Rejection> {
    let mut known = Map::new();
    for (key, value) in options.into_iter().flat_map(RawJson::entries) {
        let key = key.name();
        let Some(name) = NAMES.iter().find(|name| *name.as_bytes() == *key) else { continue };
        let value = match value.kind() {
            JsonKind::Array if *name == "stop" => stop_strings(value.elements())?,
            JsonKind::Array => Value::Array(Vec::new()),
            JsonKind::Object => Value::Object(Map::new()),
            _ => value.value()?,
        };
        known.insert((*name).to_owned(), value);
    }
    Ok(known)
}

/// Stop strings, and no more of them than it takes to see that there are too many; nothing is in the place of whatever
/// isn't a text.
pub(super) fn stop_strings<'a>(list: impl Iterator<Item = RawJson<'a>>) -> Result<Value, Rejection> {
    let said = list.filter(|element| !element.is_empty_text()).take(STOP_STRINGS_MAX + 1);
    let value = |element: RawJson<'_>| match element.kind() {
        JsonKind::String => element.value(),
        _ => Ok(Value::Null),
    };
    said.map(value).collect::<Result<_, _>>().map(Value::Array)
}

/// Options about room and effort, in range. `None` is "choose for me".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// Tokens of the window.
    pub num_ctx: Option<u32>,
    /// Most tokens to generate: -1 without end, -2 until the window is full; `None` where nobody said.
    pub num_predict: Option<i64>,
    /// Tokens at the start that a slide never drops; -1 is all of the prompt.
    pub num_keep: i32,
    /// Threads.
    pub num_thread: Option<u16>,
    /// Layers on an accelerator.
    pub num_gpu: Option<i32>,
    /// Tokens of one pass.
    pub num_batch: Option<u32>,
}

impl Window {
    /// The cap on generated tokens; `None` is until the model ends or the window is full. Zero becomes one, the
    /// shortest answer there is.
    #[must_use]
    pub fn max_tokens(&self) -> Option<u32> {
        let asked = self.num_predict.filter(|count| *count >= 0)?;
        Some(u32::try_from(asked).unwrap_or(u32::MAX).max(1))
    }
}

/// Request over model over defaults.
struct Layers<'a> {
    request: &'a Map<String, Value>,
    model: &'a Map<String, Value>,
}

impl<'a> Layers<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        let of = |map: &'a Map<String, Value>| map.get(key).filter(|value| !value.is_null());
        of(self.request).or_else(|| of(self.model))
    }

    /// A whole number; fractions are cut, what doesn't fit is brought to the nearest that does.
    fn integer(&self, key: &str) -> Result<Option<i64>, Rejection> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let Value::Number(number) = value else { return Err(wrong_type(key, "integer")) };
        let cut = number.as_i64().or_else(|| number.as_f64().map(|float| float as i64));
        cut.map(Some).ok_or_else(|| wrong_type(key, "integer"))
    }

    fn float(&self, key: &str, default: f32, range: (f32, f32)) -> Result<f32, Rejection> {
        let Some(value) = self.get(key) else { return Ok(default) };
        let Some(number) = value.as_f64() else { return Err(wrong_type(key, "float32")) };
        if number.is_nan() {
            return Ok(default);
        }
        Ok((number as f32).clamp(range.0, range.1))
    }

    /// The limit of a model, in bytes, bare or with a unit.
    fn limit(&self, key: &str) -> Result<Option<u64>, Rejection> {
        let bytes = match self.get(key) {
            None => return Ok(None),
            Some(Value::Number(number)) if number.is_u64() => {
                number.as_u64().filter(|bytes| *bytes >= MEMORY_LIMIT_BYTES_MIN)
            }
            Some(Value::String(text)) => parse_model_limit(text),
            Some(_) => return Err(wrong_type(key, "bytes")),
        };
        let refused = || Rejection::bad_request(format!("option \"{key}\" must be {MODEL_LIMIT_RULE}"));
        bytes.map(Some).ok_or_else(refused)
    }

    fn check_boolean(&self, key: &str) -> Result<(), Rejection> {
        match self.get(key) {
            None | Some(Value::Bool(_)) => Ok(()),
            Some(_) => Err(wrong_type(key, "boolean")),
        }
    }

    fn stop(&self) -> Result<Vec<String>, Rejection> {
        let mut stop = match self.get("stop") {
            None => Vec::new(),
            Some(Value::String(text)) => vec![text.clone()],
            Some(Value::Array(values)) => values
                .iter()
                .map(|value| value.as_str().map(str::to_owned))
                .collect::<Option<Vec<_>>>()
                .ok_or_else(|| Rejection::internal("option \"stop\" must be of an array of strings"))?,
            Some(_) => return Err(wrong_type("stop", "array")),
        };
        stop.retain(|text| !text.is_empty());
        if stop.len() > STOP_STRINGS_MAX {
            return Err(Rejection::bad_request(format!("too many stop strings: at most {STOP_STRINGS_MAX}")));
        }
        if stop.iter().any(|text| text.len() > STOP_STRING_BYTES_MAX) {
            return Err(Rejection::bad_request(format!("stop string too long: at most {STOP_STRING_BYTES_MAX} bytes")));
        }
        Ok(stop)
    }
}

fn wrong_type(key: &str, wanted: &str) -> Rejection {
    Rejection::internal(format!("option \"{key}\" must be of type {wanted}"))
}

/// A number brought into a range that fits 32 bits.
fn bounded(number: i64, low: i32, high: i32) -> i32 {
    i32::try_from(number.clamp(i64::from(low), i64::from(high))).unwrap_or(high)
}

/// A count in a range; zero and less are "choose for me".
fn chosen(number: Option<i64>, low: u32, high: u32) -> Option<u32> {
    let number = number.filter(|number| *number > 0)?;
    u32::try_from(number.clamp(i64::from(low), i64::from(high))).ok()
}

/// Resolves the options of a request. `seed` is for an absent or negative one; `openai_defaults` makes an absent
/// `temperature` or `top_p` 1.0, whatever the model's parameters say.
///
/// # Errors
/// 500 for a wrong type (Ollama's, clients know it), 400 for too many or too long stop strings.
pub fn sampling(
    options: &Map<String, Value>,
    params: &Map<String, Value>,
    openai_defaults: bool,
    seed: u64,
) -> Result<(Sampling, Vec<String>, Window), Rejection> {
    let layers = Layers { request: options, model: params };
    let none = Map::new();
    let spread = if openai_defaults { Layers { request: options, model: &none } } else { Layers { ..layers } };
    let (temperature, top_p) = if openai_defaults { (1.0, 1.0) } else { (0.8, 0.9) };
    let look_back = layers.integer("repeat_last_n")?.unwrap_or(64);
    let context_max = i32::try_from(CONTEXT_TOKENS_MAX).unwrap_or(i32::MAX);
    let own_seed = layers.integer("seed")?.and_then(|given| u64::try_from(given).ok());
    let sampling = Sampling {
        seed: own_seed.unwrap_or(seed),
        seeded: own_seed.is_some(),
        temperature: spread.float("temperature", temperature, (0.0, 1e6))?,
        top_k: bounded(layers.integer("top_k")?.unwrap_or(40), 0, i32::MAX).unsigned_abs(),
        top_p: spread.float("top_p", top_p, (0.0, 1.0))?,
        min_p: layers.float("min_p", 0.0, (0.0, 1.0))?,
        typical_p: layers.float("typical_p", 1.0, (0.0, 1.0))?,
        // It divides logits, so it must stay away from 0.
        repeat_penalty: layers.float("repeat_penalty", 1.0, (0.01, 100.0))?,
        repeat_last_n: bounded(look_back, -1, context_max),
        presence_penalty: layers.float("presence_penalty", 0.0, (-100.0, 100.0))?,
        frequency_penalty: layers.float("frequency_penalty", 0.0, (-100.0, 100.0))?,
    };
    let window = Window {
        num_ctx: chosen(layers.integer("num_ctx")?, CONTEXT_TOKENS_MIN, CONTEXT_TOKENS_MAX),
        num_predict: layers.integer("num_predict")?.map(|count| i64::from(bounded(count, -2, i32::MAX))),
        num_keep: bounded(layers.integer("num_keep")?.unwrap_or(4), -1, context_max),
        num_thread: chosen(layers.integer("num_thread")?, 1, 1024).and_then(|count| u16::try_from(count).ok()),
        num_gpu: layers.integer("num_gpu")?.filter(|count| *count >= 0).map(|count| bounded(count, 0, i32::MAX)),
        num_batch: chosen(layers.integer("num_batch")?, 1, BATCH_TOKENS_MAX),
    };
    // Known to Ollama and without effect here; their types are checked all the same.
    layers.integer("main_gpu")?;
    layers.integer("draft_num_predict")?;
    layers.check_boolean("use_mmap")?;
    Ok((sampling, layers.stop()?, window))
}

/// What a model may take, and who makes room first. A request can lower both and raise neither.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Bytes.
    pub memory_limit: Option<u64>,
    /// Models of a lower one make room first; 0 is usual.
    pub priority: i32,
}

/// Resolves `ollmlx_memory_limit` and `ollmlx_priority`: the request's over the model's, and what an administrator set for
/// this model over that.
///
/// # Errors
/// 500 for a wrong type, as for every option; 400 for a limit that is none.
pub fn share(
    options: &Map<String, Value>,
    params: &Map<String, Value>,
    (set_limit, set_priority): (Option<u64>, Option<i32>),
) -> Result<Share, Rejection> {
    let none = Map::new();
    let of = |request| Layers { request, model: &none };
    let (asked, own) = (of(options), of(params));
    let limits = [set_limit, asked.limit("ollmlx_memory_limit")?, own.limit("ollmlx_memory_limit")?];
    let priority = |layers: &Layers<'_>| -> Result<Option<i32>, Rejection> {
        let number = layers.integer("ollmlx_priority")?;
        Ok(number.map(|number| bounded(number, -PRIORITY_MAX, PRIORITY_MAX)))
    };
    let usual = set_priority.or(priority(&own)?).unwrap_or(0);
    Ok(Share {
        memory_limit: limits.into_iter().flatten().min(),
        priority: priority(&asked)?.map_or(usual, |asked| asked.min(usual)),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn resolve(options: Value, params: Value) -> Result<(Sampling, Vec<String>, Window), Rejection> {
        let (Value::Object(options), Value::Object(params)) = (options, params) else { panic!("objects") };
        sampling(&options, &params, false, 7)
    }

    #[test]
    fn defaults_are_ollamas() {
        let (sampling, stop, window) = resolve(json!({"mirostat": "x", "top_k": null}), json!({})).unwrap();
        let expected = Sampling {
            seed: 7,
            seeded: false,
            temperature: 0.8,
            top_k: 40,
            top_p: 0.9,
            min_p: 0.0,
            typical_p: 1.0,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
        };
        assert_eq!(sampling, expected);
        assert!(stop.is_empty());
        assert_eq!(window, Window { num_keep: 4, ..Window::default() });
    }

    #[test]
    fn request_goes_over_model_and_floats_are_cut() {
        let params = json!({"temperature": 0.1, "top_p": 0.2, "stop": ["<|im_end|>"], "num_ctx": 2048});
        let (given, stop, window) = resolve(json!({"temperature": 0.5, "num_ctx": 99.9}), params.clone()).unwrap();
        assert_eq!((given.temperature, given.top_p, window.num_ctx), (0.5, 0.2, Some(99)));
        assert_eq!(stop, ["<|im_end|>"]);
        let (_, stop, _) = resolve(json!({"stop": []}), params.clone()).unwrap();
        assert!(stop.is_empty());
        let (_, stop, _) = resolve(json!({"stop": "x"}), params.clone()).unwrap();
        assert_eq!(stop, ["x"]);
        let Value::Object(params) = params else { panic!("object") };
        let (openai, _, _) = sampling(&Map::new(), &params, true, 7).unwrap();
        assert_eq!((openai.temperature, openai.top_p), (1.0, 1.0));
    }

    #[test]
    fn wrong_types_are_ollamas_500() {
        for (options, expected) in [
            (json!({"num_ctx": "big"}), "option \"num_ctx\" must be of type integer"),
            (json!({"temperature": true}), "option \"temperature\" must be of type float32"),
            (json!({"use_mmap": 1}), "option \"use_mmap\" must be of type boolean"),
            (json!({"stop": 3}), "option \"stop\" must be of type array"),
            (json!({"stop": [3]}), "option \"stop\" must be of an array of strings"),
        ] {
            assert_eq!(resolve(options, json!({})).unwrap_err(), Rejection::internal(expected));
        }
    }

    #[test]
    fn a_request_lowers_its_share_and_never_raises_it() {
        let found = |options: Value, params: Value, set| {
            let (Value::Object(options), Value::Object(params)) = (options, params) else { panic!("objects") };
            share(&options, &params, set).map(|share| (share.memory_limit, share.priority))
        };
        let params = json!({"ollmlx_memory_limit": "2GB", "ollmlx_priority": 5});
        let ours = |limit: Value, priority: i32| json!({"ollmlx_memory_limit": limit, "ollmlx_priority": priority});
        assert_eq!(found(json!({}), json!({}), (None, None)), Ok((None, 0)));
        assert_eq!(found(json!({}), params.clone(), (None, None)), Ok((Some(2_000_000_000), 5)));
        assert_eq!(found(ours(json!("3GB"), 9), params.clone(), (None, None)), Ok((Some(2_000_000_000), 5)));
        assert_eq!(found(ours(json!(1_000_000), -2), params.clone(), (None, None)), Ok((Some(1_000_000), -2)));
        assert_eq!(found(json!({}), params.clone(), (Some(7), Some(-1))), Ok((Some(7), -1)));
        assert_eq!(found(ours(json!("9GB"), 9), json!({}), (Some(7), None)), Ok((Some(7), 0)));
        assert_eq!(found(ours(json!("1MB"), i32::MAX), json!({}), (None, Some(3))), Ok((Some(1_000_000), 3)));
        for none in [json!(0), json!("0"), json!(999_999), json!("50%"), json!("auto")] {
            let refused = found(ours(none, 0), params.clone(), (None, None)).unwrap_err();
            assert_eq!(refused.status, 400);
            assert!(refused.message.contains("from 1MB on"), "{}", refused.message);
        }
        let wrong = found(ours(json!(true), 0), params, (None, None)).unwrap_err();
        assert_eq!(wrong, Rejection::internal("option \"ollmlx_memory_limit\" must be of type bytes"));
        // They are no business of a sampler.
        let none = resolve(json!({}), json!({})).unwrap();
        assert_eq!(resolve(ours(json!("1MB"), 2), json!({})).unwrap(), none);
    }

    #[test]
    fn row_56_absurd_numbers_are_brought_into_range() {
        let wild = [json!(-9_223_372_036_854_775_808_i64), json!(-2), json!(-1), json!(0), json!(3), json!(1e300)];
        let keys = ["num_keep", "num_predict", "num_batch", "num_ctx", "num_gpu", "num_thread", "repeat_last_n"];
        let more = ["top_k", "top_p", "min_p", "temperature", "repeat_penalty", "typical_p", "seed"];
        for number in &wild {
            for key in keys.iter().chain(&more) {
                let mut options = Map::new();
                options.insert((*key).to_owned(), number.clone());
                let (sampling, _, window) = super::sampling(&options, &Map::new(), false, 7).unwrap();
                assert!(window.num_ctx.is_none_or(|count| (CONTEXT_TOKENS_MIN..=CONTEXT_TOKENS_MAX).contains(&count)));
                assert!(window.num_keep >= -1 && sampling.repeat_last_n >= -1);
                assert!(sampling.temperature >= 0.0 && sampling.temperature.is_finite());
                assert!((0.0..=1.0).contains(&sampling.top_p) && sampling.repeat_penalty > 0.0);
                assert!(window.max_tokens() != Some(0));
            }
        }
        let many = vec!["x"; STOP_STRINGS_MAX + 1];
        assert_eq!(resolve(json!({"stop": many}), json!({})).unwrap_err().status, 400);
        let at_the_limit = vec!["x"; STOP_STRINGS_MAX];
        assert!(resolve(json!({"stop": at_the_limit}), json!({})).is_ok());
        let long = "x".repeat(STOP_STRING_BYTES_MAX + 1);
        assert_eq!(resolve(json!({"stop": [long]}), json!({})).unwrap_err().status, 400);
    }
}
