//! How calls end before their time: by id, by their clients, by deadlines, by
//! slow readers, and with the server.

use super::world::{PATIENCE, Setup, ask, chat, drain, prompt, started, user};
use crate::server::Drained;
use chorale_wire::inference::v1;
use std::time::{Duration, Instant};
use tonic::{Code, Request};
use tonic_types::StatusExt;

#[tokio::test]
async fn a_request_is_listed_and_cancelled_by_its_id() {
    let world = Setup::endless().serve().await;
    let mut client = world.client().await;
    let mut stream = client.chat(ask()).await.unwrap().into_inner();
    let request_id = started(&mut stream).await;
    stream.message().await.unwrap().unwrap();

    let listed = client.list_requests(v1::ListRequestsRequest {}).await.unwrap().into_inner().requests;
    let [request] = &listed[..] else { panic!("{listed:?}") };
    assert_eq!((&request.request_id, request.model.as_str()), (&request_id, "gpt-oss"));
    assert_eq!(request.state(), v1::RequestState::Running);
    assert!(request.prompt_tokens > 20 && request.completion_tokens > 0);

    client.cancel(v1::CancelRequest { request_id: request_id.clone() }).await.unwrap();
    assert_eq!(drain(&mut stream).await.unwrap_err().code(), Code::Cancelled);
    world.idle().await;
    let again = client.cancel(v1::CancelRequest { request_id }).await.unwrap_err();
    assert_eq!(again.code(), Code::NotFound);
}

#[tokio::test]
async fn a_client_that_leaves_cancels() {
    let world = Setup::endless().serve().await;
    let mut client = world.client().await;
    let mut stream = client.generate(prompt()).await.unwrap().into_inner();
    for _ in 0..3 {
        stream.message().await.unwrap().unwrap();
    }
    assert_eq!(world.shared.requests().num_active(), 1);
    drop(stream);
    world.idle().await;
}

#[tokio::test]
async fn a_deadline_ends_the_work_and_is_named() {
    let world = Setup::endless().serve().await;
    let mut client = world.client().await;
    let mut request = Request::new(ask());
    // Set by hand, so that the client's own clock does not answer first.
    request.metadata_mut().insert("grpc-timeout", "300m".parse().unwrap());
    let began = Instant::now();
    let mut stream = client.chat(request).await.unwrap().into_inner();
    let status = drain(&mut stream).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert!((200..5000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    world.idle().await;

    let mut request = Request::new(ask());
    request.metadata_mut().insert("grpc-timeout", "soon".parse().unwrap());
    assert_eq!(client.chat(request).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_client_that_does_not_read_is_left() {
    let text = format!("<|channel|>final<|message|>{}", "word ".repeat(1900));
    let mut setup = Setup::new(&[&text]);
    setup.config.stalled_reader_timeout_ms = 200;
    let world = setup.serve().await;
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", world.address)).unwrap();
    // So little that the server must wait for the reader.
    let channel = endpoint.initial_stream_window_size(512).connect().await.unwrap();
    let mut client = v1::inference_client::InferenceClient::new(channel);
    let mut stream = client.chat(ask()).await.unwrap().into_inner();
    world.idle().await;
    assert_eq!(drain(&mut stream).await.unwrap_err().code(), Code::Cancelled);
}

#[tokio::test]
async fn who_is_too_many_is_told_when_to_come_back() {
    let world = Setup { max_active_requests: 1, ..Setup::endless() }.serve().await;
    let mut client = world.client().await;
    let mut stream = client.chat(ask()).await.unwrap().into_inner();
    started(&mut stream).await;
    let status = client.chat(ask()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    let details = status.get_error_details();
    assert!(details.retry_info().unwrap().retry_delay.unwrap() >= Duration::from_secs(1));
}

#[tokio::test]
async fn a_prompt_beyond_the_context_is_the_clients_to_shorten() {
    let world = Setup::new(&[""]).serve().await;
    let request = v1::ChatRequest { messages: vec![user(&"word ".repeat(3000))], ..Default::default() };
    let status = chat(&mut world.client().await, request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(status.get_error_details().error_info().unwrap().reason, "CONTEXT_LENGTH_EXCEEDED");
    let request = v1::ChatRequest { messages: vec![user(&"x".repeat(2 << 20))], ..Default::default() };
    let status = chat(&mut world.client().await, request).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange);
}

#[tokio::test]
async fn a_draining_server_finishes_what_runs_and_takes_nothing_new() {
    let text = format!("<|channel|>final<|message|>{}", "word ".repeat(40));
    let setup = Setup { step_time: Duration::from_millis(20), ..Setup::new(&[&text]) };
    let world = setup.serve().await;
    let mut client = world.client().await;
    let mut stream = client.chat(ask()).await.unwrap().into_inner();
    started(&mut stream).await;

    world.shared.shutdown().begin();
    let refused = client.chat(ask()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.get_error_details().retry_info().is_some());
    // New connections are told so as well.
    let refused = world.client().await.list_models(v1::ListModelsRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);

    let events = drain(&mut stream).await.unwrap();
    assert!(matches!(events.last().unwrap().event, Some(v1::chat_event::Event::Completed(_))));
    drop((client, stream));
    let drained = tokio::time::timeout(PATIENCE, world.task).await.unwrap().unwrap();
    assert_eq!(drained, Drained { num_cut: 0 });
}

#[tokio::test]
async fn what_runs_too_long_is_cut_off_and_told() {
    let mut setup = Setup::endless();
    setup.config.drain_timeout_ms = 300;
    let world = setup.serve().await;
    let mut client = world.client().await;
    let mut stream = client.chat(ask()).await.unwrap().into_inner();
    started(&mut stream).await;
    world.shared.shutdown().begin();
    let status = drain(&mut stream).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let drained = tokio::time::timeout(PATIENCE, world.task).await.unwrap().unwrap();
    assert_eq!(drained, Drained { num_cut: 1 });
}
