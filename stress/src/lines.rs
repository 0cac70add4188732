//! A streamed answer, line by line.

use std::net::SocketAddr;

use anyhow::{Result, bail};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// Lines of an answer, and the task that moves its bytes.
#[derive(Debug)]
pub(crate) struct Lines {
    incoming: Incoming,
    buffer: Vec<u8>,
    driving: JoinHandle<Result<(), hyper::Error>>,
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.driving.abort();
    }
}

/// Sends JSON; an answer that is no success is an error with the server's words.
pub(crate) async fn post(address: SocketAddr, path: &str, body: &Value) -> Result<Lines> {
    let request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header("host", address.to_string())
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body.to_string())))?;
    let (response, driving) = send(address, request).await?;
    let status = response.status();
    let lines = Lines { incoming: response.into_body(), buffer: Vec::new(), driving };
    if status.is_success() { Ok(lines) } else { bail!("{status}: {}", lines.rest().await?) }
}

/// `GET` that must succeed, as text.
pub(crate) async fn get(address: SocketAddr, path: &str) -> Result<String> {
    let request = Request::builder().uri(path).header("host", address.to_string()).body(Full::new(Bytes::new()))?;
    let (response, driving) = send(address, request).await?;
    let status = response.status();
    let lines = Lines { incoming: response.into_body(), buffer: Vec::new(), driving };
    if status.is_success() { lines.rest().await } else { bail!("{path}: {status}") }
}

type Driving = JoinHandle<Result<(), hyper::Error>>;

async fn send(address: SocketAddr, request: Request<Full<Bytes>>) -> Result<(Response<Incoming>, Driving)> {
    let io = TokioIo::new(TcpStream::connect(address).await?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    let driving = tokio::spawn(connection);
    Ok((sender.send_request(request).await?, driving))
}

impl Lines {
    /// The next line without its end, or nothing at the end of the answer.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let mut line: Vec<u8> = self.buffer.drain(..=end).collect();
                line.pop();
                return Ok(Some(line));
            }
            match self.incoming.frame().await {
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                None if self.buffer.is_empty() => return Ok(None),
                None => return Ok(Some(std::mem::take(&mut self.buffer))),
            }
        }
    }

    pub(crate) async fn rest(mut self) -> Result<String> {
        let mut text = String::new();
        while let Some(line) = self.next().await? {
            text.push_str(&String::from_utf8_lossy(&line));
            text.push('\n');
        }
        Ok(text)
    }
}
