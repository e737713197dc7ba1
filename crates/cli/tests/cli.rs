//! The binary as a user meets it: exit codes, what goes to which stream, and
//! which of file, environment and flags wins. No command here loads weights.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

#[test]
fn help_and_version_go_to_standard_output() {
    for words in [
        &["--help"][..],
        &["--version"],
        &["generate", "--help"],
        &["logits", "--help"],
        &["inspect", "--help"],
        &["bench", "--help"],
        &["bench", "offline", "--help"],
        &["pull", "--help"],
        &["completions", "--help"],
    ] {
        let output = Home::new().run(words);
        assert_eq!(output.status.code(), Some(0), "{words:?}");
        assert!(text(&output.stdout).contains("horale"), "{words:?}");
        assert_eq!(text(&output.stderr), "", "{words:?}");
    }
}

#[test]
fn completions_are_made_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = Home::new().run(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        assert!(text(&output.stdout).contains("max-model-len"), "{shell}");
    }
}

#[test]
fn wrong_calls_end_in_two_and_name_what_is_wrong() {
    let model = fixture("a-small");
    for (words, part) in [
        (&["serv"][..], "serv"),
        (&["serve", "--port", "70000"], "--port is \"70000\": must be"),
        (&["serve", "--host", "nowhere"], "--host is \"nowhere\": must be an address"),
        (&["serve", "--tls-cert", "c.pem"], "--tls-cert is given without --tls-key"),
        (&["serve", "--system-date", "yesterday"], "--system-date is \"yesterday\": must be"),
        (&["serve", "--max-num-seqs", "0"], "--max-num-seqs is \"0\": must be"),
        (&["serve", "--max-model-len", "9999999"], "--max-model-len is 9999999"),
        (&["generate"], "PROMPT"),
        (&["generate", "hi", "--temperature", "-1"], "--temperature is \"-1\": must be"),
        (&["generate", "hi", "--top-p", "0"], "--top-p is \"0\": must be"),
        (&["generate", "hi", "--top-k", "0"], "--top-k is \"0\": must be"),
        (&["generate", "hi", "--min-p", "1.5"], "--min-p is \"1.5\": must be"),
        (&["generate", "hi", "--presence-penalty", "nan"], "--presence-penalty is \"nan\": must be"),
        (&["generate", "hi", "--repetition-penalty", "0"], "--repetition-penalty is \"0\": must be"),
        (&["generate", "hi", "--max-tokens", "0"], "--max-tokens is \"0\": must be"),
        (&["generate", "hi", "--logit-bias", "7"], "--logit-bias"),
        (&["generate", "hi", "--system-date", "2025-02-30"], "--system-date"),
        (&["inspect", &model, "--device-memory", "80"], "--device-memory is \"80\": it has no unit"),
        (&["inspect", &model, "--memory-bandwidth", "3TB"], "--memory-bandwidth is"),
        (&["inspect", &model, "--tensor-parallel-size", "0"], "--tensor-parallel-size is \"0\""),
        (&["inspect", &model, "--tensor-parallel-size", "3"], "key/value heads"),
        (&["inspect", &model, "--max-model-len", "131073"], "131072"),
        (&["inspect", &model, "--dense-dtype", "fp8"], "'fp8' for '--dense-dtype"),
        (&["inspect", &model, "--kv-cache-dtype", "int8"], "'int8' for '--kv-cache-dtype"),
        (&["inspect", &model, "--log-level", "loud"], "--log-level is \"loud\""),
        (&["inspect", "/nonexistent/model"], "/nonexistent/model"),
        (&["inspect", "no model"], "no model"),
        (&["pull", "not-an-id"], "not-an-id"),
        (&["pull", "some/model", "--offline"], "offline"),
        (&["inspect", &model, "--config", "/nonexistent.toml"], "/nonexistent.toml"),
    ] {
        let output = Home::new().run(words);
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {errors}");
        assert!(errors.contains(part), "{words:?}: {errors}");
        assert_eq!(errors.matches("error:").count(), 1, "{words:?}: {errors}");
        assert_eq!(text(&output.stdout), "", "{words:?}");
    }
}

#[test]
fn failures_end_in_one() {
    let home = Home::new();
    let model = home.path("model");
    std::fs::create_dir(&model).unwrap();
    let empty = home.run(&["inspect", &model.display().to_string()]);
    assert_eq!(empty.status.code(), Some(1));
    assert!(text(&empty.stderr).contains("config.json"), "{}", text(&empty.stderr));

    std::fs::write(model.join("config.json"), "{").unwrap();
    assert_eq!(home.run(&["inspect", &model.display().to_string()]).status.code(), Some(1));
}

#[test]
fn a_gpus_memory_is_planned_for_the_steps_that_are_asked_for() {
    let home = Home::new();
    let plan = |max_batch_tokens: &str, ranks: &str| {
        let words = ["--max-num-seqs", "8", "--max-batch-tokens", max_batch_tokens];
        home.inspect(&[&words[..], &["--data-parallel-size", ranks]].concat())["gpus"].clone()
    };
    let (small, large, parted) = (plan("64", "1"), plan("4096", "1"), plan("64", "2"));
    assert_eq!((&small["max_num_seqs"], &large["max_batch_tokens"]), (&8.into(), &4096.into()));
    let bytes = |plan: &Value, what: &str| plan["ranks"][0][what].as_u64().unwrap();
    assert!(bytes(&large, "step_bytes") > bytes(&small, "step_bytes"));
    assert_eq!(bytes(&large, "dense_bytes"), bytes(&small, "dense_bytes"));
    assert_eq!(parted["ranks"].as_array().unwrap().len(), 2);
    assert!(bytes(&parted, "exchange_bytes") > bytes(&small, "exchange_bytes"));
}

#[test]
fn flags_win_over_environment_over_file() {
    let home = Home::new();
    home.write_config("kv_block_size = 1\nmax_model_len = 1000\n");
    let max_model_len = |home: &Home, words: &[&str]| home.inspect(words)["max_model_len"].as_u64().unwrap();
    assert_eq!(max_model_len(&home, &[]), 1000);
    let home = home.with_variable("CHORALE_MAX_MODEL_LEN", "2000");
    assert_eq!(max_model_len(&home, &[]), 2000);
    assert_eq!(max_model_len(&home, &["--max-model-len", "3000"]), 3000);
}

#[test]
fn a_named_config_file_replaces_the_default_one() {
    let home = Home::new();
    home.write_config("max_model_len = 1000\n");
    let other = home.path("other.toml");
    std::fs::write(&other, "kv_cache_dtype = \"fp8\"\n").unwrap();
    let report = home.inspect(&["--config", &other.display().to_string()]);
    assert_eq!(report["max_model_len"], 131_072);
    assert_eq!(report["kv"]["dtype"], "fp8");
    let words = ["--config", &other.display().to_string(), "--kv-cache-dtype", "auto"];
    assert_eq!(home.inspect(&words)["kv"]["dtype"], "bf16", "what GPUs keep");
}

#[test]
fn unknown_settings_are_refused_by_name() {
    let home = Home::new();
    home.write_config("thread = 2\n");
    let output = home.run(&["inspect", &fixture("a-small")]);
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        errors.contains("`thread`") && errors.contains("config.toml") && errors.contains("`threads`"),
        "{errors}"
    );

    let home = Home::new().with_variable("CHORALE_MAX_TOKEN", "2");
    let errors = text(&home.run(&["inspect", &fixture("a-small")]).stderr);
    assert!(errors.contains("CHORALE_MAX_TOKEN;") && errors.contains("CHORALE_MAX_TOKENS?"), "{errors}");
}

#[test]
fn settings_are_logged_at_debug_level_and_standard_output_stays_clean() {
    let output =
        Home::new().with_variable("CHORALE_LOG", "debug").run(&["inspect", &fixture("a-small"), "--json"]);
    assert!(text(&output.stderr).contains("kv_block_size: 64"), "{}", text(&output.stderr));
    assert!(serde_json::from_slice::<Value>(&output.stdout).is_ok());
}

#[test]
fn the_model_may_come_from_the_settings() {
    let home = Home::new().with_variable("CHORALE_MODEL", &fixture("b-awkward"));
    let report = json(&home.run(&["inspect", "--json"]));
    assert_eq!(report["config"]["num_experts"], 5);
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let mut child = Home::new()
        .command(&["inspect", &fixture("c-ratio"), "--data-parallel-size", "500", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(text(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn every_fixture_is_inspected_whole() {
    for (name, layout) in [
        ("a-small", "hugging-face"),
        ("a-small/original", "original"),
        ("b-awkward", "hugging-face"),
        ("c-ratio", "hugging-face"),
    ] {
        let report = json(&Home::new().run(&["inspect", &fixture(name), "--json"]));
        assert_eq!(report["weights"], layout, "{name}");
        assert_eq!(report["weight_bytes"]["total"], report["ranks"][0]["weight_bytes"]["total"], "{name}");
        assert_eq!(report["ranks"][0]["fit"], Value::Null, "{name}");
        assert_eq!(report["decode"].as_array().unwrap().len(), 8, "{name}");
    }
}

#[test]
fn the_published_geometries_need_nothing_but_their_config() {
    for (num_layers, num_experts, total, active, bytes, growing, fixed) in [
        (36, 128, 116_829_156_672_u64, 5.133, 65.25, 36_864, 4_718_592),
        (24, 32, 20_914_757_184, 3.608, 13.76, 24_576, 3_145_728),
    ] {
        let home = Home::new();
        let model = home.write_published(num_layers, num_experts);
        let words =
            ["inspect", &model, "--json", "--device-memory", "80GiB", "--memory-bandwidth", "3.35TB/s"];
        let report = json(&home.run(&words));
        assert_eq!(report["weights"], Value::Null);
        assert_eq!(report["parameters"]["total"], total);
        assert!(near(&report["parameters"]["active"], active * 1e9));
        assert!(near(&report["weight_bytes"]["total"], bytes * 1e9));
        assert_eq!(report["kv"]["full_layer_bytes_per_token"], growing);
        assert_eq!(report["kv"]["sliding_layer_bytes_per_sequence"], fixed);
        assert_eq!(report["ranks"][0]["fit"]["shortage"], Value::Null);
        assert_eq!(report["ranks_needed"]["num_ranks"], 1);
        // The table of GPUs and the word on whether it fits are of one plan.
        let gpu = &report["gpus"]["ranks"][0];
        let bytes = |part: &str| gpu[part].as_u64().unwrap();
        let steps = bytes("step_bytes") + bytes("exchange_bytes");
        assert_eq!(report["ranks"][0]["workspace_bytes"], steps);
        let reserved = report["gpus"]["reserved_bytes"].as_u64().unwrap();
        let left = (80 << 30) - reserved - bytes("dense_bytes") - bytes("expert_bytes") - steps;
        assert_eq!(report["ranks"][0]["fit"]["kv_cache_bytes"], left);
        let step = &report["decode"][0];
        assert!(near(&step["tokens_per_s"], 3.35e12 / step["bytes_per_step"].as_f64().unwrap()));

        let tables = text(&home.run(&["inspect", &model, "--device-memory", "12GiB"]).stdout);
        for part in
            ["experts (MXFP4)", "met by one token", "growing", "fixed", "does not fit", "needs", "batch"]
        {
            assert!(tables.contains(part), "{part}: {tables}");
        }
    }
}

#[test]
fn narrow_types_cost_what_they_do() {
    let home = Home::new();
    let model = home.write_published(36, 128);
    let words = ["inspect", &model, "--dense-dtype", "int8", "--kv-cache-dtype", "fp8"];
    let report = json(&home.run(&[&words[..], &["--json", "--context", "1000"]].concat()));
    assert_eq!((&report["dense_dtype"], &report["kv"]["dtype"]), (&"int8".into(), &"fp8".into()));
    // 65 bytes for 64 values.
    assert_eq!(report["kv"]["full_layer_bytes_per_token"], 2 * 8 * 65 * 18);
    // A byte a weight, and four for each row.
    let (attention, head) = (36 * (26_542_080 + 4 * (5120 + 2880)), 201_088 * (2880 + 4));
    assert_eq!(report["weight_bytes"]["by_part"]["attention"], attention);
    assert_eq!(report["ranks"][0]["weight_bytes"]["by_part"]["head"], head);
    let read = report["decode"][0]["bytes_per_step"].as_f64().unwrap();
    let cached = (2 * 8 * 65 * 18 * (1000 + 128)) as f64;
    assert!((read - cached - 3.4703e9).abs() < 1e6, "{read}");

    let tables = text(&home.run(&words).stdout);
    for part in ["attention (int8)", "output matrix (int8)", "KV cache, fp8", "18720 B for each token"] {
        assert!(tables.contains(part), "{part}: {tables}");
    }
}

#[test]
fn a_checkpoint_with_a_tensor_missing_is_refused() {
    let home = Home::new();
    let model = home.path("model");
    std::fs::create_dir(&model).unwrap();
    for file in Path::new(&fixture("b-awkward")).read_dir().unwrap() {
        let file = file.unwrap().path();
        std::fs::copy(&file, model.join(file.file_name().unwrap())).unwrap();
    }
    std::fs::remove_file(model.join("model-00002-of-00003.safetensors")).unwrap();
    let output = home.run(&["inspect", &model.display().to_string()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("model-00002-of-00003.safetensors"), "{}", text(&output.stderr));
}

/// A user without settings, caches or proxies.
struct Home {
    directory: tempfile::TempDir,
    variables: Vec<(String, String)>,
}

impl Home {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), variables: Vec::new() }
    }

    fn with_variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write_config(&self, text: &str) {
        let directory = self.path(".config/chorale");
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("config.toml"), text).unwrap();
    }

    /// A `config.json` of the published models' geometry, and its directory.
    fn write_published(&self, num_layers: usize, num_experts: usize) -> String {
        let directory = self.path("published");
        std::fs::create_dir_all(&directory).unwrap();
        let mut config: Value =
            serde_json::from_slice(&std::fs::read(format!("{}/config.json", fixture("a-small"))).unwrap())
                .unwrap();
        let layer_types = ["sliding_attention", "full_attention"].into_iter().cycle().take(num_layers);
        config["layer_types"] = layer_types.collect();
        for (key, value) in [
            ("num_hidden_layers", num_layers),
            ("num_local_experts", num_experts),
            ("hidden_size", 2880),
            ("intermediate_size", 2880),
            ("num_attention_heads", 64),
            ("num_key_value_heads", 8),
            ("vocab_size", 201_088),
            ("eos_token_id", 200_002),
            ("pad_token_id", 199_999),
        ] {
            config[key] = value.into();
        }
        std::fs::write(directory.join("config.json"), config.to_string()).unwrap();
        directory.display().to_string()
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_chorale"));
        command.env_clear().env("HOME", self.directory.path()).args(words);
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    fn inspect(&self, words: &[&str]) -> Value {
        json(&self.run(&[&["inspect", &fixture("a-small"), "--json"], words].concat()))
    }
}

fn fixture(name: &str) -> String {
    format!("{}/../../tests/fixtures/models/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn json(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Equal to the third digit or so.
fn near(value: &Value, expected: f64) -> bool {
    (value.as_f64().unwrap() / expected - 1.0).abs() < 1e-3
}
