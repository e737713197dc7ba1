//! What the command line accepts, and what its help says.

use super::*;
use std::collections::BTreeMap;

/// As the binary does, with a mistake given back instead of printed.
fn read<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(words).and_then(Cli::checked)
}

#[test]
fn every_example_of_the_help_can_be_run() {
    let mut num_examples = 0;
    for path in [
        &[][..],
        &["serve"],
        &["coordinator"],
        &["worker"],
        &["cluster"],
        &["certs"],
        &["generate"],
        &["logits"],
        &["inspect"],
        &["bench", "offline"],
        &["pull"],
    ] {
        let mut command = command();
        let found = path.iter().try_fold(&mut command, |command, name| command.find_subcommand_mut(name));
        let help = found.unwrap().get_after_help().unwrap().to_string();
        for line in help.lines().filter_map(|line| line.split_once("  chorale ")) {
            let words = split(line.1);
            let example: Vec<&str> =
                std::iter::once("chorale").chain(words.iter().map(String::as_str)).collect();
            assert!(read(example.iter().copied()).is_ok(), "{example:?}");
            num_examples += 1;
        }
    }
    assert!(num_examples > 10);
}

/// As a shell would, up to a redirection.
fn split(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (index, part) in line.split('"').enumerate() {
        if index % 2 == 1 {
            words.push(part.to_owned());
            continue;
        }
        for word in part.split_whitespace() {
            if word == ">" || word == "<" {
                return words;
            }
            words.push(word.to_owned());
        }
    }
    words
}

#[test]
fn the_command_line_is_consistent() {
    command().debug_assert();
}

#[test]
fn every_command_groups_its_options() {
    for (path, expected) in [
        (&[][..], "Commands Options Settings Model_files Examples"),
        (
            &["generate"],
            "Arguments Options Conversation Output Sampling Memory Settings Model_files Examples",
        ),
        (
            &["coordinator"],
            "Arguments Options Ranks Cluster Trust Doors Answers Load Memory Settings Model_files Examples",
        ),
        (&["worker"], "Arguments Options Cluster Trust Ranks Settings Model_files Examples"),
        (&["logits"], "Arguments Options Files What_to_compute Memory Settings Model_files Examples"),
        (&["inspect"], "Arguments Options Ranks Memory Decode Output Settings Model_files Examples"),
        (&["bench"], "Commands Options Settings Model_files"),
        (&["bench", "offline"], "Arguments Options Load Memory Settings Model_files Examples"),
        (&["pull"], "Arguments Options Settings Model_files Examples"),
        (&["completions"], "Arguments Options Settings Model_files Examples"),
    ] {
        assert_eq!(headings(path), expected, "{path:?}");
    }
}

#[test]
fn help_tells_the_defaults_that_the_config_has() {
    let help = help_of(&["generate"]);
    assert!(help.contains("[default: 1.0]") && help.contains("[default: demo]"), "{help}");
    assert!(help_of(&["inspect"]).contains("[default: 64]"));
}

#[test]
fn one_word_is_the_prompt_and_two_are_model_and_prompt() {
    let read = |words: &[&str]| {
        let cli = read([&["chorale", "generate"], words].concat()).unwrap();
        let Command::Generate(args) = cli.command else {
            panic!("another command was read");
        };
        (args.model().map(str::to_owned), args.prompt().to_owned())
    };
    assert_eq!(read(&["hi"]), (None, "hi".to_owned()));
    assert_eq!(read(&["m", "hi"]), (Some("m".to_owned()), "hi".to_owned()));
    assert_eq!(read(&["--model", "m", "hi"]), (Some("m".to_owned()), "hi".to_owned()));
    assert_eq!(read(&["-"]), (None, "-".to_owned()));
    assert_eq!(read(&["--top-k", "5", "m", "hi", "--seed", "7"]), (Some("m".to_owned()), "hi".to_owned()));
    assert_eq!(read(&["m", "--top-k", "5", "hi"]), (Some("m".to_owned()), "hi".to_owned()));
    assert_eq!(read(&["m", "--json", "-"]), (Some("m".to_owned()), "-".to_owned()));
}

#[test]
fn a_model_is_named_once() {
    for words in [
        &["chorale", "generate", "--model", "a", "b", "hi"][..],
        &["chorale", "generate", "a", "b", "hi"],
        &["chorale", "inspect", "a", "--model", "b"],
        &["chorale", "generate"],
        &["chorale", "generate", "--raw", "--system", "x", "hi"],
        &["chorale", "generate", "--logprobs", "21", "hi"],
        &["chorale", "generate", "--seed", "-1", "hi"],
        &["chorale", "logits", "m", "--tokens", "t.json", "--out", "o", "--slice", "0"],
        &["chorale", "bench", "offline", "m", "--batch", "0"],
        &["chorale", "inspect", "--kv-cache-dtype", "int4"],
        &["chorale", "inspect", "--dense-dtype", "int4"],
        &["chorale", "serve", "a", "b"],
    ] {
        assert!(read(words.iter().copied()).is_err(), "{words:?}");
    }
}

#[test]
fn settings_are_those_that_were_given() {
    let settings = |words: &[&str]| {
        let cli = read(words.iter().copied()).unwrap();
        let value = serde_json::to_value(cli.settings()).unwrap();
        let given = value.as_object().unwrap().iter().filter(|(_, value)| !value.is_null());
        given.map(|(name, value)| (name.clone(), value.to_string())).collect::<BTreeMap<_, _>>()
    };
    assert_eq!(settings(&["chorale", "inspect"]), BTreeMap::new());
    let given = settings(&["chorale", "--threads", "4", "generate", "m", "hi", "--top-p", "-1", "--offline"]);
    let expected = [("model", "\"m\""), ("offline", "true"), ("threads", "\"4\""), ("top_p", "\"-1\"")];
    assert_eq!(given, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    assert_eq!(settings(&["chorale", "pull", "a/b", "--offline=false"])["offline"], "false");
}

fn help_of(path: &[&str]) -> String {
    let mut command = command();
    command.build();
    let found = path.iter().try_fold(&mut command, |command, name| command.find_subcommand_mut(name));
    found.unwrap().render_help().to_string()
}

/// Lines that end in a colon and start in the first column.
fn headings(path: &[&str]) -> String {
    let help = help_of(path);
    let lines = help.lines().filter(|line| line.starts_with(|first: char| first.is_ascii_uppercase()));
    let headings: Vec<String> =
        lines.filter_map(|line| Some(line.strip_suffix(':')?.replace(' ', "_"))).collect();
    headings.join(" ")
}
