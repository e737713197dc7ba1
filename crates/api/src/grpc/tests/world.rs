//! A gRPC server on a port of its own, whose model reads from scripts, and the
//! clients that look at it.

use crate::auth::{KeySettings, Keyring};
use crate::generation::{Generator, Unobserved};
use crate::openai::OpenAi;
use crate::scripted;
pub(super) use crate::scripted::{CONTEXT, PATIENCE, limits, tokens};
use crate::server::{Drained, Shared, SharedConfig};
use crate::status::{EngineStatus, LoadStatus, Served};
use crate::{GrpcConfig, GrpcServer};
use chorale_coordinator::Engine;
use chorale_harmony::VOCABULARY_SIZE;
use chorale_wire::inference::v1;
use chorale_wire::inference::v1::inference_client::InferenceClient;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

/// What a server is like.
pub(super) struct Setup {
    /// Text with specials spelled.
    pub(super) scripts: Vec<String>,
    pub(super) step_time: Duration,
    pub(super) keys: Vec<KeySettings>,
    pub(super) max_active_requests: usize,
    pub(super) config: GrpcConfig,
}

impl Setup {
    pub(super) fn new(scripts: &[&str]) -> Self {
        Self {
            scripts: scripts.iter().map(|&script| script.to_owned()).collect(),
            step_time: Duration::ZERO,
            keys: Vec::new(),
            max_active_requests: 64,
            config: config_of_a_test(),
        }
    }

    /// One answer that takes its time: a token every 20 ms, for half a minute.
    pub(super) fn endless() -> Self {
        let text = format!("<|channel|>final<|message|>{}", "word ".repeat(1500));
        Self { step_time: Duration::from_millis(20), ..Self::new(&[&text]) }
    }

    /// A server that is ready.
    pub(super) async fn serve(self) -> World {
        let world = self.load().await;
        world.finish_loading();
        world
    }

    /// A server that still loads.
    pub(super) async fn load(self) -> World {
        let (status, receiver) = watch::channel(EngineStatus::Loading(LoadStatus::new(2)));
        let config = SharedConfig {
            served_model_names: limits().models,
            max_model_len: CONTEXT,
            keyring: Keyring::new(self.keys).unwrap(),
            max_active_requests: self.max_active_requests,
            cluster: None,
        };
        let shared = Shared::new(config, receiver);
        let server = GrpcServer::bind(self.config, shared.clone()).await.unwrap();
        let address = server.address();
        let task = tokio::spawn(async move { server.run().await.unwrap() });
        let scripts = self.scripts.iter().map(|script| tokens(script)).collect();
        let engine = scripted::start(scripts, self.step_time, 64);
        World { shared, address, task, engine, status }
    }
}

fn config_of_a_test() -> GrpcConfig {
    GrpcConfig {
        address: "127.0.0.1:0".parse().unwrap(),
        tls: None,
        max_message_bytes: 1 << 20,
        max_metadata_bytes: 16 << 10,
        max_connections: 16,
        max_streams_per_connection: 128,
        handshake_timeout_ms: 500,
        keepalive_interval_ms: 10_000,
        keepalive_timeout_ms: 10_000,
        stalled_reader_timeout_ms: 10_000,
        drain_timeout_ms: 10_000,
    }
}

/// A server that runs.
pub(super) struct World {
    pub(super) shared: Shared,
    pub(super) address: SocketAddr,
    pub(super) task: JoinHandle<Drained>,
    pub(super) engine: Engine,
    pub(super) status: watch::Sender<EngineStatus>,
}

pub(super) type Client = InferenceClient<Channel>;

impl World {
    /// Everything is loaded now.
    pub(super) fn finish_loading(&self) {
        let generator = Generator::new(self.engine.clone(), CONTEXT, Arc::new(Unobserved));
        self.status.send_replace(EngineStatus::Ready(Arc::new(Served {
            engine: self.engine.clone(),
            openai: OpenAi::new(generator, limits(), Duration::from_secs(5)),
            vocab_size: VOCABULARY_SIZE,
            max_model_len: CONTEXT,
            block_size_tokens: 16,
            prefix_caching: true,
            since: SystemTime::now(),
            experts: None,
        })));
    }

    pub(super) async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        endpoint.connect().await.unwrap()
    }

    pub(super) async fn client(&self) -> Client {
        InferenceClient::new(self.channel().await)
    }

    /// Waits until no sequence is left in the engine and no request in the table.
    pub(super) async fn idle(&self) {
        scripted::idle(&self.engine).await;
        tokio::time::timeout(PATIENCE, self.shared.requests().idle()).await.expect("requests are left");
    }
}

pub(super) fn user(text: &str) -> v1::Message {
    v1::Message { role: v1::Role::User as i32, content: text.to_owned(), ..Default::default() }
}

/// A chat request of one user message.
pub(super) fn ask() -> v1::ChatRequest {
    v1::ChatRequest { messages: vec![user("Hi")], ..Default::default() }
}

/// A token-level request of three tokens.
pub(super) fn prompt() -> v1::GenerateRequest {
    let ids = tokens("one two three");
    let prompt = v1::generate_request::Prompt::TokenIds(v1::TokenIds { ids });
    v1::GenerateRequest { prompt: Some(prompt), ..Default::default() }
}

/// The stream to its end, or to its error.
pub(super) async fn drain<M>(stream: &mut Streaming<M>) -> Result<Vec<M>, Status> {
    let mut messages = Vec::new();
    let all = async {
        while let Some(message) = stream.message().await? {
            messages.push(message);
        }
        Ok::<(), Status>(())
    };
    tokio::time::timeout(PATIENCE, all).await.expect("no end")?;
    Ok(messages)
}

/// A chat to its end, or to its error.
pub(super) async fn chat(
    client: &mut Client,
    request: v1::ChatRequest,
) -> Result<Vec<v1::chat_event::Event>, Status> {
    let mut stream = client.chat(request).await?.into_inner();
    Ok(drain(&mut stream).await?.into_iter().map(|event| event.event.unwrap()).collect())
}

/// A continuation to its end, or to its error.
pub(super) async fn generate(
    client: &mut Client,
    request: v1::GenerateRequest,
) -> Result<Vec<v1::generate_event::Event>, Status> {
    let mut stream = client.generate(request).await?.into_inner();
    Ok(drain(&mut stream).await?.into_iter().map(|event| event.event.unwrap()).collect())
}

/// The id that a chat was given.
pub(super) async fn started(stream: &mut Streaming<v1::ChatEvent>) -> String {
    match stream.message().await.unwrap().unwrap().event.unwrap() {
        v1::chat_event::Event::Started(started) => started.request_id,
        other => panic!("{other:?} came first"),
    }
}
