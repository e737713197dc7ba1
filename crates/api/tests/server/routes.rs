//! What the server says of itself, and how it says that something is not there.

use crate::client::{CHAT, chat, get, post, send};
use crate::fixture::{MAX_MODEL_LEN, MODEL, Setup};
use chorale_api::{EngineStatus, LoadStatus};
use serde_json::{Value, json};

#[tokio::test]
async fn a_loading_server_is_alive_and_says_how_far_it_is() {
    let harness = Setup::default().start_loading().await;
    let address = harness.address;
    let progress =
        LoadStatus { bytes: 30, total_bytes: 40, tensors: 3, total_tensors: 4, ..LoadStatus::new(2) };
    harness.status.send_replace(EngineStatus::Loading(progress));

    assert_eq!(get(address, "/health").await.status, 200);
    let ready = get(address, "/ready").await;
    assert_eq!((ready.status, ready.json()["status"].as_str()), (503, Some("loading")));
    let status = get(address, "/v1/load_status").await.json();
    for (field, value) in [("bytes", 30), ("total_bytes", 40), ("tensors", 3), ("ranks_total", 2)] {
        assert_eq!(status[field], value, "{status}");
    }
    assert!(status["time_left_s"].is_number(), "{status}");

    for reply in [post(address, CHAT, &chat(false, 1)).await, get(address, "/v1/models").await] {
        assert_eq!((reply.status, reply.error_code().as_str()), (503, "unavailable"));
        assert!(reply.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    }

    harness.become_ready();
    assert_eq!(get(address, "/ready").await.json()["status"], "ready");
    assert_eq!(post(address, CHAT, &chat(false, 8)).await.status, 200);

    harness.status.send_replace(EngineStatus::Failed { reason: "rank 1 is lost".to_owned() });
    let ready = get(address, "/ready").await;
    assert_eq!((ready.status, ready.json()["reason"].as_str()), (503, Some("rank 1 is lost")));
    assert_eq!(post(address, CHAT, &chat(false, 1)).await.status, 503);
    assert_eq!(get(address, "/health").await.status, 200);
}

#[tokio::test]
async fn an_engine_that_stopped_is_not_ready() {
    let harness = Setup::default().start().await;
    harness.engine.stop().await;
    harness.eventually("stopped", |harness| harness.engine.stats().is_stopped).await;
    assert_eq!(get(harness.address, "/ready").await.status, 503);
    assert_eq!(post(harness.address, CHAT, &chat(false, 1)).await.status, 503);
}

#[tokio::test]
async fn models_have_slashes_in_their_names() {
    let harness = Setup::default().start().await;
    let list = get(harness.address, "/v1/models").await.json();
    assert_eq!(list["object"], "list");
    assert_eq!(list["data"][0]["id"], MODEL);
    assert_eq!(list["data"][1]["root"], MODEL);
    for id in [MODEL, "openai%2Fgpt-oss-20b", "clock"] {
        let model = get(harness.address, &format!("/v1/models/{id}")).await;
        assert_eq!((model.status, model.json()["max_model_len"].as_u64()), (200, Some(MAX_MODEL_LEN.into())));
    }
    for id in ["gpt-4", "openai", "openai/gpt-oss-20b/x"] {
        let unknown = get(harness.address, &format!("/v1/models/{id}")).await;
        assert_eq!((unknown.status, unknown.error_code().as_str()), (404, "model_not_found"), "{id}");
    }
}

#[tokio::test]
async fn what_is_not_there_is_said_in_openais_shape() {
    let harness = Setup::default().start().await;
    let nowhere = get(harness.address, "/v1/nowhere").await;
    assert_eq!((nowhere.status, nowhere.error_code().as_str()), (404, "not_found"));
    let wrong = get(harness.address, CHAT).await;
    assert_eq!((wrong.status, wrong.error_code().as_str()), (405, "method_not_allowed"));
    let broken = post(harness.address, CHAT, "{").await;
    assert_eq!((broken.status, broken.error_code().as_str()), (400, "invalid_json"));
    let version = get(harness.address, "/version").await.json();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
}

#[tokio::test]
async fn every_documented_route_is_there() {
    let harness = Setup::default().start().await;
    let document = get(harness.address, "/openapi.json").await.json();
    for (path, item) in document["paths"].as_object().unwrap() {
        let path = path.replace("{model}", MODEL).replace("{id}", "x");
        for method in item.as_object().unwrap().keys() {
            let body = if method == "post" { "{}" } else { "" };
            let reply = send(harness.address, &method.to_uppercase(), &path, &[], body).await;
            assert_ne!(reply.status, 405, "{method} {path}");
            // Nobody asks for `x` any more, which is another kind of 404.
            let is_missing = reply.status == 404 && reply.body.contains("there is no route");
            assert!(!is_missing, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn a_request_has_the_id_that_it_came_with() {
    let harness = Setup::default().start().await;
    let ask = async |id: &str| {
        let reply = send(harness.address, "GET", "/version", &[("x-request-id", id)], "").await;
        reply.header("x-request-id").unwrap().to_owned()
    };
    assert_eq!(ask("mine-1").await, "mine-1");
    assert_eq!(ask("not\"mine").await.len(), 32);
    let unnamed = get(harness.address, "/v1/nowhere").await;
    assert_eq!(unnamed.header("x-request-id").unwrap().len(), 32);

    let reply = send(harness.address, "POST", CHAT, &[("x-request-id", "mine-2")], &chat(false, 4)).await;
    assert_eq!(reply.json()["id"], "chatcmpl-mine-2");
}

#[tokio::test]
async fn text_becomes_tokens_and_tokens_become_text() {
    let harness = Setup::default().start().await;
    let text = "Grüße an die <|end|> 🦀";
    let tokenized = post(harness.address, "/tokenize", &json!({ "prompt": text }).to_string()).await.json();
    assert_eq!(tokenized["count"], tokenized["tokens"].as_array().unwrap().len());
    assert_eq!(tokenized["max_model_len"], MAX_MODEL_LEN);
    assert_eq!(tokenized["token_strs"], Value::Null);
    let body = json!({ "model": MODEL, "tokens": tokenized["tokens"] }).to_string();
    assert_eq!(post(harness.address, "/detokenize", &body).await.json()["prompt"], text);

    let counted = post(harness.address, "/tokenize", &chat(false, 1)).await.json()["count"].clone();
    let answer = post(harness.address, CHAT, &chat(false, 1)).await.json();
    assert_eq!(answer["usage"]["prompt_tokens"], counted);

    let wrong = post(harness.address, "/detokenize", r#"{"tokens":[1,999999]}"#).await;
    assert_eq!((wrong.status, wrong.json()["error"]["param"].as_str()), (400, Some("tokens[1]")));
}

#[tokio::test]
async fn browsers_are_let_in_only_from_named_origins() {
    let preflight = [
        ("origin", "https://chat.example"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization,x-stainless-os"),
    ];
    let closed = Setup::default().start().await;
    let refused = send(closed.address, "OPTIONS", CHAT, &preflight, "").await;
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (405, None));

    let mut setup = Setup::default();
    setup.config.cors_origins = vec!["https://chat.example".to_owned()];
    setup.keys = vec![chorale_api::KeySettings::new("a", "secret")];
    let open = setup.start().await;
    let allowed = send(open.address, "OPTIONS", CHAT, &preflight, "").await;
    assert_eq!(allowed.status, 200);
    assert_eq!(allowed.header("access-control-allow-origin"), Some("https://chat.example"));
    assert_eq!(allowed.header("access-control-allow-headers"), Some("authorization,x-stainless-os"));
    let other =
        send(open.address, "OPTIONS", CHAT, &[("origin", "https://evil.example"), preflight[1]], "").await;
    assert_eq!(other.header("access-control-allow-origin"), None);
}
