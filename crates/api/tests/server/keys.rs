//! Who is let in where, and how much a key may use.

use crate::client::{CHAT, chat, get, post, send, stream};
use crate::fixture::Setup;
use chorale_api::{KeySettings, Keyring};
use std::num::NonZeroU32;

fn keys() -> Vec<KeySettings> {
    let toml = r#"
        key = [
            { name = "a", secret = "secret-a" },
            { name = "b", secret = "secret-b" },
            { name = "root", secret = "secret-root", admin = true },
        ]
    "#;
    Keyring::parse_settings(toml).unwrap()
}

#[tokio::test]
async fn every_route_but_the_probes_needs_a_key() {
    let harness = Setup { keys: keys(), ..Setup::default() }.start().await;
    let address = harness.address;
    let bearer = [("authorization", "Bearer secret-a")];
    let document = send(address, "GET", "/openapi.json", &bearer, "").await.json();
    let mut routes: Vec<(String, String)> = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        let methods = item.as_object().unwrap().keys();
        routes.extend(methods.map(|method| (method.to_uppercase(), path.replace(['{', '}'], ""))));
    }
    // Nobody learns what there is without a key.
    routes.push(("GET".to_owned(), "/v1/nowhere".to_owned()));
    routes.push(("DELETE".to_owned(), "/v1/models".to_owned()));

    for (method, path) in &routes {
        let body = if method == "POST" { "{}" } else { "" };
        let is_open = ["/health", "/ready", "/metrics"].contains(&path.as_str());
        for (headers, is_valid) in [
            (&[][..], false),
            (&[("authorization", "Bearer wrong")][..], false),
            (&[("authorization", "Basic secret-a")][..], false),
            (&[("authorization", "Bearer secret-a ")][..], true),
            (&[("x-api-key", "secret-b")][..], true),
            (&[("x-api-key", "secret-")][..], false),
        ] {
            let reply = send(address, method, path, headers, body).await;
            let is_refused = reply.status == 401;
            assert_eq!(is_refused, !is_valid && !is_open, "{method} {path} {headers:?}: {}", reply.status);
            if is_refused {
                assert_eq!(reply.error_code(), "invalid_api_key");
                assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
                assert!(reply.header("x-request-id").is_some());
            }
        }
    }
}

#[tokio::test]
async fn metrics_may_need_a_key_too() {
    let mut setup = Setup { keys: keys(), ..Setup::default() };
    setup.config.metrics_need_key = true;
    let harness = setup.start().await;
    assert_eq!(get(harness.address, "/metrics").await.status, 401);
    assert_eq!(get(harness.address, "/health").await.status, 200);
    let shown = send(harness.address, "GET", "/metrics", &[("x-api-key", "secret-a")], "").await;
    assert_eq!(shown.status, 200);
}

#[tokio::test]
async fn a_key_has_only_so_many_requests_at_a_time() {
    let limited =
        KeySettings { max_concurrent_requests: NonZeroU32::new(1), ..KeySettings::new("a", "secret") };
    let harness = Setup { keys: vec![limited], steps: 8, ..Setup::default() }.start().await;
    let key = [("x-api-key", "secret")];
    let first = stream(harness.address, &key, 20).await;
    let second = send(harness.address, "POST", CHAT, &key, &chat(false, 1)).await;
    assert_eq!((second.status, second.error_code().as_str()), (429, "rate_limit_exceeded"));
    assert!(second.header("retry-after").is_some());
    harness.allow_steps(100);
    assert!(first.reply().await.body.ends_with("data: [DONE]\n\n"));
    assert_eq!(send(harness.address, "POST", CHAT, &key, &chat(false, 1)).await.status, 200);
}

#[tokio::test]
async fn a_key_has_only_so_many_tokens_in_a_minute() {
    let limited = KeySettings { tokens_per_minute: NonZeroU32::new(60), ..KeySettings::new("a", "secret") };
    let harness = Setup { keys: vec![limited], ..Setup::default() }.start().await;
    let key = [("x-api-key", "secret")];
    let first = send(harness.address, "POST", CHAT, &key, &chat(false, 100)).await;
    assert_eq!(first.status, 200);
    let second = send(harness.address, "POST", CHAT, &key, &chat(false, 100)).await;
    assert_eq!((second.status, second.error_code().as_str()), (429, "rate_limit_exceeded"));
    // Over a hundred tokens are owed, one comes in each second.
    assert!(second.header("retry-after").unwrap().parse::<u64>().unwrap() > 60);
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let harness = Setup { steps: 0, max_waiting_requests: 1, ..Setup::default() }.start().await;
    let address = harness.address;
    let mut waiting = Vec::new();
    // The engine holds one in its step, and one waits.
    for index in 0..2 {
        waiting.push(tokio::spawn(async move { post(address, CHAT, &chat(false, 1)).await }));
        harness.eventually("asked", |harness| harness.shared.requests().num_active() > index).await;
    }
    // The engine answers between steps.
    let refused = tokio::spawn(async move { post(address, CHAT, &chat(false, 1)).await });
    harness.eventually("asked", |harness| harness.shared.requests().num_active() == 3).await;
    harness.allow_steps(1000);
    let mut replies = vec![refused.await.unwrap()];
    for reply in waiting {
        replies.push(reply.await.unwrap());
    }
    let full: Vec<_> = replies.iter().filter(|reply| reply.status == 429).collect();
    assert_eq!(full.len(), 1, "{replies:?}");
    assert_eq!(full[0].error_code(), "queue_full");
    assert!(full[0].header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    let metrics = harness.shared.metrics().encode();
    assert!(
        metrics.contains("vllm:admission_rejections_total{engine=\"0\",model_name=\"openai/gpt-oss-20b\"} 1")
    );
}
