//! Settings to the doors' configurations. Bounds that nobody has asked to set
//! stand here, each with its reason.

use super::load::Described;
use super::refuse;
use crate::config::Config;
use crate::device::DeviceKind;
use crate::setup::Setup;
use anyhow::Context;
use chorale_api::openai::{Limits, SystemDate};
use chorale_api::{GrpcConfig, KeySettings, Keyring, ServerConfig, SharedConfig, TlsConfig};
use chorale_coordinator::cluster::ClusterStatus;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// A context of 131,072 tokens is some 600 KB of text; tools and schemas come on top.
const MAX_BODY_BYTES: usize = 16 << 20;
/// What proxies let through by default, and more than any client sends.
const MAX_HEADER_BYTES: usize = 64 << 10;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// Longer than the idle timeouts of load balancers, so that they close first.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
const STALLED_READER_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_CONNECTIONS: usize = 4096;
const MAX_STREAMS_PER_CONNECTION: u32 = 256;
const TLS_RELOAD_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL_MS: u64 = 30_000;
const KEEPALIVE_TIMEOUT_MS: u64 = 20_000;
/// Continuations of one request.
const MAX_CHOICES: u32 = 128;
const MAX_TOOLS: usize = 128;
/// The name of a key that has none.
const LONE_KEY: &str = "default";

/// What all doors share.
pub(super) fn shared(
    setup: &Setup,
    described: &Described,
    cluster: Option<watch::Receiver<Arc<ClusterStatus>>>,
) -> anyhow::Result<SharedConfig> {
    let settings = &setup.config;
    let name = settings.served_model_name.clone().unwrap_or_else(|| described.name.clone());
    // The model's own name works, too, under whichever it is served.
    let mut names = vec![name];
    if names[0] != described.name {
        names.push(described.name.clone());
    }
    Ok(SharedConfig {
        served_model_names: names,
        max_model_len: described.max_model_len as u32,
        keyring: keyring(setup)?,
        max_active_requests: settings.max_waiting_requests
            + settings.max_num_seqs(DeviceKind::Gpu) * settings.data_parallel_size,
        cluster,
    })
}

fn keyring(setup: &Setup) -> anyhow::Result<Keyring> {
    let mut keys = Vec::new();
    if let Some(path) = &setup.config.api_key_file {
        let what = || format!("--api-key-file {}", path.display());
        let text = std::fs::read_to_string(path).with_context(what)?;
        keys = Keyring::parse_settings(&text).with_context(what)?;
        if keys.is_empty() {
            return Err(refuse(format!(
                "{} holds no keys: add a [[key]] table with name and secret",
                what()
            )));
        }
    }
    if let Some(secret) = &setup.config.api_key {
        keys.push(KeySettings::new(LONE_KEY, secret.0.clone()));
    }
    Keyring::new(keys).context("API keys")
}

/// The HTTP door.
pub(super) fn http(setup: &Setup) -> anyhow::Result<ServerConfig> {
    let settings = &setup.config;
    Ok(ServerConfig {
        host: host(settings)?,
        port: settings.port,
        max_body_bytes: MAX_BODY_BYTES,
        max_header_bytes: MAX_HEADER_BYTES,
        header_timeout: HEADER_TIMEOUT,
        body_timeout: BODY_TIMEOUT,
        idle_timeout: IDLE_TIMEOUT,
        stalled_reader_timeout: STALLED_READER_TIMEOUT,
        max_connections: MAX_CONNECTIONS,
        max_streams_per_connection: MAX_STREAMS_PER_CONNECTION,
        cors_origins: settings.cors_origin.iter().cloned().collect(),
        tls: tls(settings)?,
        metrics_need_key: settings.metrics_need_key,
        drain_timeout: drain_timeout(settings),
    })
}

/// The gRPC door.
pub(super) fn grpc(setup: &Setup) -> anyhow::Result<GrpcConfig> {
    let settings = &setup.config;
    Ok(GrpcConfig {
        address: SocketAddr::new(host(settings)?, settings.grpc_port),
        tls: tls(settings)?,
        max_message_bytes: MAX_BODY_BYTES,
        max_metadata_bytes: MAX_HEADER_BYTES as u32,
        max_connections: MAX_CONNECTIONS,
        max_streams_per_connection: MAX_STREAMS_PER_CONNECTION,
        handshake_timeout_ms: HEADER_TIMEOUT.as_millis() as u64,
        keepalive_interval_ms: KEEPALIVE_INTERVAL_MS,
        keepalive_timeout_ms: KEEPALIVE_TIMEOUT_MS,
        stalled_reader_timeout_ms: STALLED_READER_TIMEOUT.as_millis() as u64,
        drain_timeout_ms: drain_timeout(settings).as_millis() as u64,
    })
}

/// What a request may ask for.
pub(super) fn limits(setup: &Setup, names: &[String], vocab_size: usize) -> Limits {
    Limits {
        models: names.to_vec(),
        vocabulary_size: vocab_size as u32,
        max_choices: MAX_CHOICES,
        max_tools: MAX_TOOLS,
        system_date: match setup.config.system_date.as_deref() {
            None | Some("today") => SystemDate::Today,
            Some("none") => SystemDate::Omitted,
            Some(date) => SystemDate::Fixed(date.to_owned()),
        },
    }
}

fn host(settings: &Config) -> anyhow::Result<IpAddr> {
    let host = if settings.host == "localhost" { "127.0.0.1" } else { &settings.host };
    host.parse()
        .map_err(|_| refuse(format!("--host is {host:?}: must be an address such as 127.0.0.1 or ::")))
}

fn tls(settings: &Config) -> anyhow::Result<Option<TlsConfig>> {
    let absolute = |path: &Path| std::path::absolute(path).with_context(|| path.display().to_string());
    match (&settings.tls_cert, &settings.tls_key) {
        (None, None) => Ok(None),
        (Some(certificate), Some(key)) => Ok(Some(TlsConfig {
            certificate: absolute(certificate)?,
            key: absolute(key)?,
            client_ca: None,
            reload_interval: TLS_RELOAD_INTERVAL,
        })),
        (Some(_), None) => Err(refuse("--tls-cert is given without --tls-key: TLS needs both")),
        (None, Some(_)) => Err(refuse("--tls-key is given without --tls-cert: TLS needs both")),
    }
}

fn drain_timeout(settings: &Config) -> Duration {
    Duration::from_secs(settings.drain_timeout)
}
