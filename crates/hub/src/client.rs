//! The hub's HTTP API, as far as downloading needs it: one listing, and files from an offset.
//!
//! One call is one attempt. What may succeed later comes back as
//! [`Error::Unreachable`], every other error is final; nothing is written here.

use std::io::Read;

use ureq::http::{Response, StatusCode, Uri, header};
use ureq::{Agent, Body, Proxy, ResponseExt};

use crate::cache::DEFAULT_REVISION;
use crate::error::{Error, Result};
use crate::listing::Listing;
use crate::name::HubId;
use crate::options::{HubOptions, ProxyOptions};
use crate::patience::Patience;

const USER_AGENT: &str = concat!("chorale/", env!("CARGO_PKG_VERSION"));
/// Bounds what a broken hub makes us hold; a listing of ten thousand files is two megabytes.
const LISTING_LEN_MAX: u64 = 32 << 20;

/// A connection to one hub, shared by the threads that download.
pub(crate) struct Client {
    agent: Agent,
    endpoint: String,
    host: Option<String>,
    token: Option<String>,
}

/// The bytes of a file from an offset on.
pub(crate) struct Content {
    /// Where the bytes begin: where they were asked for, or zero if the server cannot do that.
    pub(crate) offset: u64,
    pub(crate) reader: Box<dyn Read>,
}

impl Client {
    pub(crate) fn new(options: &HubOptions, patience: Patience) -> Result<Self> {
        let uri: Uri = options.endpoint.parse().map_err(|_| bad_endpoint(&options.endpoint))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(bad_endpoint(&options.endpoint));
        }
        if options.token.as_ref().is_some_and(|token| !token.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(bad_token());
        }
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .user_agent(USER_AGENT)
            .proxy(options.proxy.as_ref().map(proxy).transpose()?)
            .timeout_resolve(Some(patience.connect))
            .timeout_connect(Some(patience.connect))
            .timeout_per_read(Some(patience.stall))
            .timeout_per_write(Some(patience.stall))
            // Never sent on to the host that stores the files: the link to it is signed.
            .redirect_auth_headers(ureq::config::RedirectAuthHeaders::SameHost);
        Ok(Self {
            agent: config.build().new_agent(),
            endpoint: options.endpoint.clone(),
            host: uri.host().map(str::to_owned),
            token: options.token.clone(),
        })
    }

    /// What `id` holds at `revision`.
    pub(crate) fn listing(&self, id: &HubId, revision: &str) -> Result<Listing> {
        let url =
            format!("{}/api/models/{id}/revision/{}?blobs=true", self.endpoint, revision.replace('/', "%2F"));
        let mut response = self.get(&url, 0)?;
        if !response.status().is_success() {
            return Err(self.refusal(&url, &response, Asked { id, revision, file: None }));
        }
        let body = response.body_mut().with_config().limit(LISTING_LEN_MAX).read_to_vec();
        let body = body.map_err(|error| transport(&url, &error))?;
        Listing::parse(&body).map_err(|why| Error::Unexpected { url, why })
    }

    /// The bytes of `file` at `commit`, from `offset` on if the server can.
    pub(crate) fn content(&self, id: &HubId, commit: &str, file: &str, offset: u64) -> Result<Content> {
        let url = self.file_url(id, commit, file);
        let response = self.get(&url, offset)?;
        let offset = match response.status() {
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT => {
                let range =
                    response.headers().get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
                match range.and_then(range_start) {
                    Some(start) if start == offset => offset,
                    _ => return Err(Error::Unexpected { url, why: format!("content range {range:?}") }),
                }
            }
            // What we hold is longer than what they have: begin again, and let the hash decide.
            StatusCode::RANGE_NOT_SATISFIABLE if offset > 0 => return self.content(id, commit, file, 0),
            _ => return Err(self.refusal(&url, &response, Asked { id, revision: commit, file: Some(file) })),
        };
        Ok(Content { offset, reader: Box::new(response.into_body().into_reader()) })
    }

    /// Where `file` is, to be asked for and to be named in errors.
    pub(crate) fn file_url(&self, id: &HubId, commit: &str, file: &str) -> String {
        format!("{}/{id}/resolve/{commit}/{file}", self.endpoint)
    }

    fn get(&self, url: &str, offset: u64) -> Result<Response<Body>> {
        let mut request = self.agent.get(url);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if offset > 0 {
            request = request.header(header::RANGE, format!("bytes={offset}-"));
        }
        request.call().map_err(|error| transport(url, &error))
    }

    /// What a status that is no success means for who asked.
    fn refusal(&self, url: &str, response: &Response<Body>, asked: Asked<'_>) -> Error {
        let Asked { id, revision, file } = asked;
        let status = response.status();
        let is_hub = response.get_uri().host() == self.host.as_deref();
        let code = response.headers().get("x-error-code").and_then(|code| code.to_str().ok());
        let page = format!("{}/{id}", self.endpoint);
        let id = id.to_string();
        let why = format!("HTTP {}", status.as_u16());
        match (status.as_u16(), code, file) {
            (401 | 403, ..) if is_hub => Error::Denied { id, status: status.as_u16(), page },
            // A signed link that ran out; the hub signs a new one on the next attempt.
            (401 | 403 | 408 | 429 | 500 | 502 | 503 | 504, ..) => {
                Error::Unreachable { url: url.into(), why }
            }
            (404, Some("RepoNotFound"), _) => Error::NoRepository { id, page },
            (404, Some("RevisionNotFound"), _) => Error::NoRevision { id, revision: revision.into(), page },
            (404, _, Some(file)) => Error::NoFile { id, revision: revision.into(), file: file.into() },
            // A mirror that sends no code leaves open which of the two is missing.
            (404, _, None) if revision != DEFAULT_REVISION => {
                Error::NoRevision { id, revision: revision.into(), page }
            }
            (404, _, None) => Error::NoRepository { id, page },
            _ => Error::Unexpected { url: url.into(), why },
        }
    }
}

/// What was asked for, to be named in errors.
struct Asked<'a> {
    id: &'a HubId,
    revision: &'a str,
    file: Option<&'a str>,
}

fn range_start(range: &str) -> Option<u64> {
    range.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok()
}

/// Sorts what the transport can fail with into what may pass and what will not.
fn transport(url: &str, error: &ureq::Error) -> Error {
    let (url, why) = (url.to_owned(), error.to_string());
    match error {
        ureq::Error::Io(_)
        | ureq::Error::Timeout(_)
        | ureq::Error::HostNotFound
        | ureq::Error::ConnectionFailed
        | ureq::Error::BodyStalled
        | ureq::Error::ConnectProxyFailed(_)
        | ureq::Error::Protocol(_) => Error::Unreachable { url, why },
        _ => Error::Unexpected { url, why },
    }
}

fn proxy(options: &ProxyOptions) -> Result<Proxy> {
    let parsed = Proxy::new(&options.url).map_err(bad_proxy)?;
    let mut builder = Proxy::builder(parsed.protocol()).host(parsed.host()).port(parsed.port());
    if let Some(username) = parsed.username() {
        builder = builder.username(username);
    }
    if let Some(password) = parsed.password() {
        builder = builder.password(password);
    }
    options.bypass.iter().fold(builder, |builder, host| builder.no_proxy(host)).build().map_err(bad_proxy)
}

fn bad_endpoint(endpoint: &str) -> Error {
    Error::Variable {
        name: "HF_ENDPOINT",
        why: format!("`{endpoint}`"),
        remedy: "give a URL such as https://huggingface.co",
    }
}

fn bad_token() -> Error {
    Error::Variable {
        name: "HF_TOKEN",
        why: "not a token".into(),
        remedy: "it holds blanks or unprintable characters; copy it again from the hub's settings",
    }
}

fn bad_proxy(error: ureq::Error) -> Error {
    Error::Variable {
        name: "HTTPS_PROXY",
        why: format!("no usable proxy ({error})"),
        remedy: "give a URL such as http://proxy.example:3128",
    }
}
