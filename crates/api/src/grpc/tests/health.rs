//! What probes and clients are told of the server: health, reflection, and how
//! far loading is.

use super::world::{PATIENCE, Setup, ask, drain};
use crate::status::{EngineStatus, LoadStatus};
use chorale_wire::inference::v1::{self, LoadState};
use chorale_wire::inference::{FILE_DESCRIPTOR_SET, SERVICE_NAME};
use std::time::{Duration, Instant};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

#[tokio::test]
async fn health_follows_loading_and_draining() {
    let world = Setup::endless().load().await;
    let mut health = HealthClient::new(world.channel().await);
    let mut client = world.client().await;
    for service in ["", SERVICE_NAME] {
        let request = HealthCheckRequest { service: service.into() };
        let status = health.check(request).await.unwrap().into_inner().status();
        assert_eq!(status, ServingStatus::NotServing, "{service:?}");
    }
    let unknown = HealthCheckRequest { service: "nobody".into() };
    assert_eq!(health.check(unknown).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(client.chat(ask()).await.unwrap_err().code(), Code::Unavailable);

    let request = HealthCheckRequest { service: SERVICE_NAME.into() };
    let mut seen = health.watch(request).await.unwrap().into_inner();
    let mut next = async || {
        let next = tokio::time::timeout(PATIENCE, seen.message()).await.unwrap();
        next.unwrap().unwrap().status()
    };
    assert_eq!(next().await, ServingStatus::NotServing);
    world.finish_loading();
    assert_eq!(next().await, ServingStatus::Serving);
    // Something must run, or the drained server is gone at once.
    let _stream = client.chat(ask()).await.unwrap();
    world.shared.shutdown().begin();
    assert_eq!(next().await, ServingStatus::NotServing);
}

#[tokio::test]
async fn health_fails_when_the_engine_stops() {
    let world = Setup::endless().serve().await;
    let mut health = HealthClient::new(world.channel().await);
    let mut seen = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    let wanted = [ServingStatus::Serving, ServingStatus::NotServing];
    for wanted in wanted {
        let mut status = None;
        while status != Some(wanted) {
            let next = tokio::time::timeout(PATIENCE, seen.message()).await.unwrap();
            status = Some(next.unwrap().unwrap().status());
        }
        world.engine.stop().await;
    }
}

#[tokio::test]
async fn reflection_lists_the_services_and_gives_their_files() {
    let world = Setup::new(&[""]).serve().await;
    let mut client = ServerReflectionClient::new(world.channel().await);
    let ask = |request| {
        let request = ServerReflectionRequest { host: String::new(), message_request: Some(request) };
        futures_util::stream::iter([request])
    };
    let request = ask(MessageRequest::ListServices(String::new()));
    let answer = client.server_reflection_info(request).await.unwrap().into_inner().message().await;
    let Some(MessageResponse::ListServicesResponse(list)) = answer.unwrap().unwrap().message_response else {
        panic!("no list")
    };
    let names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    for name in [SERVICE_NAME, "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"] {
        assert!(names.iter().any(|found| found == name), "{name} is not among {names:?}");
    }
    let request = ask(MessageRequest::FileContainingSymbol("chorale.inference.v1.ChatRequest".into()));
    let answer = client.server_reflection_info(request).await.unwrap().into_inner().message().await;
    let Some(MessageResponse::FileDescriptorResponse(files)) = answer.unwrap().unwrap().message_response
    else {
        panic!("no file")
    };
    assert!(!files.file_descriptor_proto.is_empty());
    assert!(FILE_DESCRIPTOR_SET.len() > 1000);
}

#[tokio::test]
async fn loading_is_followed_to_its_end() {
    let world = Setup::new(&[""]).load().await;
    let mut client = world.client().await;
    let request = v1::WatchLoadStatusRequest { interval_ms: Some(10) };
    let mut stream = client.watch_load_status(request).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap().status.unwrap();
    let progress = first.progress.unwrap();
    assert_eq!((first.state(), progress.ranks_total, progress.remaining_ms), (LoadState::Loading, 2, None));

    let started = Instant::now() - Duration::from_secs(10);
    let load = LoadStatus {
        bytes: 300,
        total_bytes: 400,
        tensors: 3,
        total_tensors: 4,
        ranks_ready: 1,
        started,
        ..LoadStatus::new(2)
    };
    world.status.send_replace(EngineStatus::Loading(load));
    let next = stream.message().await.unwrap().unwrap().status.unwrap();
    let progress = next.progress.unwrap();
    assert_eq!((progress.bytes_loaded, progress.bytes_total, progress.tensors_loaded), (300, 400, 3));
    assert!((3000..4000).contains(&progress.remaining_ms.unwrap()), "{progress:?}");

    world.finish_loading();
    let last = drain(&mut stream).await.unwrap();
    assert_eq!(last.len(), 1);
    assert_eq!(last[0].status.as_ref().unwrap().state(), LoadState::Ready);
    let now = client.get_load_status(v1::GetLoadStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(now.status.unwrap().state(), LoadState::Ready);
}

#[tokio::test]
async fn failed_loading_says_why() {
    let world = Setup::new(&[""]).load().await;
    world.status.send_replace(EngineStatus::Failed { reason: "no such file".into() });
    let mut client = world.client().await;
    let status =
        client.get_load_status(v1::GetLoadStatusRequest {}).await.unwrap().into_inner().status.unwrap();
    assert_eq!((status.state(), status.failure.as_str()), (LoadState::Failed, "no such file"));
}
