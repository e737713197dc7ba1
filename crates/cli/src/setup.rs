//! What every command starts from: the settings, the environment, logs and
//! progress, and the directory of a model. The environment is read here, once.

use crate::args::Cli;
use crate::config::Config;
use crate::device::{DeviceChoice, DeviceOptions};
use crate::nccl::NcclChoice;
use crate::offload::ExpertHostMemory;
use crate::progress::{Fetch, Progress};
use crate::telemetry;
use anyhow::Context;
use chorale_hub::{Description, HubOptions, ModelName, Places};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What every command starts from.
#[derive(Clone)]
pub(crate) struct Setup {
    /// The settings of this run.
    pub(crate) config: Config,
    /// Bars on a terminal, lines of log elsewhere.
    pub(crate) progress: Progress,
    /// Whether terminals may be written to in colour (`NO_COLOR`).
    pub(crate) is_coloured: bool,
    environment: BTreeMap<String, String>,
}

impl Setup {
    /// Merges the settings and starts logging.
    pub(crate) fn new(cli: &Cli) -> anyhow::Result<Self> {
        let environment = read_environment();
        let default_file = default_config_file(&environment);
        let file = cli.shared.config.as_deref();
        let config = Config::load(file, default_file.as_deref(), &environment, &cli.settings())?;
        let progress = Progress::new();
        let is_coloured = !environment.contains_key("NO_COLOR");
        telemetry::start(&config.log_level, config.log_json, is_coloured, &progress)?;
        tracing::debug!(?config, "settings");
        Ok(Self { config, progress, is_coloured, environment })
    }

    /// What computes.
    pub(crate) fn device_options(&self) -> DeviceOptions {
        DeviceOptions {
            // `keys` has refused what says nothing.
            choice: DeviceChoice::parse(&self.config.device).unwrap_or(DeviceChoice::Auto),
            threads: self.config.threads,
            batch_invariant: self.config.batch_invariant,
            kernel_cache: self.cache_directory(),
        }
    }

    /// What experts may have of the host.
    pub(crate) fn expert_host_memory(&self) -> ExpertHostMemory {
        // Checked where settings are read.
        ExpertHostMemory::parse(&self.config.expert_host_memory).unwrap_or(ExpertHostMemory::Auto)
    }

    /// By what GPUs exchange rows.
    pub(crate) fn nccl(&self) -> NcclChoice {
        // `keys` has refused what says nothing.
        NcclChoice::parse(&self.config.nccl).unwrap_or(NcclChoice::Auto)
    }

    /// Where what can be made again is kept, if the user has a place for it.
    fn cache_directory(&self) -> Option<PathBuf> {
        let var = |name: &str| self.environment.get(name).filter(|path| !path.is_empty()).map(PathBuf::from);
        let base = var("XDG_CACHE_HOME").or_else(|| var("HOME").map(|home| home.join(".cache")))?;
        Some(base.join("chorale"))
    }

    /// The directory of the model that the settings name, downloaded or
    /// unpacked if need be.
    pub(crate) fn model_directory(&self) -> anyhow::Result<PathBuf> {
        let name: ModelName = self.config.model.parse()?;
        if let Some(directory) = directory_at_hand(&name) {
            return Ok(directory);
        }
        let what = match &name {
            ModelName::Demo => Fetch::Unpack,
            ModelName::Hub(_) | ModelName::Directory(_) => Fetch::Download,
        };
        let bar = self.progress.fetch(what);
        chorale_hub::resolve(&name, &self.hub_options()?, &|event| bar.on(event))
            .with_context(|| format!("cannot get the model {name}"))
    }

    /// What says what that model is; weights are not downloaded for it.
    pub(crate) fn model_description(&self) -> anyhow::Result<Description> {
        let name: ModelName = self.config.model.parse()?;
        if let Some(directory) = directory_at_hand(&name) {
            return Ok(Description { directory, has_weights: true });
        }
        chorale_hub::describe(&name, &self.hub_options()?)
            .with_context(|| format!("cannot look up the model {name}"))
    }

    /// Where the hub and its cache are: its own variables, overlaid by our settings.
    pub(crate) fn hub_options(&self) -> anyhow::Result<HubOptions> {
        let Config { revision, offline, cache_dir, download_dir, .. } = &self.config;
        let places = Places { cache_dir: download_dir.clone(), demo_dir: cache_dir.clone() };
        let mut options = HubOptions::from_vars(|name| self.environment.get(name).cloned(), places)?;
        if let Some(offline) = offline {
            options.offline = *offline;
        }
        if let Some(revision) = revision {
            options.revision = Some(revision.clone());
        }
        Ok(options)
    }
}

/// A model that needs no cache, so that it works where no home directory is known.
fn directory_at_hand(name: &ModelName) -> Option<PathBuf> {
    match name {
        ModelName::Directory(path) if path.is_dir() => Some(path.clone()),
        ModelName::Directory(_) | ModelName::Hub(_) | ModelName::Demo => None,
    }
}

/// The variables of this process. One that is no Unicode is none of ours, and
/// as a path it would not survive our text.
fn read_environment() -> BTreeMap<String, String> {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text).collect()
}

/// `chorale/config.toml` in the user's config directory, by the XDG base
/// directory specification: a relative `XDG_CONFIG_HOME` is no such directory.
fn default_config_file(environment: &BTreeMap<String, String>) -> Option<PathBuf> {
    let directory = |name: &str| environment.get(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    let config_home = directory("XDG_CONFIG_HOME").filter(|path| path.is_absolute());
    let config_home = config_home.or_else(|| Some(directory("HOME")?.join(".config")))?;
    Some(config_home.join("chorale").join("config.toml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_config_file_lies_in_the_user_s_config_directory() {
        let file = |pairs: &[(&str, &str)]| {
            let environment =
                pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            default_config_file(&environment).map(|path| path.display().to_string())
        };
        let home = ("HOME", "/home/ada");
        assert_eq!(file(&[home]).as_deref(), Some("/home/ada/.config/chorale/config.toml"));
        assert_eq!(
            file(&[home, ("XDG_CONFIG_HOME", "/etc/ada")]).as_deref(),
            Some("/etc/ada/chorale/config.toml")
        );
        assert_eq!(file(&[home, ("XDG_CONFIG_HOME", "ada")]), file(&[home]));
        assert_eq!(file(&[]), None);
    }
}
