//! One line for each call, and no text in any line.

#[path = "../../../tests/server/lines.rs"]
mod lines;

use super::world::{PATIENCE, Setup, ask, drain, user};
use crate::auth::KeySettings;
use chorale_wire::inference::v1;
use lines::Lines;
use tonic::{Code, Request};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tracing::subscriber::NoSubscriber;

fn called<M>(message: M, id: &str, key: Option<&str>) -> Request<M> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("x-request-id", id.parse().unwrap());
    if let Some(key) = key {
        request.metadata_mut().insert("x-api-key", key.parse().unwrap());
    }
    request
}

/// On one thread, so that the thread's subscriber sees every task.
#[tokio::test]
async fn each_call_has_a_line_without_text() {
    // While there is but one subscriber, a line that another test's thread comes
    // to first is switched off for all of them.
    let _other = tracing::Dispatch::new(NoSubscriber::default());
    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .with_max_level(tracing::Level::DEBUG)
        .with_writer(lines.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    let keys = vec![KeySettings::new("team-a", "secret-a")];
    let world = Setup { keys, ..Setup::endless() }.serve().await;
    let mut client = world.client().await;
    let key = Some("secret-a");

    let limits = Some(v1::Limits { max_tokens: Some(4), ..Default::default() });
    let short = v1::ChatRequest { messages: vec![user("the clock")], limits, ..ask() };
    let response = client.chat(called(short, "r-1", key)).await.unwrap();
    assert_eq!(response.metadata().get("x-request-id").unwrap(), "r-1");
    drain(&mut response.into_inner()).await.unwrap();
    let mut left = client.chat(called(ask(), "r-2", key)).await.unwrap().into_inner();
    left.message().await.unwrap().unwrap();
    drop(left);
    let refused = client.chat(called(ask(), "r-3", None)).await.unwrap_err();
    assert_eq!(refused.metadata().get("x-request-id").unwrap(), "r-3");
    let models = called(v1::ListModelsRequest {}, "r-4", key);
    client.list_models(models).await.unwrap();
    let probe = HealthCheckRequest { service: String::new() };
    HealthClient::new(world.channel().await).check(called(probe, "r-5", None)).await.unwrap();
    let all = async {
        while lines.requests().len() < 5 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all).await.expect("lines are missing");
    drop(guard);

    let text = lines.text();
    for secret in ["clock", "word", "secret-a"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
    let calls = lines.requests();
    assert_eq!(calls.len(), 5, "{text}");
    let check = |id: &str, method: &str, code: Code, is_complete: bool, level: &str| {
        let fields = calls.iter().find(|fields| fields["request_id"] == id).unwrap();
        assert_eq!(fields["method"], method, "{fields}");
        assert_eq!(fields["code"], format!("{code:?}"), "{fields}");
        assert_eq!(fields["is_complete"], is_complete, "{fields}");
        assert_eq!(fields["level"], level, "{fields}");
        assert!(fields["ms"].is_u64(), "{fields}");
        fields
    };
    let chat = "/chorale.inference.v1.Inference/Chat";
    let complete = check("r-1", chat, Code::Ok, true, "INFO");
    assert_eq!((complete["key"].as_str(), complete["output_tokens"].as_u64()), (Some("team-a"), Some(4)));
    assert!(complete["prompt_tokens"].as_u64() > Some(4));
    check("r-2", chat, Code::Cancelled, false, "INFO");
    let refused = check("r-3", chat, Code::Unauthenticated, true, "INFO");
    assert!(refused["key"].is_null() && refused["output_tokens"].is_null(), "{refused}");
    check("r-4", "/chorale.inference.v1.Inference/ListModels", Code::Ok, true, "INFO");
    check("r-5", "/grpc.health.v1.Health/Check", Code::Ok, true, "DEBUG");
}
