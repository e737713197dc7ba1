//! The commands that load a model, as a user runs them: what they print, what
//! they write, and what they refuse.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

use safetensors::SafeTensors;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Runs the binary with a home of its own and no settings from outside.
fn chorale(home: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_chorale"))
        .args(arguments)
        .env_clear()
        .env("HOME", home)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn fixtures() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures"))
}

fn model(name: &str) -> String {
    fixtures().join("models").join(name).display().to_string()
}

fn succeeded(output: &Output) -> &Output {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

fn refused(output: &Output, parts: &[&str]) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_ne!(output.status.code(), Some(0));
    for part in parts {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
    assert!(!error.contains("panicked"), "{error}");
}

/// Prompts of the goldens as `--tokens` wants them.
fn prompts(home: &Path, model: &str, names: &[&str]) -> String {
    let path = fixtures().join("goldens").join(model).join("prompts.json");
    let goldens: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let prompts = goldens["prompts"].as_array().unwrap().iter();
    let wanted = prompts.filter(|prompt| names.contains(&prompt["name"].as_str().unwrap()));
    let map: serde_json::Map<String, Value> =
        wanted.map(|prompt| (prompt["name"].as_str().unwrap().to_owned(), prompt["ids"].clone())).collect();
    let file = home.join("prompts.json");
    std::fs::write(&file, Value::Object(map).to_string()).unwrap();
    file.display().to_string()
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[test]
fn logits_are_written_with_positions_and_continuations() {
    let home = tempfile::tempdir().unwrap();
    let tokens = prompts(home.path(), "b-awkward", &["p17", "p130"]);
    let out = home.path().join("out.safetensors");
    let written = out.display().to_string();
    let model = model("b-awkward");
    let words = ["logits", &model, "--tokens", &tokens, "--out", &written, "--last", "4", "--slice", "7"];
    succeeded(&chorale(home.path(), &[&words[..], &["--generate", "64"]].concat()));

    let file = std::fs::read(&out).unwrap();
    let found = SafeTensors::deserialize(&file).unwrap();
    let goldens = std::fs::read(fixtures().join("goldens/b-awkward/logits.safetensors")).unwrap();
    let goldens = SafeTensors::deserialize(&goldens).unwrap();
    let logits = found.tensor("p130.logits").unwrap();
    assert_eq!(logits.shape(), [4, 777]);
    let expected = f32s(goldens.tensor("p130.logits").unwrap().data());
    for (found, expected) in f32s(logits.data()).iter().zip(expected) {
        assert!((found - expected).abs() < 2e-3);
    }
    assert_eq!(
        found.tensor("p130.positions").unwrap().data(),
        goldens.tensor("p130.positions").unwrap().data()
    );

    let greedy = std::fs::read(fixtures().join("goldens/b-awkward/greedy.json")).unwrap();
    let greedy: Value = serde_json::from_slice(&greedy).unwrap();
    let run = greedy["runs"].as_array().unwrap().iter().find(|run| run["prompt"] == "p17").unwrap();
    let expected: Vec<i64> =
        run["continuation"].as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect();
    let generated = found.tensor("p17.generated").unwrap().data();
    let generated: Vec<i64> = generated.as_chunks::<8>().0.iter().map(|id| i64::from_le_bytes(*id)).collect();
    assert_eq!(generated, expected);
}

#[test]
fn tokens_that_cannot_be_computed_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("out.safetensors").display().to_string();
    let file = home.path().join("bad.json");
    let tokens = file.display().to_string();
    let model = model("a-small");
    for (content, part) in [
        ("[1, 2]", "not a JSON object of token ids"),
        ("{\"a\": [1, -2]}", "not a JSON object of token ids"),
        ("{\"a\": [1.5]}", "not a JSON object of token ids"),
        ("{\"a\": []}", "`a` holds no tokens"),
        ("{}", "holds no prompts"),
        ("{\"a\": [1, 512]}", "`a`: token 512 at index 1 is not in the model's vocabulary of 512"),
        ("{\"a\": [4294967296]}", "not a JSON object of token ids"),
    ] {
        std::fs::write(&file, content).unwrap();
        refused(
            &chorale(home.path(), &["logits", &model, "--tokens", &tokens, "--out", &out]),
            &["bad.json", part],
        );
    }
    std::fs::write(&file, "{\"a\": [1, 2]}").unwrap();
    let nowhere = home.path().join("missing/out.safetensors").display().to_string();
    refused(&chorale(home.path(), &["logits", &model, "--tokens", &tokens, "--out", &nowhere]), &["missing"]);
}

#[test]
fn the_demo_model_answers_from_a_fresh_home() {
    let home = tempfile::tempdir().unwrap();
    let words = ["generate", "--temperature", "0", "--system-date", "2025-06-28", "Hello!"];
    let output = chorale(home.path(), &words);
    let answer = String::from_utf8_lossy(&succeeded(&output).stdout).into_owned();
    assert_eq!(answer, "Hello! I am a tiny demo model. How can I help you?\n");
    let aside = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(aside.contains("The user is being friendly."), "the thinking goes to standard error: {aside}");
    assert!(aside.contains("tokens/s"), "{aside}");

    // Half of the bytes, and the same answer.
    let narrow = ["--dense-dtype", "int8", "--kv-cache-dtype", "fp8"];
    let output = chorale(home.path(), &[&words[..], &narrow].concat());
    assert_eq!(String::from_utf8_lossy(&succeeded(&output).stdout), answer);

    let output = chorale(home.path(), &[&["--json", "--logprobs", "2"], &words[..]].concat()[..]);
    refused(&output, &["--json"]);
    let output = chorale(home.path(), &[&words[..1], &["--json", "--logprobs", "2"], &words[1..]].concat());
    let report: Value = serde_json::from_slice(&succeeded(&output).stdout).unwrap();
    assert_eq!(report["content"], "Hello! I am a tiny demo model. How can I help you?");
    assert_eq!(report["reasoning"], "The user is being friendly.");
    assert_eq!(report["finish_reason"], "stop");
    assert_eq!(report["usage"]["completion_tokens"], 31);
    assert_eq!(report["logprobs"].as_array().unwrap().len(), 31);
    assert_eq!(report["logprobs"][0]["top"].as_array().unwrap().len(), 2);
}

#[test]
fn an_answer_that_is_cut_says_so_and_a_seed_repeats_it() {
    let home = tempfile::tempdir().unwrap();
    let words =
        ["generate", "--json", "--max-tokens", "12", "--ignore-eos", "--raw", "<|start|>user<|message|>Hi"];
    let run = |more: &[&str]| -> Value {
        let output = chorale(home.path(), &[&words[..], more].concat());
        serde_json::from_slice(&succeeded(&output).stdout).unwrap()
    };
    let hot = ["--temperature", "1.5", "--seed"];
    let (first, again) = (run(&[&hot[..], &["1"]].concat()), run(&[&hot[..], &["1"]].concat()));
    assert_eq!(first["finish_reason"], "length");
    assert_eq!(first["tokens"].as_array().unwrap().len(), 12);
    assert_eq!(first["tokens"], again["tokens"]);
    assert!(first.get("reasoning").is_none(), "a raw prompt has no channels");
}

#[test]
fn prompts_that_do_not_fit_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let small = model("a-small");
    refused(&chorale(home.path(), &["generate", &small, "Hello!"]), &["the prompt", "vocabulary of 512"]);
    refused(&chorale(home.path(), &["generate", "--raw", ""]), &["prompt is empty"]);
    refused(
        &chorale(home.path(), &["generate", "--max-model-len", "10", "Hello!"]),
        &["--max-model-len", "context of 10"],
    );
    refused(
        &chorale(home.path(), &["generate", "--max-tokens", "200000", "Hello!"]),
        &["--max-tokens is 200000", "room for"],
    );
    refused(
        &chorale(home.path(), &["generate", "--logit-bias", "201088=1", "Hi"]),
        &["--logit-bias", "201088"],
    );
}

#[test]
fn offline_measurements_are_lines_of_json() {
    let home = tempfile::tempdir().unwrap();
    let model = model("c-ratio");
    let words = ["bench", "offline", &model, "--prompt-tokens", "30", "--gen-tokens", "5", "--batch", "3"];
    let narrow = ["--dense-dtype", "int8", "--kv-cache-dtype", "fp8"];
    let measured = |more: &[&str]| {
        let output = chorale(home.path(), &[&words[..], &["--threads", "2"], more].concat());
        let text = String::from_utf8_lossy(&succeeded(&output).stdout).into_owned();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.map(|line| line["bytes_per_step"].as_f64().unwrap()).collect::<Vec<_>>()
    };
    let (whole, less) = (measured(&[]), measured(&narrow));
    assert!(less.iter().zip(&whole).all(|(less, whole)| less < whole), "{less:?} {whole:?}");

    let output = chorale(home.path(), &[&words[..], &["--threads", "2", "--repeat", "2"]].concat());
    let text = String::from_utf8_lossy(&succeeded(&output).stdout).into_owned();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kinds: Vec<&str> = lines.iter().map(|line| line["measurement"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["prefill", "decode", "prefill", "decode"]);
    assert_eq!(
        (&lines[1]["steps"], &lines[1]["batch"], &lines[1]["threads"]),
        (&4.into(), &3.into(), &2.into())
    );
    for line in &lines {
        assert_eq!((&line["dense_dtype"], &line["kv_cache_dtype"]), (&"bf16".into(), &"f32".into()));
        for figure in ["tokens_per_s", "ms_per_step", "bytes_per_step", "gb_per_s"] {
            assert!(line[figure].as_f64().unwrap() > 0.0, "{line}");
        }
    }
}
