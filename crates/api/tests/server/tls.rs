//! TLS: certificates made here, replaced while the server runs, and asked of
//! clients.

use crate::client::{CHAT, Reply, Wire, chat, request};
use crate::fixture::{Harness, Setup};
use bytes::Bytes;
use chorale_api::{ServeError, Server, TlsConfig};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A certificate for `localhost` and its key, in PEM.
fn certificate() -> (String, String, CertificateDer<'static>) {
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem(), certificate.der().clone())
}

/// Writes a new certificate, and gives what clients need to trust it.
fn write_certificate(folder: &Path) -> CertificateDer<'static> {
    let (certificate, key, der) = certificate();
    std::fs::write(folder.join("key.pem"), key).unwrap();
    std::fs::write(folder.join("cert.pem"), certificate).unwrap();
    der
}

fn config(folder: &Path) -> TlsConfig {
    TlsConfig {
        certificate: folder.join("cert.pem"),
        key: folder.join("key.pem"),
        client_ca: None,
        reload_interval: Duration::from_millis(50),
    }
}

async fn start(tls: TlsConfig) -> Harness {
    let mut setup = Setup::default();
    setup.config.tls = Some(tls);
    setup.start().await
}

fn client(trusted: &CertificateDer<'static>, alpn: &str) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    config
}

async fn connect(harness: &Harness, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(harness.address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

async fn get_version(stream: TlsStream<TcpStream>) -> Reply {
    let mut wire = Wire::over(stream);
    wire.send(request("GET", "/version", &[], "")).await;
    wire.reply().await
}

#[tokio::test]
async fn both_protocols_are_spoken_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    let trusted = write_certificate(folder.path());
    let harness = start(config(folder.path())).await;
    let stream = connect(&harness, client(&trusted, "http/1.1")).await.unwrap();
    assert_eq!(get_version(stream).await.status, 200);

    let stream = connect(&harness, client(&trusted, "h2")).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    for is_streamed in [false, true] {
        let request = hyper::Request::post(format!("https://localhost{CHAT}"))
            .body(Full::new(Bytes::from(chat(is_streamed, 20))))
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!((response.status().as_u16(), response.version()), (200, hyper::Version::HTTP_2));
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert!(String::from_utf8_lossy(&body).contains(" tick"));
    }
    // An idle connection is told to leave, and does not hold up the end.
    harness.shared.shutdown().begin();
    assert_eq!(harness.ended().await.num_cut, 0);
    connection.await.unwrap().unwrap();
}

#[tokio::test]
async fn new_certificates_are_used_and_broken_ones_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let old = write_certificate(folder.path());
    let harness = start(config(folder.path())).await;
    let open = connect(&harness, client(&old, "http/1.1")).await.unwrap();

    std::fs::write(folder.path().join("cert.pem"), "nothing of use").unwrap();
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert!(connect(&harness, client(&old, "http/1.1")).await.is_ok(), "the old one stays in use");

    let new = write_certificate(folder.path());
    let started = tokio::time::Instant::now();
    while connect(&harness, client(&new, "http/1.1")).await.is_err() {
        assert!(started.elapsed() < crate::client::A_WHILE, "the new one is not used");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(connect(&harness, client(&old, "http/1.1")).await.is_err());
    assert_eq!(get_version(open).await.status, 200, "connections outlive the change");
}

#[tokio::test]
async fn clients_may_need_certificates_too() {
    let folder = tempfile::tempdir().unwrap();
    let trusted = write_certificate(folder.path());
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
    let client_ca = Some(folder.path().join("ca.pem"));
    let harness = start(TlsConfig { client_ca, ..config(folder.path()) }).await;

    // With TLS 1.3 a client learns of its refusal when it reads.
    let refused = match connect(&harness, client(&trusted, "http/1.1")).await {
        Ok(stream) => get_version_or_nothing(stream).await,
        Err(_) => 0,
    };
    assert_eq!(refused, 0);

    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["client".to_owned()]).unwrap();
    let own = params.signed_by(&key, &authority).unwrap().der().clone();
    let mut roots = RootCertStore::empty();
    roots.add(trusted).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![own], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
        .unwrap();
    let stream = connect(&harness, config).await.unwrap();
    assert_eq!(get_version(stream).await.status, 200);
}

async fn get_version_or_nothing(stream: TlsStream<TcpStream>) -> u16 {
    use tokio::io::AsyncWriteExt;
    let mut stream = stream;
    match stream.write_all(request("GET", "/version", &[], "").as_bytes()).await {
        Ok(()) => Wire::over(stream).reply().await.status,
        Err(_) => 0,
    }
}

#[tokio::test]
async fn a_server_with_useless_certificates_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    write_certificate(folder.path());
    let (_, other_key, _) = certificate();
    std::fs::write(folder.path().join("other.pem"), other_key).unwrap();
    for (tls, expected) in [
        (TlsConfig { key: folder.path().join("none.pem"), ..config(folder.path()) }, "none.pem"),
        (TlsConfig { key: folder.path().join("cert.pem"), ..config(folder.path()) }, "cert.pem"),
        (TlsConfig { key: folder.path().join("other.pem"), ..config(folder.path()) }, "cert.pem"),
        (TlsConfig { certificate: folder.path().join("key.pem"), ..config(folder.path()) }, "no certificate"),
    ] {
        let harness = Setup::default().start().await;
        let config = chorale_api::ServerConfig { tls: Some(tls), ..Setup::default().config };
        let error = Server::bind(config, harness.shared.clone()).await.err().unwrap();
        assert!(matches!(error, ServeError::Tls(_)) && error.to_string().contains(expected), "{error}");
    }
}
