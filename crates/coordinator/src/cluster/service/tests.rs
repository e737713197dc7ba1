//! Workers that join over loopback, the good and the bad.

use super::*;
use crate::cluster::{ClusterExecutor, test_config};
use chorale_plan::{KvFormat, Offer, PROTOCOL};
use chorale_wire::cluster::v1;
use chorale_wire::cluster::v1::cluster_client::ClusterClient;
use chorale_wire::tls::make_certificates;
use futures_util::{StreamExt, stream};
use std::path::Path;
use tokio::time::timeout;
use tonic::Code;

/// For what does happen.
const PATIENCE: Duration = Duration::from_secs(20);

async fn open(tls: Option<Tls>) -> (JoinPort, Cluster, ClusterExecutor) {
    let (cluster, executor, _) = Cluster::start(test_config(1, 1)).unwrap();
    let address = "127.0.0.1:0".parse().unwrap();
    let config = JoinPortConfig { address, tls, max_connections: 8 };
    (JoinPort::bind(config, cluster.clone()).await.unwrap(), cluster, executor)
}

fn offer(protocol: u32) -> WorkerMessage {
    FromWorker::Offer(Offer {
        session: 1,
        version: "1.0.0".to_owned(),
        protocol,
        checkpoint: "digest".to_owned(),
        address: "127.0.0.1:9".to_owned(),
        device: "none".to_owned(),
        memory_bytes: 1 << 20,
        memory_bytes_per_s: 1 << 30,
        experts_only: false,
        nccl: None,
        kv_dtypes: vec![KvFormat::F32, KvFormat::Bf16, KvFormat::Fp8],
        host_expert_bytes: 0,
    })
    .into()
}

/// Says all this, and keeps the call.
async fn call(port: &JoinPort, said: Vec<WorkerMessage>) -> Streaming<CoordinatorMessage> {
    let endpoint = tls::endpoint(&port.address().to_string(), None).unwrap();
    let mut client = ClusterClient::new(endpoint.connect().await.unwrap());
    client.join(stream::iter(said).chain(stream::pending())).await.unwrap().into_inner()
}

async fn next(told: &mut Streaming<CoordinatorMessage>) -> Result<Option<ToWorker>, Status> {
    let message = timeout(PATIENCE, told.message()).await.unwrap()?;
    Ok(message.map(|message| message.try_into().unwrap()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_is_let_in_and_missed_when_it_goes() {
    let (port, cluster, _executor) = open(None).await;
    let mut told = call(&port, vec![offer(PROTOCOL)]).await;
    assert!(matches!(next(&mut told).await, Ok(Some(ToWorker::Welcome { .. }))));
    let mut statuses = cluster.watch();
    timeout(PATIENCE, statuses.wait_for(|status| status.members.len() == 1)).await.unwrap().unwrap();
    drop(told);
    timeout(PATIENCE, statuses.wait_for(|status| status.members.is_empty())).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn why_a_worker_is_turned_away_reaches_it() {
    let (port, _cluster, _executor) = open(None).await;
    let mut told = call(&port, vec![offer(PROTOCOL + 1)]).await;
    assert!(matches!(next(&mut told).await, Ok(Some(ToWorker::Turned { may_retry: false, .. }))));
    assert!(!matches!(next(&mut told).await, Ok(Some(_))), "the call ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_ends_the_call_by_field() {
    let (port, _cluster, _executor) = open(None).await;
    let bad = v1::Lost { reason: "x".repeat(5000), ..Default::default() };
    let bad = WorkerMessage { said: Some(v1::worker_message::Said::Lost(bad)) };
    let mut told = call(&port, vec![offer(PROTOCOL), bad]).await;
    let status = loop {
        match next(&mut told).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended well"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().starts_with("lost.reason: "), "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_the_cluster_is_the_end_of_all_calls() {
    let (port, cluster, executor) = open(None).await;
    let mut told = call(&port, vec![offer(PROTOCOL)]).await;
    assert!(matches!(next(&mut told).await, Ok(Some(ToWorker::Welcome { .. }))));
    drop((cluster, executor));
    while let Ok(Some(_)) = next(&mut told).await {}
}

fn certificates(folder: &Path) -> Tls {
    make_certificates(folder, &["all"]).unwrap();
    Tls::load(&folder.join("all")).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_workers_of_the_cluster_are_let_in() {
    let folder = tempfile::tempdir().unwrap();
    let own = certificates(&folder.path().join("own"));
    let other = certificates(&folder.path().join("other"));
    let (port, _cluster, _executor) = open(Some(own.clone())).await;
    let address = port.address().to_string();
    for (tls, is_let_in) in [(Some(own), true), (Some(other), false), (None, false)] {
        let endpoint = tls::endpoint(&address, tls.as_ref()).unwrap();
        let joined = async {
            let mut client = ClusterClient::new(endpoint.connect().await.ok()?);
            let said = stream::iter([offer(PROTOCOL)]).chain(stream::pending());
            let mut told = client.join(said).await.ok()?.into_inner();
            next(&mut told).await.ok()?
        };
        assert_eq!(timeout(PATIENCE, joined).await.unwrap().is_some(), is_let_in, "{tls:?}");
    }
}
