//! One line for each request, and no text in any line.

use crate::client::{CHAT, chat, send, stream};
use crate::fixture::Setup;
use crate::lines::Lines;
use chorale_api::KeySettings;
use tracing::subscriber::NoSubscriber;

/// On one thread, so that the thread's subscriber sees every task.
#[tokio::test]
async fn each_request_has_a_line_without_text() {
    // While there is but one subscriber, a line that another test's thread comes
    // to first is switched off for all of them.
    let _other = tracing::Dispatch::new(NoSubscriber::default());
    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(lines.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    let harness = Setup { keys: vec![KeySettings::new("team-a", "secret-a")], steps: 30, ..Setup::default() }
        .start()
        .await;
    let headers = [("x-api-key", "secret-a"), ("x-request-id", "r-1")];
    assert_eq!(send(harness.address, "POST", CHAT, &headers, &chat(false, 20)).await.status, 200);
    let left = stream(harness.address, &[headers[0], ("x-request-id", "r-2")], 2000).await;
    drop(left);
    send(harness.address, "GET", "/v1/clock%20go", &headers[..1], "").await;
    harness.eventually("requests are over", |harness| harness.shared.requests().num_active() == 0).await;
    drop(guard);

    let text = lines.text();
    for secret in ["clock", "tick", "secret-a"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
    let requests = lines.requests();
    assert_eq!(requests.len(), 3, "{text}");
    let of = |id: &str| requests.iter().find(|fields| fields["request_id"] == id).unwrap();
    let complete = of("r-1");
    for (field, expected) in [("method", "POST"), ("route", CHAT), ("key", "team-a")] {
        assert_eq!(complete[field], expected);
    }
    assert_eq!((complete["status"].as_u64(), complete["output_tokens"].as_u64()), (Some(200), Some(20)));
    assert_eq!(complete["is_complete"], true);
    assert_eq!(of("r-2")["is_complete"], false);
    let elsewhere = requests.iter().find(|fields| fields["status"] == 404).unwrap();
    assert_eq!(elsewhere["route"], "none");
}
