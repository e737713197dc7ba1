//! A client that does exactly what it is told, wrong things too. It speaks
//! HTTP/1.1, one request a connection, and never waits longer than a while.

use serde_json::Value;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longer than anything here takes.
pub(crate) const A_WHILE: Duration = Duration::from_secs(10);

/// A response, complete.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// `error.code` of OpenAI's error shape, the rest of which must be there.
    pub(crate) fn error_code(&self) -> String {
        let error = &self.json()["error"];
        assert!(error["message"].is_string() && error["type"].is_string(), "{self:?}");
        assert!(error.get("param").is_some(), "{self:?}");
        error["code"].as_str().unwrap_or("null").to_owned()
    }

    pub(crate) fn parse(raw: &[u8]) -> Self {
        let text = String::from_utf8_lossy(raw);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        let is_chunked = head.to_lowercase().contains("transfer-encoding: chunked");
        let body = if is_chunked { dechunk(body) } else { body.to_owned() };
        Self { status, head: head.to_owned(), body }
    }
}

fn dechunk(mut chunked: &str) -> String {
    let mut body = String::new();
    while let Some((size, rest)) = chunked.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap_or(0);
        let Some(chunk) = rest.get(..size).filter(|chunk| !chunk.is_empty()) else { break };
        body.push_str(chunk);
        chunked = rest[size..].trim_start_matches("\r\n");
    }
    body
}

/// One connection with one request on it.
pub(crate) struct Wire<S = TcpStream> {
    stream: S,
    pub(crate) seen: Vec<u8>,
}

impl Wire {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(crate) fn over(stream: S) -> Self {
        Self { stream, seen: Vec::new() }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        timeout(A_WHILE, self.stream.write_all(bytes.as_ref())).await.unwrap().unwrap();
    }

    /// Reads on until this has been seen.
    pub(crate) async fn until(&mut self, wanted: &str) {
        while !String::from_utf8_lossy(&self.seen).contains(wanted) {
            let ended = !self.more().await;
            assert!(!ended, "no {wanted:?} in {}", String::from_utf8_lossy(&self.seen));
        }
    }

    /// Reads on until the server closes.
    pub(crate) async fn reply(mut self) -> Reply {
        while self.more().await {}
        Reply::parse(&self.seen)
    }

    /// False when the server has closed, or cut off.
    async fn more(&mut self) -> bool {
        let mut buffer = vec![0; 64 * 1024];
        let read = timeout(A_WHILE, self.stream.read(&mut buffer)).await.expect("the server says nothing");
        let count = read.unwrap_or(0);
        self.seen.extend_from_slice(&buffer[..count]);
        count > 0
    }
}

/// The text of a request.
pub(crate) fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> String {
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        text.push_str(&format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len()));
    }
    format!("{text}\r\n{body}")
}

pub(crate) async fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Reply {
    let mut wire = Wire::connect(address).await;
    wire.send(request(method, path, headers, body)).await;
    wire.reply().await
}

pub(crate) async fn get(address: SocketAddr, path: &str) -> Reply {
    send(address, "GET", path, &[], "").await
}

pub(crate) async fn post(address: SocketAddr, path: &str, body: &str) -> Reply {
    send(address, "POST", path, &[], body).await
}

/// A chat that is streamed, up to its first words.
pub(crate) async fn stream(address: SocketAddr, headers: &[(&str, &str)], max_tokens: u32) -> Wire {
    let mut wire = Wire::connect(address).await;
    wire.send(request("POST", CHAT, headers, &chat(true, max_tokens))).await;
    wire.until("tick").await;
    wire
}

pub(crate) const CHAT: &str = "/v1/chat/completions";

/// The body of a chat.
pub(crate) fn chat(is_streamed: bool, max_tokens: u32) -> String {
    serde_json::json!({
        "messages": [{ "role": "user", "content": "How does a clock go?" }],
        "stream": is_streamed,
        "max_tokens": max_tokens,
    })
    .to_string()
}
