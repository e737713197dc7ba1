//! TLS: certificates made here, replaced while the server runs, and asked of
//! clients.

use super::world::{Client, PATIENCE, Setup, World, ask, chat};
use crate::server::TlsConfig;
use crate::{GrpcServeError, GrpcServer};
use chorale_wire::inference::v1::inference_client::InferenceClient;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

const ANSWER: &str = "<|channel|>final<|message|>Yes.<|return|>";

/// Writes a new certificate, and gives what clients need to trust it.
fn write_certificate(folder: &Path) -> ClientTlsConfig {
    let issued = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(folder.join("key.pem"), issued.signing_key.serialize_pem()).unwrap();
    std::fs::write(folder.join("cert.pem"), issued.cert.pem()).unwrap();
    ClientTlsConfig::new().ca_certificate(Certificate::from_pem(issued.cert.pem())).domain_name("localhost")
}

fn files(folder: &Path) -> TlsConfig {
    TlsConfig {
        certificate: folder.join("cert.pem"),
        key: folder.join("key.pem"),
        client_ca: None,
        reload_interval: Duration::from_millis(50),
    }
}

async fn serve(tls: TlsConfig) -> World {
    let mut setup = Setup::new(&[ANSWER]);
    setup.config.tls = Some(tls);
    setup.serve().await
}

/// A client on a connection of its own.
async fn connect(world: &World, tls: &ClientTlsConfig) -> Option<Client> {
    let endpoint = Endpoint::from_shared(format!("https://{}", world.address)).unwrap();
    let channel = endpoint.tls_config(tls.clone()).unwrap().connect().await.ok()?;
    Some(InferenceClient::new(channel))
}

/// A connection that has shaken hands and says no more.
async fn shake(world: &World, folder: &Path, protocol: &str) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.join("cert.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let stream = TcpStream::connect(world.address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// Whether a new connection answers.
async fn answers(world: &World, tls: &ClientTlsConfig) -> bool {
    match connect(world, tls).await {
        Some(mut client) => chat(&mut client, ask()).await.is_ok(),
        None => false,
    }
}

#[tokio::test]
async fn tls_is_spoken_where_it_is_configured() {
    let folder = tempfile::tempdir().unwrap();
    let trusted = write_certificate(folder.path());
    let world = serve(files(folder.path())).await;
    assert!(answers(&world, &trusted).await);
    let plain = Endpoint::from_shared(format!("http://{}", world.address)).unwrap();
    let refused = match plain.connect().await {
        Ok(channel) => chat(&mut InferenceClient::new(channel), ask()).await.is_err(),
        Err(_) => true,
    };
    assert!(refused);
}

#[tokio::test]
async fn new_certificates_are_used_and_broken_ones_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let old = write_certificate(folder.path());
    let world = serve(files(folder.path())).await;
    let mut open = connect(&world, &old).await.unwrap();

    std::fs::write(folder.path().join("cert.pem"), "nothing of use").unwrap();
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert!(answers(&world, &old).await, "the old one stays in use");

    let new = write_certificate(folder.path());
    let used = async {
        while !answers(&world, &new).await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, used).await.expect("the new one is not used");
    assert!(!answers(&world, &old).await);
    assert!(chat(&mut open, ask()).await.is_ok(), "connections outlive the change");
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
    let world = serve(TlsConfig { client_ca, ..files(folder.path()) }).await;

    assert!(!answers(&world, &trusted).await, "it has shown none");
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["client".to_owned()]).unwrap();
    let strange = params.self_signed(&key).unwrap().pem();
    let own = params.signed_by(&key, &authority).unwrap().pem();
    let showing = |pem| trusted.clone().identity(Identity::from_pem(pem, key.serialize_pem()));
    assert!(!answers(&world, &showing(strange)).await, "it is not the authority's");
    assert!(answers(&world, &showing(own)).await);
}

#[tokio::test]
async fn a_handshake_that_never_ends_gives_its_place_back() {
    let folder = tempfile::tempdir().unwrap();
    let trusted = write_certificate(folder.path());
    let mut setup = Setup::new(&[ANSWER]);
    setup.config.tls = Some(files(folder.path()));
    setup.config.max_connections = 1;
    let world = setup.serve().await;
    let silent = TcpStream::connect(world.address).await.unwrap();
    assert!(tokio::time::timeout(PATIENCE, answers(&world, &trusted)).await.unwrap());
    drop(silent);
}

#[tokio::test]
async fn http_2_is_agreed_on_and_its_greeting_waited_for_no_longer_than_the_handshake() {
    let folder = tempfile::tempdir().unwrap();
    write_certificate(folder.path());
    let world = serve(files(folder.path())).await;
    assert!(shake(&world, folder.path(), "http/1.1").await.is_err());
    let mut silent = shake(&world, folder.path(), "h2").await.unwrap();
    assert_eq!(silent.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    // It ends after half a second, cleanly or not, and before any keepalive.
    let mut said = Vec::new();
    let end = silent.read_to_end(&mut said);
    assert!(tokio::time::timeout(Duration::from_secs(5), end).await.is_ok(), "it stays open");
}

#[tokio::test]
async fn a_handshake_holds_up_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let trusted = write_certificate(folder.path());
    let mut setup = Setup::new(&[ANSWER]);
    setup.config.tls = Some(files(folder.path()));
    setup.config.handshake_timeout_ms = 60_000;
    let world = setup.serve().await;
    let silent = TcpStream::connect(world.address).await.unwrap();
    assert!(tokio::time::timeout(PATIENCE, answers(&world, &trusted)).await.unwrap());
    drop(silent);
}

#[tokio::test]
async fn a_server_with_useless_certificates_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    write_certificate(folder.path());
    let world = Setup::new(&[ANSWER]).serve().await;
    for name in ["none.pem", "cert.pem"] {
        let tls = Some(TlsConfig { key: folder.path().join(name), ..files(folder.path()) });
        let config = crate::GrpcConfig { tls, ..Setup::new(&[]).config };
        let error = GrpcServer::bind(config, world.shared.clone()).await.err().unwrap();
        assert!(matches!(error, GrpcServeError::Tls(_)) && error.to_string().contains(name), "{error}");
    }
}
