//! A hub small enough to read: one thread that accepts, one for each connection.
//!
//! It serves two commits of `org/model`, once `org/old`, and the faults that a test asks for.
//! Every request is remembered; dropping the hub ends it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};

use serde_json::json;

use super::{COMMIT, NEXT_COMMIT};
use crate::digest::{BlobId, sha256};

/// No test comes near it; a loop of requests ends here.
const NUM_REQUESTS_MAX: usize = 500;

/// What goes wrong, once, with a file or with the listing.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    /// The connection breaks after so many bytes of the body.
    CutAfter(usize),
    /// Nothing more comes after so many bytes, and the connection stays.
    StallAfter(usize),
    /// This status instead of an answer, with an error code.
    Status(u16, &'static str),
    /// Other bytes of the same length.
    WrongBytes,
    /// The whole file, whatever range was asked for.
    IgnoreRange,
}

/// A request as the hub saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) host: String,
    pub(super) path: String,
    pub(super) range: Option<String>,
    pub(super) token: Option<String>,
}

pub(super) struct MockHub {
    address: SocketAddr,
    state: Arc<State>,
    accepting: Option<JoinHandle<()>>,
}

struct State {
    repository: Vec<(String, Vec<u8>)>,
    log: Mutex<Vec<Request>>,
    faults: Mutex<BTreeMap<String, Vec<Fault>>>,
    head: Mutex<&'static str>,
    closed: Mutex<bool>,
    closing: Condvar,
}

impl MockHub {
    /// A model in three shards, among much that is no part of it.
    pub(super) fn sharded() -> Self {
        let index = json!({ "weight_map": {
            "a": "model-00000-of-00002.safetensors", "b": "model-00001-of-00002.safetensors",
            "c": "model-00002-of-00002.safetensors", "d": "model-00000-of-00002.safetensors" } });
        let mut files = vec![(".gitattributes".to_owned(), b"*".to_vec())];
        for name in [
            "README.md",
            "metal/model.bin",
            "original/model.safetensors",
            "tokenizer.json",
            "extra.safetensors",
        ] {
            files.push((name.to_owned(), pattern(name, 3000)));
        }
        files.push(("config.json".into(), br#"{"num_hidden_layers": 2}"#.to_vec()));
        files.push(("generation_config.json".into(), br#"{"temperature": 1.0}"#.to_vec()));
        files.push(("model.safetensors.index.json".into(), index.to_string().into_bytes()));
        for shard in 0..3 {
            let name = format!("model-0000{shard}-of-00002.safetensors");
            let content = pattern(&name, 400_000 + shard);
            files.push((name, content));
        }
        Self::serving(files)
    }

    /// A model whose weights are one file.
    pub(super) fn single() -> Self {
        Self::serving(vec![
            ("config.json".into(), b"{}".to_vec()),
            ("model.safetensors".into(), pattern("single", 300_000)),
        ])
    }

    pub(super) fn serving(repository: Vec<(String, Vec<u8>)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            repository,
            log: Mutex::default(),
            faults: Mutex::default(),
            head: Mutex::new(COMMIT),
            closed: Mutex::new(false),
            closing: Condvar::new(),
        });
        let accepting = thread::spawn({
            let state = Arc::clone(&state);
            move || accept(&listener, &state)
        });
        Self { address, state, accepting: Some(accepting) }
    }

    pub(super) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next requests for `path` meet these faults, one each.
    pub(super) fn fail(&self, path: &str, faults: &[Fault]) {
        let mut queue = faults.to_vec();
        queue.reverse();
        self.state.faults.lock().unwrap().insert(path.to_owned(), queue);
    }

    /// `main` moves on to a commit with the same files.
    pub(super) fn commit_again(&self) {
        *self.state.head.lock().unwrap() = NEXT_COMMIT;
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.state.log.lock().unwrap().clone()
    }

    /// The requests for one file, wherever they went.
    pub(super) fn requests_for(&self, file: &str) -> Vec<Request> {
        self.requests().into_iter().filter(|request| request.path.ends_with(&format!("/{file}"))).collect()
    }

    pub(super) fn content(&self, file: &str) -> &[u8] {
        &self.state.repository.iter().find(|(name, _)| name == file).unwrap().1
    }

    pub(super) fn sha256(&self, file: &str) -> String {
        sha256(self.content(file))
    }
}

impl Drop for MockHub {
    fn drop(&mut self) {
        *self.state.closed.lock().unwrap() = true;
        self.state.closing.notify_all();
        // Wakes the thread that accepts.
        drop(TcpStream::connect(self.address));
        if let Some(accepting) = self.accepting.take() {
            accepting.join().unwrap();
        }
    }
}

fn accept(listener: &TcpListener, state: &Arc<State>) {
    for stream in listener.incoming().take(NUM_REQUESTS_MAX) {
        if *state.closed.lock().unwrap() {
            return;
        }
        let state = Arc::clone(state);
        thread::spawn(move || {
            // A client that hangs up is what some tests are about.
            let _ = state.answer(&stream.unwrap());
        });
    }
}

impl State {
    fn answer(&self, stream: &TcpStream) -> std::io::Result<()> {
        let Some(request) = read_request(stream)? else { return Ok(()) };
        self.log.lock().unwrap().push(request.clone());
        if request.path.contains("/org/old/") {
            let renamed = request.path.replace("/org/old/", "/org/model/");
            return respond(stream, 307, &format!("Location: {renamed}\r\n"), b"");
        }
        let path = request.path.split('?').next().unwrap_or_default();
        if let Some(revision) = path.strip_prefix("/api/models/org/model/revision/") {
            return self.list(stream, revision);
        }
        if let Some((_, file)) =
            path.strip_prefix("/org/model/resolve/").and_then(|rest| rest.split_once('/'))
        {
            if let Some(Fault::Status(status, code)) = self.next_fault("hub", file) {
                return respond(stream, status, &format!("X-Error-Code: {code}\r\n"), b"");
            }
            // As the real one does with large files: another host stores them.
            if file.ends_with(".safetensors") {
                let port = stream.local_addr()?.port();
                return respond(
                    stream,
                    302,
                    &format!("Location: http://localhost:{port}/stored/{file}\r\n"),
                    b"",
                );
            }
            return self.send(stream, file, &request);
        }
        match path.strip_prefix("/stored/") {
            Some(file) => self.send(stream, file, &request),
            None => respond(stream, 404, "X-Error-Code: RepoNotFound\r\n", b""),
        }
    }

    fn next_fault(&self, at: &str, what: &str) -> Option<Fault> {
        let mut faults = self.faults.lock().unwrap();
        let queue = faults.get_mut(what)?;
        let at_hub = matches!(queue.last()?, Fault::Status(..));
        if at_hub == (at == "hub") { queue.pop() } else { None }
    }

    fn list(&self, stream: &TcpStream, revision: &str) -> std::io::Result<()> {
        if let Some(Fault::Status(status, code)) = self.next_fault("hub", "listing") {
            return respond(stream, status, &format!("X-Error-Code: {code}\r\n"), b"");
        }
        let head = *self.head.lock().unwrap();
        let sha = match revision {
            "main" | "refs%2Fpr%2F1" => head,
            COMMIT | NEXT_COMMIT => revision,
            _ => return respond(stream, 404, "X-Error-Code: RevisionNotFound\r\n", b""),
        };
        let siblings: Vec<_> =
            self.repository.iter().map(|(name, content)| describe(name, content)).collect();
        respond(stream, 200, "", json!({ "sha": sha, "siblings": siblings }).to_string().as_bytes())
    }

    fn send(&self, stream: &TcpStream, file: &str, request: &Request) -> std::io::Result<()> {
        let Some((_, content)) = self.repository.iter().find(|(name, _)| name == file) else {
            return respond(stream, 404, "X-Error-Code: EntryNotFound\r\n", b"");
        };
        let fault = self.next_fault("store", file);
        let mut content = content.clone();
        if matches!(fault, Some(Fault::WrongBytes)) {
            content.iter_mut().for_each(|byte| *byte ^= 1);
        }
        let start = request.range.as_deref().filter(|_| !matches!(fault, Some(Fault::IgnoreRange)));
        let start: usize = start
            .map_or(0, |range| range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap());
        if start >= content.len() && start > 0 {
            return respond(stream, 416, "", b"");
        }
        let (status, range) = match start {
            0 => (200, String::new()),
            _ => (206, format!("Content-Range: bytes {start}-{}/{}\r\n", content.len() - 1, content.len())),
        };
        let body = &content[start..];
        match fault {
            Some(Fault::CutAfter(len)) => head_and(stream, status, &range, body.len(), &body[..len]),
            Some(Fault::StallAfter(len)) => {
                head_and(stream, status, &range, body.len(), &body[..len])?;
                let closed = self.closed.lock().unwrap();
                drop(self.closing.wait_while(closed, |closed| !*closed).unwrap());
                Ok(())
            }
            _ => respond(stream, status, &range, body),
        }
    }
}

fn read_request(stream: &TcpStream) -> std::io::Result<Option<Request>> {
    let mut lines = BufReader::new(stream).lines();
    let Some(first) = lines.next().transpose()? else { return Ok(None) };
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut request = Request { host: String::new(), path, range: None, token: None };
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "host" => request.host = value.to_owned(),
            "range" => request.range = Some(value.to_owned()),
            "authorization" => request.token = Some(value.to_owned()),
            _ => {}
        }
    }
    Ok(Some(request))
}

fn respond(stream: &TcpStream, status: u16, headers: &str, body: &[u8]) -> std::io::Result<()> {
    head_and(stream, status, headers, body.len(), body)
}

fn head_and(
    mut stream: &TcpStream,
    status: u16,
    headers: &str,
    len: usize,
    body: &[u8],
) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {len}\r\n{headers}\r\n")?;
    stream.write_all(body)
}

fn describe(name: &str, content: &[u8]) -> serde_json::Value {
    let size = content.len();
    if name.ends_with(".safetensors") {
        let lfs = json!({ "sha256": sha256(content), "size": size, "pointerSize": 135 });
        return json!({ "rfilename": name, "size": size, "blobId": "0".repeat(40), "lfs": lfs });
    }
    json!({ "rfilename": name, "size": size, "blobId": git_id(content) })
}

/// What git calls a file of this content.
pub(super) fn git_id(content: &[u8]) -> String {
    let mut hasher = BlobId::Git(String::new()).hasher(content.len() as u64);
    hasher.update(content);
    hasher.finish().as_str().to_owned()
}

/// Bytes that differ from file to file and from place to place.
fn pattern(seed: &str, len: usize) -> Vec<u8> {
    let mut state =
        seed.bytes().fold(17_u32, |state, byte| state.wrapping_mul(31).wrapping_add(u32::from(byte)));
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}
