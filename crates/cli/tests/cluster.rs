//! Clusters of real processes, each with an address of its own: the same
//! answers whatever the shape, and through whatever happens to workers.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

use chorale_e2e::chaos::{self, ChaosSettings};
use chorale_e2e::client::{Client, Question};
use chorale_e2e::cluster::{ClusterSettings, TestCluster};
use chorale_e2e::models::cut_heads;
use chorale_e2e::network::skip;
use chorale_e2e::process::pause;
use serde_json::{Value, json};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const START_TIMEOUT: Duration = Duration::from_secs(60);

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_chorale"))
}

fn fixture(name: &str) -> String {
    format!("{}/../../tests/fixtures/models/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A shape: ranks of a group, groups, and workers with experts alone.
type Shape = (u32, u32, u32);

fn cluster(model: &str, (tensor_parallel_size, data_parallel_size, num_experts_only): Shape) -> TestCluster {
    let demo = ClusterSettings::demo(binary(), tensor_parallel_size, data_parallel_size);
    let mut cluster =
        TestCluster::start(ClusterSettings { model: model.to_owned(), num_experts_only, ..demo });
    let num_ranks = cluster.workers().len();
    cluster.wait_ranks(num_ranks, START_TIMEOUT);
    cluster
}

/// Greedy and seeded answers with their log-probabilities, all asked for at once.
fn answers(client: &Client) -> Vec<Value> {
    let body = |index: u32| {
        let prompt: Vec<u32> = (0..5 + 23 * index).map(|place| 1 + (7 * place + 31 * index) % 200).collect();
        json!({
            "prompt": prompt, "max_tokens": 24, "ignore_eos": true, "logprobs": 3, "seed": index,
            "temperature": if index.is_multiple_of(2) { 0.0 } else { 1.0 },
        })
    };
    std::thread::scope(|scope| {
        let asked: Vec<_> =
            (0..8).map(|index| scope.spawn(move || client.post("/v1/completions", &body(index)))).collect();
        asked.into_iter().map(|asked| asked.join().unwrap().unwrap()["choices"].take()).collect()
    })
}

fn same_answers(model: &str, shapes: &[Shape]) {
    let expected = answers(&cluster(model, (1, 1, 0)).client());
    for &shape in shapes {
        let cluster = cluster(model, shape);
        assert_eq!(answers(&cluster.client()), expected, "{model} in shape {shape:?}\n{}", cluster.logs());
    }
}

#[test]
fn the_demo_model_answers_alike_in_every_shape() {
    same_answers("demo", &[(2, 1, 0), (1, 2, 0), (2, 2, 0), (1, 1, 1), (2, 1, 2)]);
}

#[test]
fn awkward_geometries_answer_alike_in_every_shape() {
    same_answers(&fixture("b-awkward"), &[(3, 1, 0), (2, 2, 0)]);
    same_answers(&fixture("c-ratio"), &[(2, 1, 1), (1, 4, 0)]);
}

#[test]
fn a_group_may_have_as_many_ranks_as_key_value_heads() {
    let directory = tempfile::tempdir().unwrap();
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/models/c-ratio");
    cut_heads(Path::new(fixture), directory.path(), 2);
    same_answers(directory.path().to_str().unwrap(), &[(4, 1, 0), (4, 1, 1)]);
}

#[test]
fn one_rank_of_a_cluster_answers_as_a_server_does() {
    let cluster = cluster("demo", (1, 1, 0));
    let served = chorale_e2e::cluster::Server::start(binary(), "demo", &[]);
    let sharded = chorale_e2e::cluster::Server::start(
        binary(),
        "demo",
        &["--tensor-parallel-size", "2", "--data-parallel-size", "2"],
    );
    let expected = answers(&served.client());
    assert_eq!(answers(&cluster.client()), expected);
    assert_eq!(answers(&sharded.client()), expected);
}

#[test]
fn streams_survive_what_happens_to_workers() {
    let settings = ChaosSettings {
        cluster: ClusterSettings::demo(binary(), 2, 2),
        seed: 1,
        num_faults: 30,
        num_streams: 32,
        tokens_each: 160,
    };
    let mut faults = Vec::new();
    let outcome = chaos::run(&settings, &mut |fault| faults.push(fault.to_string()));
    let report = outcome.unwrap_or_else(|why| panic!("after {}:\n{why}", faults.join("\n")));
    assert_eq!(report["faults"], 30);
    assert!(report["streams_completed"].as_u64().unwrap() >= 32, "{report:#}");
}

#[test]
fn a_coordinator_that_died_comes_back_to_workers_that_kept_their_weights() {
    let mut cluster = cluster("demo", (2, 1, 0));
    let expected = answers(&cluster.client());
    cluster.kill(0);
    cluster.revive(0);
    cluster.wait_ranks(2, START_TIMEOUT);
    assert_eq!(answers(&cluster.client()), expected);
    for worker in cluster.workers() {
        assert!(!cluster.process(worker).has_ended(), "worker {worker} stayed");
    }
}

#[test]
fn without_any_rank_requests_wait_for_a_replacement_and_the_door_says_so() {
    let mut cluster = cluster("demo", (1, 1, 0));
    let client = cluster.client();
    let question = Question { prompt: "Hello".to_owned(), max_tokens: 200, temperature: 0.0, seed: 0 };
    let expected = client.ask(&question, &|| ()).unwrap().text;
    let (begun, has_begun) = mpsc::channel();
    let asking = {
        let client = client.clone();
        std::thread::spawn(move || {
            let tell = || {
                // Whoever waits for the first event has it, and takes no second.
                let _ = begun.send(());
            };
            client.ask(&question, &tell)
        })
    };
    has_begun.recv_timeout(START_TIMEOUT).unwrap();
    cluster.kill(1);
    cluster.wait(START_TIMEOUT, "the door says what is missing", |_| {
        client.get("/ready").is_ok_and(|(status, report)| {
            status == 503 && report["reason"].as_str().is_some_and(|reason| reason.contains("worker"))
        })
    });
    assert!(!asking.is_finished(), "the stream waits");
    cluster.revive(1);
    assert_eq!(asking.join().unwrap().unwrap().text, expected);
}

#[test]
fn options_that_trade_digits_for_traffic_still_answer() {
    for option in ["--dispatch-dtype=int8", "--fast-combine", "--overlap-min-rows=2"] {
        let demo = ClusterSettings::demo(binary(), 1, 2);
        let coordinator_arguments = option.split('=').map(str::to_owned).collect();
        let mut cluster = TestCluster::start(ClusterSettings { coordinator_arguments, ..demo });
        cluster.wait_ranks(2, START_TIMEOUT);
        let body = json!({"prompt": "The capital of France is", "max_tokens": 3, "temperature": 0});
        let answer = cluster.client().post("/v1/completions", &body).unwrap();
        assert_eq!(answer["choices"][0]["text"], " Paris.", "{option}: {answer:#}");
    }
}

#[test]
fn narrow_types_answer_alike_on_one_rank_and_on_two() {
    let narrow = ["--dense-dtype", "int8", "--kv-cache-dtype", "fp8"];
    let served = chorale_e2e::cluster::Server::start(binary(), "demo", &narrow);
    let expected = answers(&served.client());
    let coordinator_arguments = narrow.map(str::to_owned).to_vec();
    let settings = ClusterSettings { coordinator_arguments, ..ClusterSettings::demo(binary(), 2, 1) };
    let mut cluster = TestCluster::start(settings);
    cluster.wait_ranks(2, START_TIMEOUT);
    assert_eq!(answers(&cluster.client()), expected, "{}", cluster.logs());
}

#[test]
fn a_frozen_worker_is_found_by_its_silence_and_named() {
    let mut cluster = cluster("demo", (1, 2, 0));
    cluster.process(2).signal("STOP");
    cluster.wait_ranks(1, START_TIMEOUT);
    let (_, status) = cluster.client().get("/v1/cluster").unwrap();
    let fault = &status["faults"].as_array().unwrap().last().unwrap()["reason"];
    assert!(fault.as_str().unwrap().contains("nothing was heard"), "{status:#}");
    let address = cluster.place(2).address.to_string();
    let culprit =
        status["faults"].as_array().unwrap().last().unwrap()["address"].as_str().unwrap().to_owned();
    assert!(culprit.starts_with(&address), "{culprit} is not {address}");
    cluster.process(2).signal("CONT");
    cluster.wait_ranks(2, START_TIMEOUT);
}

#[test]
fn workers_that_do_not_fit_are_turned_away_with_the_reason() {
    let other = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/models/a-small");
    let mut cluster = cluster("demo", (1, 1, 0));
    for (model, more, expected) in
        [(other, &[][..], "checkpoint"), ("demo", &["--device-memory", "1MiB"][..], "memory")]
    {
        let said = cluster.misfit(model, more, Duration::from_secs(20));
        assert!(said.contains(expected), "{said}");
    }
    cluster.wait_ranks(1, START_TIMEOUT);
}

#[test]
fn a_worker_without_the_clusters_certificates_does_not_get_in() {
    let mut cluster = cluster("demo", (1, 1, 0));
    let said = cluster.stranger(Duration::from_secs(3));
    assert!(!said.contains("joined"), "{said}");
    let (_, status) = cluster.client().get("/v1/cluster").unwrap();
    assert_eq!(status["workers"].as_array().unwrap().len(), 1, "{status:#}");
}

/// Streams that ask the same again and again, until told to stop.
fn streaming<T>(client: &Client, num_streams: u64, meanwhile: impl FnOnce() -> T) -> T {
    let question =
        |seed| Question { prompt: "Hello, hello, hello".to_owned(), max_tokens: 150, temperature: 0.0, seed };
    let expected = client.ask(&question(0), &|| ()).unwrap().text;
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for seed in 0..num_streams {
            let (is_over, expected) = (&is_over, &expected);
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    assert_eq!(client.ask(&question(seed), &|| ()).unwrap().text, *expected);
                }
            });
        }
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(meanwhile));
        is_over.store(true, Ordering::Relaxed);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Looks at the cluster until it is as it should be.
fn seen(client: &Client, is_meant: impl Fn(&Value) -> bool) -> Option<Value> {
    let until = Instant::now() + START_TIMEOUT;
    while Instant::now() < until {
        let (_, status) = client.get("/v1/cluster").unwrap();
        if is_meant(&status) {
            return Some(status);
        }
        pause(Duration::from_millis(20));
    }
    None
}

#[test]
fn busy_experts_move_while_requests_run() {
    let coordinator_arguments = vec!["--rebalance-interval".to_owned(), "0.5".to_owned()];
    // Five experts for four ranks: some have twice as much to do as others.
    let demo = ClusterSettings::demo(binary(), 1, 4);
    let mut cluster =
        TestCluster::start(ClusterSettings { model: fixture("b-awkward"), coordinator_arguments, ..demo });
    cluster.wait_ranks(4, START_TIMEOUT);
    let client = cluster.client();
    let expected = answers(&client);
    let epoch = client.get("/v1/cluster").unwrap().1["epoch"].clone();
    let has_moved = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !has_moved.load(Ordering::Relaxed) {
                    assert_eq!(answers(&client), expected);
                }
            });
        }
        // Or the time is up.
        seen(&client, |status| status["placement"].as_u64() > Some(0));
        has_moved.store(true, Ordering::Relaxed);
    });
    // Steps name the new placement by now.
    assert_eq!(answers(&client), expected);
    let (_, status) = client.get("/v1/cluster").unwrap();
    assert!(status["placement"].as_u64() > Some(0), "no expert moved: {status:#}\n{}", cluster.logs());
    assert_eq!((&status["epoch"], &status["num_faults"]), (&epoch, &json!(0)), "{status:#}");
    assert!(status["experts"]["rows"].as_array().unwrap().iter().any(|rows| rows.as_u64() > Some(0)));
    assert!(client.metric("chorale_cluster_experts_moved_total").unwrap() > 0.0);
    assert_eq!(client.metric("chorale_lost_steps_total"), Ok(0.0));
}

#[test]
fn whom_others_wait_for_is_shown_while_streams_go_on() {
    let mut cluster = cluster("demo", (1, 3, 0));
    let client = cluster.client();
    let slow = cluster.place(2).address.to_string();
    let rank = |status: &Value| {
        let workers = status["workers"].as_array().unwrap().iter();
        let slow = workers.filter(|worker| worker["address"].as_str().unwrap().starts_with(&slow));
        slow.map(|worker| worker["rank"].clone()).next()
    };
    let is_waited_for = |status: &Value| {
        let waiting = status["workers"].as_array().unwrap().iter();
        waiting.filter(|worker| Some(&worker["waiting_for"]) == rank(status).as_ref()).count() == 2
    };
    let process = cluster.process(2);
    let seen = streaming(&client, 4, || {
        std::thread::scope(|scope| {
            let seeing = scope.spawn(|| seen(&client, is_waited_for));
            while !seeing.is_finished() {
                process.limp(Duration::from_millis(100), 5);
            }
            seeing.join().unwrap()
        })
    });
    assert!(seen.is_some(), "{}", cluster.logs());
    assert_eq!(client.metric("chorale_cluster_faults_total"), Ok(0.0), "who is slow is not lost");
}

#[test]
fn two_that_cannot_reach_each_other_do_not_hold_up_the_rest() {
    let mut cluster = cluster("demo", (1, 3, 0));
    if !cluster.network.has_links() {
        skip("a partition of two workers: without namespaces there are no routes to take away");
        return;
    }
    let client = cluster.client();
    let (one, other) = (cluster.place(1).clone(), cluster.place(2).clone());
    let (status, took) = streaming(&client, 4, || {
        let parted = Instant::now();
        cluster.network.part(&one, &other);
        let status =
            seen(&client, |status| status["state"] == "serving" && status["shape"]["num_ranks"] == 2);
        let took = parted.elapsed();
        cluster.network.join(&one, &other);
        (status, took)
    });
    // Neither was told anything, and the exchange's own deadline is far longer.
    assert!(status.is_some() && took < Duration::from_secs(15), "{took:?}\n{}", cluster.logs());
    cluster.wait_ranks(3, START_TIMEOUT);
}
