//! What a user may call a model: a directory, a hub id, or the demo model.
//!
//! Parsing looks at the file system once, because an existing directory wins
//! over every other reading. Nothing is opened and no network is touched.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::{Error, Result};

const DEMO: &str = "demo";
/// The hub's own limit on each half of an id.
const PART_LEN_MAX: usize = 96;

/// What a user may call a model.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ModelName {
    /// A directory in the layout that the hub uses; it may not exist.
    Directory(PathBuf),
    /// A repository of the hub.
    Hub(HubId),
    /// The small model inside this program.
    #[default]
    Demo,
}

/// A repository of the hub, `org/name`, checked to be safe in a URL and in a path.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HubId(String);

impl FromStr for ModelName {
    type Err = Error;

    /// An existing directory wins, even one called `demo` or `org/name`; then what looks like a path; then
    /// `demo`; then a hub id.
    fn from_str(value: &str) -> Result<Self> {
        if looks_like_path(value) || Path::new(value).is_dir() {
            return Ok(Self::Directory(value.into()));
        }
        if value == DEMO {
            return Ok(Self::Demo);
        }
        value.parse().map(Self::Hub)
    }
}

fn looks_like_path(value: &str) -> bool {
    value.starts_with(['.', '/', '~']) || value.ends_with('/')
}

impl FromStr for HubId {
    type Err = Error;

    fn from_str(value: &str) -> Result<Self> {
        match flaw(value) {
            None => Ok(Self(value.to_owned())),
            Some(why) => Err(Error::Name { value: value.to_owned(), why }),
        }
    }
}

/// What keeps `value` from being a hub id; the rules are the hub's.
fn flaw(value: &str) -> Option<&'static str> {
    let Some((organisation, name)) = value.split_once('/') else {
        return Some("that is `org/name`");
    };
    if organisation.is_empty() || name.is_empty() || name.contains('/') {
        return Some("that is `org/name`, with one slash");
    }
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !value.chars().all(|c| c == '/' || is_allowed(c)) {
        return Some("that has letters, digits, `-`, `_` and `.` only");
    }
    for part in [organisation, name] {
        if part.len() > PART_LEN_MAX {
            return Some("that has at most 96 characters on each side of the slash");
        }
        if part.starts_with(['-', '.']) || part.ends_with(['-', '.']) || part.ends_with(".git") {
            return Some("that neither starts nor ends with `-` or `.`, nor ends with `.git`");
        }
        if part.contains("--") || part.contains("..") {
            return Some("that has no `--` and no `..`");
        }
    }
    None
}

impl HubId {
    /// The id as the hub writes it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => path.display().fmt(f),
            Self::Hub(id) => id.fmt(f),
            Self::Demo => f.write_str(DEMO),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: &str) -> ModelName {
        value.parse().unwrap()
    }

    #[test]
    fn what_looks_like_a_path_is_one_even_when_nothing_is_there() {
        for value in
            ["./nowhere", "../nowhere", "/nowhere/at/all", "~/models/x", "nowhere/", ".", "org/name/"]
        {
            assert_eq!(parse(value), ModelName::Directory(value.into()), "{value}");
        }
    }

    #[test]
    fn an_existing_directory_wins_over_a_hub_id() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_str().unwrap();
        assert_eq!(parse(path), ModelName::Directory(path.into()));
        // Relative to the crate, where tests run.
        assert_eq!(parse("src/tests"), ModelName::Directory("src/tests".into()));
    }

    #[test]
    fn ids_and_the_demo_model_parse_and_print_alike() {
        for value in ["openai/gpt-oss-20b", "a/b", "Some_Org/x.y_z-1", "demo"] {
            assert_eq!(parse(value).to_string(), value);
        }
        assert_eq!(parse("demo"), ModelName::default());
    }

    #[test]
    fn what_is_none_of_them_is_refused_with_the_value_and_the_choices() {
        let long = format!("org/{}", "x".repeat(97));
        for value in [
            "",
            "gpt-oss-20b",
            "a/b/c",
            "/b/",
            "a b/c",
            "org/na..me",
            "org/na--me",
            "-o/n",
            "o/n.",
            "o/n.git",
            &long,
        ] {
            let Err(error) = value.parse::<HubId>() else {
                panic!("`{value}` was taken for an id");
            };
            let text = error.to_string();
            assert!(text.contains(&format!("`{value}`")), "{text}");
            assert!(text.contains("openai/gpt-oss-20b") && text.contains("`demo`"), "{text}");
        }
    }
}
