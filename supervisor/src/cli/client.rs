//! The commands' view of the server: one HTTP/1.1 connection per call, JSON in, JSON or lines of JSON out.
//!
//! Knows URLs and bodies only as its callers give them. Limits: connecting and every silence of the server have a
//! deadline, a line of a stream at most 8 MB, a whole answer at most 64 MB.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use crate::limits;
use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::error::CliError;
use crate::config::{Config, HostUrl, Scheme};

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type RequestBody = BoxBody<Bytes, std::io::Error>;

/// Bytes read from a file at a time.
const UPLOAD_CHUNK_BYTES: usize = 256 * 1024;

/// Where the server is, and how to be let in.
#[derive(Clone, Debug)]
pub struct Client {
    base: HostUrl,
    api_key: Option<String>,
}

/// An answer whose body has not been read.
#[derive(Debug)]
pub struct HttpAnswer {
    response: Response<Incoming>,
    connection: Connection,
}

/// StreamLines of a streaming answer, and the connection they come over: dropping it hangs up.
#[derive(Debug)]
pub struct StreamLines {
    body: Incoming,
    buffer: BytesMut,
    ended: bool,
    _connection: Connection,
}

/// The task that moves bytes; it ends with its owner.
#[derive(Debug)]
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Client {
    /// For the server that the settings name.
    ///
    /// # Errors
    /// An https address.
    pub fn new(config: &Config) -> Result<Self, CliError> {
        if config.host.scheme == Scheme::Https {
            return Err(CliError::NoTls(config.host.to_string()));
        }
        let mut base = config.host.clone();
        // "Every interface" is an address to listen on, not one to call.
        match base.host.as_str() {
            "0.0.0.0" => base.host = "127.0.0.1".to_owned(),
            "::" => base.host = "::1".to_owned(),
            _ => {}
        }
        Ok(Self { base, api_key: config.api_key.clone() })
    }

    /// Whether anybody listens: what every command asks first.
    ///
    /// # Errors
    /// Nobody does.
    pub async fn heartbeat(&self) -> Result<(), CliError> {
        self.send(Method::HEAD, "/", None, empty()).await.map(drop)
    }

    /// `GET`, JSON out.
    ///
    /// # Errors
    /// No server, a refusal, or an answer that is no JSON.
    pub async fn get(&self, path: &str) -> Result<Value, CliError> {
        self.send(Method::GET, path, None, empty()).await?.ok().await?.json().await
    }

    /// `GET`, bytes out.
    ///
    /// # Errors
    /// No server, a refusal, or an answer without an end.
    pub async fn download(&self, path: &str) -> Result<Bytes, CliError> {
        self.send(Method::GET, path, None, empty()).await?.ok().await?.bytes().await
    }

    /// `POST`, JSON in and out.
    ///
    /// # Errors
    /// No server, a refusal, or an answer that is no JSON.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, CliError> {
        self.post_bytes(path, Bytes::from(body.to_string())).await
    }

    /// `POST` of bytes that need not be JSON; JSON out.
    ///
    /// # Errors
    /// No server, a refusal, or an answer that is no JSON.
    pub async fn post_bytes(&self, path: &str, body: Bytes) -> Result<Value, CliError> {
        self.send(Method::POST, path, Some("application/json"), full(body)).await?.ok().await?.json().await
    }

    /// JSON in, nothing out.
    ///
    /// # Errors
    /// No server, or a refusal.
    pub async fn tell(&self, method: Method, path: &str, body: &Value) -> Result<(), CliError> {
        self.send(method, path, Some("application/json"), json(body)).await?.ok().await.map(drop)
    }

    /// `POST`, JSON in, lines of JSON out.
    ///
    /// # Errors
    /// No server, or a refusal before the first line.
    pub async fn stream(&self, path: &str, body: &Value) -> Result<StreamLines, CliError> {
        let answer = self.send(Method::POST, path, Some("application/json"), json(body)).await?.ok().await?;
        let body = answer.response.into_body();
        Ok(StreamLines { body, buffer: BytesMut::new(), ended: false, _connection: answer.connection })
    }

    /// Whether the server is called at a loopback address, and so is a process of this machine.
    #[must_use]
    pub fn is_local(&self) -> bool {
        let host = self.base.host.as_str();
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// The status of a `HEAD`.
    ///
    /// # Errors
    /// No server.
    pub async fn head(&self, path: &str) -> Result<StatusCode, CliError> {
        Ok(self.send(Method::HEAD, path, None, empty()).await?.response.status())
    }

    /// `POST` of a file's bytes; `sent_bytes` counts along.
    ///
    /// # Errors
    /// No server, a refusal, or a file that can't be read.
    pub async fn upload(
        &self,
        path: &str,
        file: tokio::fs::File,
        size_bytes: u64,
        sent_bytes: Arc<AtomicU64>,
    ) -> Result<(), CliError> {
        let body = FileBody { file, size_bytes, sent_bytes, buffer: vec![0; UPLOAD_CHUNK_BYTES] };
        let body = BoxBody::new(body);
        self.send(Method::POST, path, Some("application/octet-stream"), body).await?.ok().await.map(drop)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: Option<&str>,
        body: RequestBody,
    ) -> Result<HttpAnswer, CliError> {
        let address = (self.base.host.as_str(), self.base.port);
        let connect = timeout(Duration::from_millis(limits::CLI_CONNECT_TIMEOUT_MS), TcpStream::connect(address));
        let stream = match connect.await {
            Ok(Ok(stream)) => stream,
            Ok(Err(_)) | Err(_) => return Err(CliError::ServerDown),
        };
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.map_err(broken)?;
        // What breaks the connection is reported by the request or the body that needed it.
        let connection = Connection(tokio::spawn(async move { drop(connection.await) }));
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base.path))
            .header(header::HOST, self.base.authority())
            .header(header::USER_AGENT, concat!("ollmlx/", env!("CARGO_PKG_VERSION")));
        if let Some(content_type) = content_type {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        if let Some(key) = &self.api_key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        let request = request.body(body).map_err(broken)?;
        let response = self.patiently(sender.send_request(request)).await?.map_err(broken)?;
        Ok(HttpAnswer { response, connection })
    }

    async fn patiently<T>(&self, work: impl Future<Output = T>) -> Result<T, CliError> {
        let silence = Duration::from_millis(limits::CLI_SILENCE_MS);
        timeout(silence, work).await.map_err(|_| CliError::ServerSilent(self.base.authority()))
    }
}

impl HttpAnswer {
    /// Itself, or the server's refusal as an error.
    async fn ok(self) -> Result<Self, CliError> {
        let status = self.response.status();
        if status.is_success() {
            return Ok(self);
        }
        let body = self.bytes().await.unwrap_or_default();
        Err(CliError::Refused { status, message: refusal_text(status, &body) })
    }

    async fn json(self) -> Result<Value, CliError> {
        serde_json::from_slice(&self.bytes().await?).map_err(|_| CliError::BadAnswer("it is not JSON"))
    }

    async fn bytes(self) -> Result<Bytes, CliError> {
        let body = http_body_util::Limited::new(self.response.into_body(), limits::BODY_BYTES_MAX);
        let silence = Duration::from_millis(limits::CLI_SILENCE_MS);
        let collected = timeout(silence, body.collect()).await;
        let collected = collected.map_err(|_| CliError::BadAnswer("it never ends"))?;
        drop(self.connection);
        collected.map(http_body_util::Collected::to_bytes).map_err(CliError::Broken)
    }
}

impl StreamLines {
    /// The next line, or `None` at the end. An error line of the server is an error here. Cancel-safe.
    ///
    /// # Errors
    /// The server's error line, a line that is too long or no JSON, or a broken connection.
    pub async fn next(&mut self) -> Result<Option<Value>, CliError> {
        loop {
            if let Some(line) = take_line(&mut self.buffer, self.ended) {
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return parse_line(&line).map(Some);
            }
            if self.ended {
                return Ok(None);
            }
            if self.buffer.len() > limits::CLI_LINE_BYTES_MAX {
                return Err(CliError::BadAnswer("a line is longer than 8 MB"));
            }
            let silence = Duration::from_millis(limits::CLI_SILENCE_MS);
            let frame = timeout(silence, self.body.frame()).await;
            match frame.map_err(|_| CliError::BadAnswer("it stopped in the middle"))? {
                None => self.ended = true,
                Some(frame) => {
                    if let Ok(bytes) = frame.map_err(broken)?.into_data() {
                        self.buffer.extend_from_slice(&bytes);
                    }
                }
            }
        }
    }
}

/// A whole line without its end; at the end of the stream also one without an end.
fn take_line(buffer: &mut BytesMut, ended: bool) -> Option<BytesMut> {
    if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
        let mut line = buffer.split_to(end + 1);
        line.truncate(end);
        return Some(line);
    }
    (ended && !buffer.is_empty()).then(|| buffer.split())
}

fn parse_line(line: &[u8]) -> Result<Value, CliError> {
    let value: Value = serde_json::from_slice(line).map_err(|_| CliError::BadAnswer("a line is not JSON"))?;
    match error_text(&value) {
        Some(text) => Err(CliError::InStream(text)),
        None => Ok(value),
    }
}

fn refusal_text(status: StatusCode, body: &[u8]) -> String {
    let value = serde_json::from_slice::<Value>(body).ok();
    if let Some(text) = value.as_ref().and_then(error_text) {
        return text;
    }
    let text = String::from_utf8_lossy(body).trim().to_owned();
    if text.is_empty() { status.to_string() } else { text }
}

fn error_text(value: &Value) -> Option<String> {
    let error = value.get("error")?;
    let text = error.as_str().or_else(|| error.get("message").and_then(Value::as_str))?;
    (!text.is_empty()).then(|| text.to_owned())
}

fn broken(error: impl Into<BoxError>) -> CliError {
    CliError::Broken(error.into())
}

fn empty() -> RequestBody {
    full(Bytes::new())
}

fn json(value: &Value) -> RequestBody {
    full(Bytes::from(value.to_string()))
}

fn full(bytes: Bytes) -> RequestBody {
    Full::new(bytes).map_err(|never| match never {}).boxed()
}

/// A file as a request body.
struct FileBody {
    file: tokio::fs::File,
    size_bytes: u64,
    sent_bytes: Arc<AtomicU64>,
    buffer: Vec<u8>,
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let this = self.get_mut();
        let mut buffer = ReadBuf::new(&mut this.buffer);
        match std::pin::Pin::new(&mut this.file).poll_read(context, &mut buffer) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Some(Err(error))),
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => Poll::Ready(None),
            Poll::Ready(Ok(())) => {
                let bytes = Bytes::copy_from_slice(buffer.filled());
                this.sent_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        let left = self.size_bytes.saturating_sub(self.sent_bytes.load(Ordering::Relaxed));
        SizeHint::with_exact(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_at_newlines_and_at_the_end() {
        let mut buffer = BytesMut::from(&b"{\"a\":1}\n{\"b\""[..]);
        assert_eq!(take_line(&mut buffer, false).as_deref(), Some(&b"{\"a\":1}"[..]));
        assert_eq!(take_line(&mut buffer, false), None);
        assert_eq!(take_line(&mut buffer, true).as_deref(), Some(&b"{\"b\""[..]));
        assert_eq!(take_line(&mut buffer, true), None);
    }

    #[test]
    fn an_error_line_ends_the_stream() {
        assert!(matches!(parse_line(br#"{"error":"gone"}"#), Err(CliError::InStream(text)) if text == "gone"));
        assert!(parse_line(br#"{"response":"x"}"#).is_ok());
        assert!(matches!(parse_line(b"<html>"), Err(CliError::BadAnswer(_))));
    }

    #[test]
    fn a_refusal_speaks_in_the_server_s_words_or_in_the_status_line() {
        let text = |body: &str| refusal_text(StatusCode::NOT_FOUND, body.as_bytes());
        assert_eq!(text(r#"{"error":"model 'x' not found"}"#), "model 'x' not found");
        assert_eq!(text(r#"{"error":{"message":"m"}}"#), "m");
        assert_eq!(text(""), "404 Not Found");
        assert_eq!(text("404 page not found"), "404 page not found");
    }
}
