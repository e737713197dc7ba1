//! Which of file, environment and flags wins, and what is refused.

use super::*;
use crate::keys::KEYS;

#[test]
fn flags_win_over_environment_over_file_over_defaults() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("chorale.toml");
    std::fs::write(&file, "temperature = 0.1\ntop_k = 1\nmin_p = 0.1\nmodel = \"from/file\"\n").unwrap();
    let environment = variables_of(&[("CHORALE_TEMPERATURE", "0.2"), ("CHORALE_TOP_K", "2")]);
    let flags = BTreeMap::from([("temperature", "0.3")]);

    let config = Config::load(Some(&file), None, &environment, &flags).unwrap();
    assert_eq!(config.temperature, 0.3);
    assert_eq!(config.top_k, Some(2));
    assert_eq!(config.min_p, 0.1);
    assert_eq!(config.model, "from/file");
    assert_eq!(config.top_p, Config::default().top_p);
}

#[test]
fn nothing_said_gives_the_defaults() {
    assert_eq!(load(&[], &[]).unwrap(), Config::default());
}

#[test]
fn the_default_file_may_be_missing_a_named_one_may_not() {
    let missing = Path::new("/nonexistent/chorale.toml");
    let nothing = BTreeMap::<&str, &str>::new();
    assert!(Config::load(None, Some(missing), &BTreeMap::new(), &nothing).is_ok());
    let refused = Config::load(Some(missing), None, &BTreeMap::new(), &nothing).unwrap_err();
    assert!(refused.to_string().contains("/nonexistent/chorale.toml"), "{refused}");
    let environment = variables_of(&[("CHORALE_CONFIG", "/nonexistent/other.toml")]);
    assert!(Config::load(None, None, &environment, &nothing).unwrap_err().to_string().contains("other.toml"));
}

#[test]
fn unknown_keys_are_refused_by_name_with_the_nearest_known_one() {
    let refused = load_file("temprature = 1\n").unwrap_err().to_string();
    assert!(refused.contains("`temprature`") && refused.contains("chorale.toml"), "{refused}");
    assert!(refused.contains("did you mean `temperature`?"), "{refused}");

    let refused = load(&[("CHORALE_TRHEADS", "1")], &[]).unwrap_err().to_string();
    assert!(refused.contains("CHORALE_TRHEADS") && refused.contains("CHORALE_THREADS"), "{refused}");

    let refused = load_file("[sampling]\ntemperature = 1\n").unwrap_err().to_string();
    assert!(refused.contains("`sampling`"), "{refused}");
}

#[test]
fn bad_values_name_where_they_stand() {
    let refused = load_file("top_p = 2\n").unwrap_err().to_string();
    assert!(
        refused.contains("`top_p`") && refused.contains("chorale.toml") && refused.contains("is 2"),
        "{refused}"
    );
    let refused = load(&[("CHORALE_TOP_P", "0")], &[]).unwrap_err().to_string();
    assert!(refused.contains("environment variable CHORALE_TOP_P is \"0\""), "{refused}");
    let refused = load(&[], &[("top_p", "-1")]).unwrap_err().to_string();
    assert!(refused.starts_with("--top-p is \"-1\": must be"), "{refused}");
}

#[test]
fn a_file_that_is_no_toml_is_refused_by_name() {
    let refused = load_file("temperature = \n").unwrap_err().to_string();
    assert!(refused.contains("chorale.toml is no TOML"), "{refused}");
}

#[test]
fn text_stays_text_where_it_looks_like_a_number() {
    let config = load(&[("CHORALE_REVISION", "0042")], &[("model", "7")]).unwrap();
    assert_eq!(config.revision.as_deref(), Some("0042"));
    assert_eq!(config.model, "7");
}

#[test]
fn sizes_and_rates_become_bytes() {
    let config = load_file("device_memory = \"80GiB\"\nmemory_bandwidth = \"24GB/s\"\n").unwrap();
    assert_eq!(config.device_memory_bytes, Some(80 << 30));
    assert_eq!(config.memory_bandwidth_bytes_per_s, Some(24e9));
}

#[test]
fn the_log_variable_has_a_short_name_and_empty_variables_are_unset() {
    assert_eq!(load(&[("CHORALE_LOG", "debug")], &[]).unwrap().log_level, "debug");
    assert_eq!(load(&[("CHORALE_LOG_LEVEL", "trace")], &[]).unwrap().log_level, "trace");
    assert_eq!(load(&[("CHORALE_THREADS", "")], &[]).unwrap(), Config::default());
    assert_eq!(load(&[("PATH", "/bin"), ("CHORAL", "x")], &[]).unwrap(), Config::default());
}

#[test]
fn every_setting_is_in_the_table_of_keys_and_the_other_way_round() {
    let fields = serde_json::to_value(Config::default()).unwrap();
    let mut fields: Vec<&str> = fields.as_object().unwrap().keys().map(String::as_str).collect();
    let mut keys: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
    fields.sort_unstable();
    keys.sort_unstable();
    assert_eq!(fields, keys);
}

fn load(environment: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let flags: BTreeMap<&str, &str> = flags.iter().copied().collect();
    Config::load(None, None, &variables_of(environment), &flags)
}

fn load_file(text: &str) -> Result<Config, ConfigError> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("chorale.toml");
    std::fs::write(&file, text).unwrap();
    Config::load(Some(&file), None, &BTreeMap::new(), &BTreeMap::<&str, &str>::new())
}

fn variables_of(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}
