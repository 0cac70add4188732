//! A streaming client that notes when each piece arrives.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);

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
}

/// One greedy answer, streamed. All servers speak this dialect.
pub(crate) async fn ask(address: SocketAddr, what: &Ask<impl AsRef<str>>, model: &str, tokens: u32) -> Result<Seen> {
    let mut body = json!({
        "model": model, "max_tokens": tokens, "temperature": 0, "stream": true,
        "stream_options": {"include_usage": true},
    });
    let path = match what {
        Ask::Chat(text) => {
            body["messages"] = json!([{"role": "user", "content": text.as_ref()}]);
            "/v1/chat/completions"
        }
        Ask::Continue(text) => {
            body["prompt"] = json!(text.as_ref());
            "/v1/completions"
        }
    };
    tokio::time::timeout(ANSWER_TIMEOUT, stream(address, path, &body)).await.context("the answer took too long")?
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

async fn stream(address: SocketAddr, path: &str, body: &Value) -> Result<Seen> {
    let io = TokioIo::new(TcpStream::connect(address).await?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    let driving = tokio::spawn(connection);
    let request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header("host", address.to_string())
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body.to_string())))?;
    let sent = Instant::now();
    let response = sender.send_request(request).await?;
    let status = response.status();
    let mut incoming = response.into_body();
    if !status.is_success() {
        let text = incoming.collect().await?.to_bytes();
        bail!("{status}: {}", String::from_utf8_lossy(&text));
    }
    let mut buffer = Vec::new();
    let (mut first, mut last, mut tokens, mut prompt_tokens) = (None, None, None, 0);
    while let Some(frame) = incoming.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        let now = Instant::now();
        buffer.extend_from_slice(&data);
        while let Some(end) = buffer.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
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
            }
            if let Some(count) = event["usage"]["completion_tokens"].as_u64().filter(|&count| count > 0) {
                tokens = Some(count);
                prompt_tokens = event["usage"]["prompt_tokens"].as_u64().unwrap_or_default();
            }
        }
    }
    driving.abort();
    Ok(Seen {
        sent,
        first: first.context("no text came")?,
        last: last.context("no text came")?,
        tokens: tokens.context("no usage came")?,
        prompt_tokens,
    })
}

/// `GET` that must succeed.
pub(crate) async fn get(address: SocketAddr, path: &str) -> Result<()> {
    body_of(address, path).await.map(drop)
}

/// `GET` that must succeed and answer JSON.
pub(crate) async fn get_json(address: SocketAddr, path: &str) -> Result<Value> {
    Ok(serde_json::from_slice(&body_of(address, path).await?)?)
}

async fn body_of(address: SocketAddr, path: &str) -> Result<Bytes> {
    let io = TokioIo::new(TcpStream::connect(address).await?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    let driving = tokio::spawn(connection);
    let request = Request::builder().uri(path).header("host", address.to_string()).body(Full::new(Bytes::new()))?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await;
    driving.abort();
    if !status.is_success() {
        bail!("{path}: {status}");
    }
    Ok(body?.to_bytes())
}
