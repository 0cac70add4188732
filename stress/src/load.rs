//! A streaming client that notes when each piece arrives.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::lines::{get, post};

/// Eight windows of 8192 tokens take MLX on a CPU many minutes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(7_200);

/// What one stream saw.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    /// When the request was sent.
    pub(crate) sent: Instant,
    /// When the first text arrived.
    pub(crate) first: Instant,
    /// When the last text arrived.
    pub(crate) last: Instant,
    /// Tokens of the answer, as the server counts them.
    pub(crate) tokens: u64,
    /// Tokens of the prompt, as the server counts them.
    pub(crate) prompt_tokens: u64,
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ask<T> {
    /// An answer to this message, in the model's own template.
    Chat(T),
    /// What follows this text.
    Continue(T),
    /// The same, drawn with no seed, though hardly anything but the likeliest token.
    Draw(T),
}

/// One greedy answer, streamed. All servers speak this dialect.
pub(crate) async fn ask(address: SocketAddr, what: &Ask<impl AsRef<str>>, model: &str, tokens: u32) -> Result<Seen> {
    watch(address, what, model, tokens, |_| true).await
}

/// The same, and each text's arrival is told to `on_text`, which says whether to stay.
pub(crate) async fn watch(
    address: SocketAddr,
    what: &Ask<impl AsRef<str>>,
    model: &str,
    tokens: u32,
    on_text: impl FnMut(Instant) -> bool,
) -> Result<Seen> {
    let mut body = json!({
        "model": model, "max_tokens": tokens, "temperature": 0, "stream": true,
        "stream_options": {"include_usage": true},
    });
    if matches!(what, Ask::Draw(_)) {
        body["temperature"] = json!(0.01);
    }
    let path = match what {
        Ask::Chat(text) => {
            body["messages"] = json!([{"role": "user", "content": text.as_ref()}]);
            "/v1/chat/completions"
        }
        Ask::Continue(text) | Ask::Draw(text) => {
            body["prompt"] = json!(text.as_ref());
            "/v1/completions"
        }
    };
    tokio::time::timeout(ANSWER_TIMEOUT, stream(address, path, &body, on_text))
        .await
        .context("the answer took too long")?
}

/// Streams computed together.
#[derive(Debug)]
pub(crate) struct Together {
    /// Each of them.
    pub(crate) all: Vec<Seen>,
    /// Tokens of all, per second between the first text of any and the last of any.
    pub(crate) tokens_per_second: f64,
}

/// Several answers at the same time.
pub(crate) async fn together(
    address: SocketAddr,
    asks: Vec<Ask<String>>,
    model: &str,
    tokens: u32,
) -> Result<Together> {
    let mut running = tokio::task::JoinSet::new();
    for what in asks {
        let model = model.to_owned();
        running.spawn(async move { ask(address, &what, &model, tokens).await });
    }
    let mut all: Vec<Seen> = Vec::new();
    while let Some(seen) = running.join_next().await {
        all.push(seen??);
    }
    let start = all.iter().map(|seen| seen.first).min().context("no stream was asked for")?;
    let end = all.iter().map(|seen| seen.last).max().context("no stream was asked for")?;
    let total: u64 = all.iter().map(|seen| seen.tokens).sum();
    Ok(Together { all, tokens_per_second: total as f64 / (end - start).as_secs_f64() })
}

async fn stream(
    address: SocketAddr,
    path: &str,
    body: &Value,
    mut on_text: impl FnMut(Instant) -> bool,
) -> Result<Seen> {
    let sent = Instant::now();
    let mut lines = post(address, path, body).await?;
    let (mut first, mut last, mut tokens, mut prompt_tokens) = (None, None, None, 0);
    while let Some(line) = lines.next().await? {
        let now = Instant::now();
        let Some(event) = line.strip_prefix(b"data: ") else { continue };
        let Ok(event) = serde_json::from_slice::<Value>(event) else { continue };
        if let Some(error) = event.get("error") {
            bail!("in the stream: {error}");
        }
        let choice = &event["choices"][0];
        let text = choice["delta"]["content"].as_str().or_else(|| choice["text"].as_str());
        if text.is_some_and(|text| !text.is_empty()) {
            first.get_or_insert(now);
            last = Some(now);
            ensure!(on_text(now), "left");
        }
        if let Some(count) = event["usage"]["completion_tokens"].as_u64().filter(|&count| count > 0) {
            tokens = Some(count);
            prompt_tokens = event["usage"]["prompt_tokens"].as_u64().unwrap_or_default();
        }
    }
    Ok(Seen {
        sent,
        first: first.context("no text came")?,
        last: last.context("no text came")?,
        tokens: tokens.context("no usage came")?,
        prompt_tokens,
    })
}

/// `GET`, or `POST` of a body, that must succeed with JSON.
pub(crate) async fn fetch(address: SocketAddr, path: &str, body: Option<&Value>) -> Result<Value> {
    let text = match body {
        Some(body) => post(address, path, body).await?.rest().await?,
        None => get(address, path).await?,
    };
    Ok(serde_json::from_str(&text)?)
}
