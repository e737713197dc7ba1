//! `chorale cluster`: what a coordinator says of its cluster, for people.

use crate::args::ClusterArgs;
use crate::exit::UsageError;
use crate::output::Output;
use crate::setup::Setup;
use crate::units;
use anyhow::Context;
use serde_json::Value;
use std::fmt::Write as _;
use std::time::Duration;

/// A coordinator answers from what it knows: it needs no longer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Experts that are shown as the busiest.
const NUM_BUSIEST: usize = 5;

/// Runs the command.
pub(crate) fn run(args: &ClusterArgs, setup: &Setup) -> anyhow::Result<()> {
    let status = fetch(&args.url, setup)?;
    if args.json {
        return Ok(Output::print(&format!("{status:#}\n"))?);
    }
    Ok(Output::print(&table(&status))?)
}

fn fetch(url: &str, setup: &Setup) -> anyhow::Result<Value> {
    let url = format!("{}/v1/cluster", url.trim_end_matches('/'));
    let config = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).http_status_as_error(false);
    let mut request = config.build().new_agent().get(&url);
    if let Some(key) = &setup.config.api_key {
        request = request.header("authorization", format!("Bearer {}", key.0));
    }
    let mut response = request.call().with_context(|| format!("cannot ask {url}"))?;
    let status = response.status();
    let text = response.body_mut().read_to_string().with_context(|| format!("cannot read {url}"))?;
    let document: Value =
        serde_json::from_str(&text).with_context(|| format!("{url} is no coordinator of ours"))?;
    if status.is_success() {
        return Ok(document);
    }
    let message = document["error"]["message"].as_str().unwrap_or(&text);
    let hint = if status.as_u16() == 401 { "; the key is taken from CHORALE_API_KEY" } else { "" };
    Err(UsageError(format!("{url} answers {}: {message}{hint}", status.as_u16())).into())
}

/// What is to be known of NCCL.
fn carrier(status: &Value) -> String {
    let failures = match status["nccl_failures"].as_u64() {
        None | Some(0) => String::new(),
        Some(failures) => format!(", NCCL failed {failures} times"),
    };
    let by_nccl = if status["carrier"] == "nccl" { ", rows by NCCL" } else { "" };
    let one_shot: Vec<&str> =
        status["one_shot"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let small = if one_shot.is_empty() {
        String::new()
    } else {
        format!(", small ones in one launch ({})", one_shot.join(", "))
    };
    format!("{by_nccl}{small}{failures}")
}

/// What weights, keys and values are kept in.
fn dtypes(status: &Value) -> String {
    let dense = status["dense_dtype"].as_str().unwrap_or("?");
    let asked = status["kv_cache_dtype"].as_str();
    let workers = status["workers"].as_array().into_iter().flatten();
    let mut kept: Vec<&str> = workers.filter_map(|worker| worker["kv_cache_dtype"].as_str()).collect();
    kept.sort_unstable();
    kept.dedup();
    let kept = match (asked, &kept[..]) {
        (Some(asked), _) => asked.to_owned(),
        (None, []) => "as ranks would".to_owned(),
        (None, kept) => format!("{} (auto)", kept.join(" and ")),
    };
    format!("dense weights {dense}, keys and values {kept}")
}

/// Experts that a worker has with its host.
fn hosted(worker: &Value) -> String {
    let experts = &worker["offload"];
    match experts["host_experts"].as_u64() {
        None => "-".to_owned(),
        Some(count) => {
            format!("{count} ({})", units::show_bytes(experts["host_bytes"].as_f64().unwrap_or(0.0)))
        }
    }
}

fn table(status: &Value) -> String {
    let mut text = String::new();
    let word = |key: &str| status[key].as_str().unwrap_or("?").to_owned();
    let number = |value: &Value| value.as_u64().map_or_else(|| "-".to_owned(), |number| number.to_string());
    let _ = write!(text, "{}, epoch {}", word("state"), number(&status["epoch"]));
    let shape = if status["shape"].is_null() { &status["wanted"] } else { &status["shape"] };
    let _ = write!(
        text,
        ", {} groups of {}",
        number(&shape["data_parallel_size"]),
        number(&shape["tensor_parallel_size"])
    );
    if let Some(num_ranks) = shape["num_ranks"].as_u64() {
        let _ = write!(text, ", {num_ranks} ranks");
    }
    let _ = writeln!(text, ", {}{}", word("transport"), carrier(status));
    let _ = writeln!(text, "{}", dtypes(status));
    if let Some(reason) = status["reason"].as_str() {
        let _ = writeln!(text, "since {:.1} s: {reason}", status["down_s"].as_f64().unwrap_or(0.0));
    }
    let _ = writeln!(
        text,
        "placement {}, imbalance {}, {} experts moved; {} recoveries, the last after {} s",
        number(&status["placement"]),
        status["imbalance"].as_f64().map_or_else(|| "-".to_owned(), |times| format!("{times:.2}")),
        number(&status["experts_moved"]),
        number(&status["recoveries"]),
        status["last_pause_s"].as_f64().unwrap_or(0.0),
    );
    let _ = writeln!(text, "{}\n", loads(&status["experts"]["rows"]));
    let mut rows = vec![
        [
            "RANK",
            "HOME",
            "ROLE",
            "STATE",
            "ADDRESS",
            "DEVICE",
            "MEMORY",
            "GB/s",
            "EXPERTS",
            "ON HOST",
            "ROWS",
            "STEP ms",
            "WAITED ms",
        ]
        .map(str::to_owned),
    ];
    for worker in status["workers"].as_array().into_iter().flatten() {
        let ms = |key: &str| format!("{:.1}", worker[key].as_f64().unwrap_or(0.0) / 1000.0);
        let word = |key: &str| worker[key].as_str().unwrap_or("?").to_owned();
        rows.push([
            number(&worker["rank"]),
            number(&worker["home"]),
            word("role"),
            word("state"),
            word("address"),
            word("device"),
            units::show_bytes(worker["memory_bytes"].as_f64().unwrap_or(0.0)),
            format!("{:.1}", worker["memory_bytes_per_s"].as_f64().unwrap_or(0.0) / 1e9),
            number(&worker["experts"]),
            hosted(worker),
            number(&worker["rows"]),
            ms("step_us"),
            ms("waited_us"),
        ]);
    }
    let widths: Vec<usize> = (0..rows[0].len())
        .map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0))
        .collect();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        let _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    for fault in status["faults"].as_array().into_iter().flatten() {
        let _ = writeln!(
            text,
            "{:.0} s ago, epoch {}, rank {}: {}",
            fault["ago_s"].as_f64().unwrap_or(0.0),
            number(&fault["epoch"]),
            number(&fault["rank"]),
            fault["reason"].as_str().unwrap_or("?"),
        );
    }
    text
}

/// The experts to which most rows came, and the one to which fewest did.
fn loads(rows: &Value) -> String {
    let rows = rows.as_array().into_iter().flatten().filter_map(Value::as_u64);
    let mut rows: Vec<(u64, usize)> = rows.zip(0..).collect();
    let all: u64 = rows.iter().fold(0, |sum, (rows, _)| sum.saturating_add(*rows));
    if all == 0 {
        return "no rows came to experts yet".to_owned();
    }
    rows.sort_by_key(|&(rows, expert)| (std::cmp::Reverse(rows), expert));
    let share =
        |&(rows, expert): &(u64, usize)| format!("{expert} ({:.1}%)", 100.0 * rows as f64 / all as f64);
    let busiest: Vec<String> = rows.iter().take(NUM_BUSIEST).map(share).collect();
    let coldest = rows.last().map(share).unwrap_or_default();
    format!("of the rows, over all layers: experts {} the most, {coldest} the fewest", busiest.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_cluster_that_lacks_workers_says_what_and_since_when() {
        let text = table(&json!({
            "state": "lacking", "reason": "2 workers are wanted, 1 is here", "down_s": 3.25, "epoch": 7,
            "wanted": {"tensor_parallel_size": 2, "data_parallel_size": 1}, "shape": null,
            "transport": "grpc", "placement": 0, "imbalance": null, "rebalances": 0, "experts_moved": 0,
            "experts": {"rows": [], "busiest": []}, "recoveries": 0,
            "last_pause_s": 0.0, "faults": [],
            "workers": [{"rank": null, "home": null, "role": "spare", "state": "waiting",
                "address": "10.0.0.1:7", "device": "cpu, 2 threads", "memory_bytes": 1_u64 << 30,
                "experts": 0, "rows": 0, "step_us": 0, "waited_us": 0}],
        }));
        assert!(text.starts_with("lacking, epoch 7, 1 groups of 2, grpc\n"), "{text}");
        assert!(text.contains("since 3.2 s: 2 workers are wanted, 1 is here"), "{text}");
        assert!(text.contains("spare  waiting  10.0.0.1:7"), "{text}");
    }

    #[test]
    fn types_and_experts_with_the_host_are_shown() {
        let kept = |kept: &[Option<&str>]| {
            let workers: Vec<Value> = kept.iter().map(|kept| json!({"kv_cache_dtype": kept})).collect();
            dtypes(&json!({"dense_dtype": "int8", "kv_cache_dtype": null, "workers": workers}))
        };
        assert_eq!(kept(&[]), "dense weights int8, keys and values as ranks would");
        let mixed = kept(&[Some("bf16"), None, Some("f32"), Some("bf16")]);
        assert_eq!(mixed, "dense weights int8, keys and values bf16 and f32 (auto)");
        let asked = json!({"dense_dtype": "bf16", "kv_cache_dtype": "fp8", "workers": []});
        assert_eq!(dtypes(&asked), "dense weights bf16, keys and values fp8");
        assert_eq!(hosted(&json!({"offload": null})), "-");
        assert_eq!(
            hosted(&json!({"offload": {"host_experts": 12, "host_bytes": 3_000_000_000_u64}})),
            "12 (3.000 GB)"
        );
    }

    #[test]
    fn what_carries_rows_is_told_where_it_is_nccl_or_should_have_been() {
        assert_eq!(carrier(&json!({"carrier": "frames", "nccl_failures": 0})), "");
        assert_eq!(carrier(&json!({"carrier": "nccl", "nccl_failures": 0})), ", rows by NCCL");
        assert_eq!(
            carrier(&json!({"carrier": "nccl", "one_shot": ["world", "group"]})),
            ", rows by NCCL, small ones in one launch (world, group)"
        );
        assert_eq!(carrier(&json!({"carrier": null, "nccl_failures": 2})), ", NCCL failed 2 times");
    }

    #[test]
    fn the_busiest_experts_are_named_and_the_coldest() {
        assert_eq!(
            loads(&json!([5, 0, 40, 5, 20, 10, 20])),
            "of the rows, over all layers: experts 2 (40.0%), 4 (20.0%), 6 (20.0%), 5 (10.0%), 0 (5.0%) the most, \
             1 (0.0%) the fewest"
        );
        assert_eq!(loads(&Value::Null), "no rows came to experts yet");
    }
}
