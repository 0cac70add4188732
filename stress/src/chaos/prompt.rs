//! What is asked, in three dialects, and how each says a token, an end and an error.

use serde_json::{Value, json};

use super::verdict::{Heard, Token};

/// How a prompt is sent.
#[derive(Clone, Copy, Debug)]
enum Dialect {
    Generate,
    Chat,
    OpenAi,
}

/// One prompt of the fixed set.
#[derive(Clone, Debug)]
pub(crate) struct Prompt {
    /// Index of its model.
    pub(crate) model: usize,
    dialect: Dialect,
    text: &'static str,
    tokens: u32,
}

const TEXTS: [(Dialect, &str, u32); 6] = [
    (Dialect::Generate, "Tell me a story about a ship.", 48),
    (Dialect::Chat, "Why is the sky blue?", 96),
    (Dialect::OpenAi, "Name three rivers and say where they flow.", 64),
    (Dialect::Generate, "Count from one to thirty in words.", 120),
    (Dialect::Chat, "What is bread made of?", 24),
    (Dialect::OpenAi, "Write a letter to a friend about the weather.", 80),
];

/// Every text for every model.
pub(crate) fn all(models: usize) -> Vec<Prompt> {
    let of_model = |model| TEXTS.map(|(dialect, text, tokens)| Prompt { model, dialect, text, tokens }).into_iter();
    (0..models).flat_map(of_model).collect()
}

impl Prompt {
    /// Where it goes.
    pub(crate) fn path(&self) -> &'static str {
        match self.dialect {
            Dialect::Generate => "/api/generate",
            Dialect::Chat => "/api/chat",
            Dialect::OpenAi => "/v1/chat/completions",
        }
    }

    /// What is sent. Log probabilities make every token visible, and how close the next best one was.
    pub(crate) fn body(&self, model: &str) -> Value {
        let messages = json!([{"role": "user", "content": self.text}]);
        let options = json!({"temperature": 0, "num_predict": self.tokens});
        match self.dialect {
            Dialect::Generate => json!({"model": model, "prompt": self.text, "options": options,
                "logprobs": true, "top_logprobs": 2}),
            Dialect::Chat => json!({"model": model, "messages": messages, "options": options,
                "logprobs": true, "top_logprobs": 2}),
            Dialect::OpenAi => json!({"model": model, "messages": messages, "temperature": 0,
                "max_tokens": self.tokens, "stream": true, "stream_options": {"include_usage": true},
                "logprobs": true, "top_logprobs": 2}),
        }
    }

    /// Takes one line in. Says how many tokens it brought.
    pub(crate) fn take(&self, line: &[u8], heard: &mut Heard) -> usize {
        let before = heard.tokens.len();
        match self.dialect {
            Dialect::OpenAi => {
                let Some(event) = line.strip_prefix(b"data: ") else { return 0 };
                if event == b"[DONE]" {
                    heard.ends += 1;
                    return 0;
                }
                self.event(event, heard);
            }
            Dialect::Generate | Dialect::Chat if line.is_empty() => {}
            Dialect::Generate | Dialect::Chat => self.event(line, heard),
        }
        heard.tokens.len() - before
    }

    fn event(&self, event: &[u8], heard: &mut Heard) {
        let Ok(event) = serde_json::from_slice::<Value>(event) else {
            heard.trouble.get_or_insert_with(|| format!("no JSON: {}", String::from_utf8_lossy(event)));
            return;
        };
        if !event["error"].is_null() {
            heard.trouble.get_or_insert_with(|| event["error"].to_string());
        }
        if heard.ends > 0 {
            heard.ends += 1;
        }
        let choice = &event["choices"][0];
        let (text, logprobs) = match self.dialect {
            Dialect::Generate => (&event["response"], &event["logprobs"]),
            Dialect::Chat => (&event["message"]["content"], &event["logprobs"]),
            Dialect::OpenAi => (&choice["delta"]["content"], &choice["logprobs"]["content"]),
        };
        heard.text.push_str(text.as_str().unwrap_or_default());
        heard.tokens.extend(logprobs.as_array().map_or(&[][..], Vec::as_slice).iter().map(token));
        let [done, prompt, answer] = match self.dialect {
            Dialect::OpenAi => {
                [&choice["finish_reason"], &event["usage"]["prompt_tokens"], &event["usage"]["completion_tokens"]]
            }
            _ => [&event["done_reason"], &event["prompt_eval_count"], &event["eval_count"]],
        };
        if let Some(reason) = done.as_str() {
            heard.reason = Some(reason.to_owned());
        }
        if let (Some(prompt), Some(answer)) = (prompt.as_u64(), answer.as_u64()) {
            heard.counts = Some((prompt, answer));
        }
        if event["done"].as_bool() == Some(true) {
            heard.ends += 1;
        }
    }
}

fn token(entry: &Value) -> Token {
    let top = entry["top_logprobs"].as_array().map_or(&[][..], Vec::as_slice);
    let logprob = |entry: &Value| entry["logprob"].as_f64().unwrap_or(f64::NEG_INFINITY);
    let text = |entry: &Value| entry["token"].as_str().unwrap_or_default().to_owned();
    let own = text(entry);
    let next = top.iter().find(|other| text(other) != own);
    Token {
        margin: next.map_or(f64::INFINITY, |next| logprob(entry) - logprob(next)),
        runner_up: next.map(text).unwrap_or_default(),
        text: own,
    }
}
