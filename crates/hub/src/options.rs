//! Where the hub is, where files are kept and who asks.
//!
//! The variables are those of the hub's Python client, so that an existing
//! cache and login serve as they are. Reading them is left to a closure.

use std::fmt;
use std::fs;
use std::path::PathBuf;

use crate::error::{Error, Result};

const ENDPOINT: &str = "https://huggingface.co";
const HTTPS_PROXIES: [&str; 4] = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
const HTTP_PROXIES: [&str; 4] = ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];
const TRUE: [&str; 4] = ["1", "ON", "YES", "TRUE"];
const FALSE: [&str; 4] = ["0", "OFF", "NO", "FALSE"];

/// Where the hub is, where files are kept and who asks.
#[derive(Clone, PartialEq, Eq)]
pub struct HubOptions {
    /// The hub's base URL, without a slash at the end.
    pub endpoint: String,
    /// The hub cache, shared with other programs: it holds `models--org--name`.
    pub cache_dir: PathBuf,
    /// Our own cache, where the demo model is unpacked.
    pub demo_dir: PathBuf,
    /// Sent to the hub, and to no host that it redirects to.
    pub token: Option<String>,
    /// How to leave this network, where it is not direct.
    pub proxy: Option<ProxyOptions>,
    /// Answer from the cache, and never touch the network.
    pub offline: bool,
    /// A branch, a tag or a commit; `main` if none.
    pub revision: Option<String>,
}

/// How to leave a network that has a proxy.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyOptions {
    /// The proxy's URL; it may hold a password.
    pub url: String,
    /// Hosts that are reached directly: `example.com`, `.example.com` for what is below it, `*` for all.
    pub bypass: Vec<String>,
}

/// Directories that the user named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// The hub's cache.
    pub cache_dir: Option<PathBuf>,
    /// Where the demo model is unpacked.
    pub demo_dir: Option<PathBuf>,
}

impl HubOptions {
    /// Reads the hub's variables through `var`, an empty value counting as none.
    ///
    /// `HF_ENDPOINT`, `HF_HUB_CACHE`, `HF_HOME`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_OFFLINE`, and around
    /// them `XDG_CACHE_HOME`, `HOME`, `HTTPS_PROXY` (`HTTP_PROXY` for an `http:`
    /// endpoint), `ALL_PROXY` and `NO_PROXY`. A token that `hf auth login`
    /// left in a file is read from there.
    ///
    /// What `places` names is not looked for, so that no home is needed where both caches are named.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>, places: Places) -> Result<Self> {
        let var =
            |name: &str| var(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let absolute = |path: PathBuf| Some(path).filter(|path| path.is_absolute());
        let user_cache = var("XDG_CACHE_HOME")
            .and_then(|path| absolute(path.into()))
            .or_else(|| absolute(PathBuf::from(var("HOME")?).join(".cache")));
        let hf_home = var("HF_HOME")
            .map(PathBuf::from)
            .or_else(|| user_cache.as_ref().map(|user_cache| user_cache.join("huggingface")));
        let token_path = var("HF_TOKEN_PATH")
            .map(PathBuf::from)
            .or_else(|| hf_home.as_ref().map(|hf_home| hf_home.join("token")));
        let cache_dir = places.cache_dir.or_else(|| var("HF_HUB_CACHE").map(PathBuf::from));
        let endpoint = var("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into()).trim_end_matches('/').to_owned();
        let proxies = if endpoint.starts_with("https:") { HTTPS_PROXIES } else { HTTP_PROXIES };
        let cache_dir = cache_dir.or_else(|| Some(hf_home?.join("hub")));
        let demo_dir = places.demo_dir.or_else(|| Some(user_cache?.join("chorale")));
        // Where there is no home, one place that was named has room for both.
        let any = cache_dir.clone().or_else(|| demo_dir.clone()).ok_or_else(no_home)?;
        Ok(Self {
            endpoint,
            cache_dir: cache_dir.unwrap_or_else(|| any.join("hub")),
            demo_dir: demo_dir.unwrap_or_else(|| any.join("chorale")),
            token: var("HF_TOKEN").or_else(|| {
                let token = fs::read_to_string(token_path?).ok()?;
                Some(token.trim().to_owned()).filter(|token| !token.is_empty())
            }),
            proxy: proxies
                .into_iter()
                .find_map(&var)
                .map(|url| ProxyOptions { url, bypass: bypass(var("NO_PROXY").or_else(|| var("no_proxy"))) }),
            offline: flag("HF_HUB_OFFLINE", var("HF_HUB_OFFLINE"))?,
            revision: None,
        })
    }
}

fn no_home() -> Error {
    Error::Variable {
        name: "HOME",
        why: "not set, or not a whole path".into(),
        remedy: "set it, or XDG_CACHE_HOME, or name a place with --cache-dir",
    }
}

fn bypass(list: Option<String>) -> Vec<String> {
    list.unwrap_or_default()
        .split(',')
        .map(|host| host.trim().to_owned())
        .filter(|host| !host.is_empty())
        .collect()
}

/// Whoever misspells `HF_HUB_OFFLINE` wants no network, so what is not known is refused instead of false.
fn flag(name: &'static str, value: Option<String>) -> Result<bool> {
    let Some(value) = value else { return Ok(false) };
    let upper = value.to_uppercase();
    if TRUE.contains(&upper.as_str()) {
        return Ok(true);
    }
    if FALSE.contains(&upper.as_str()) {
        return Ok(false);
    }
    Err(Error::Variable {
        name,
        why: format!("`{value}`"),
        remedy: "use 1, on, yes or true, or 0, off, no or false",
    })
}

impl fmt::Debug for HubOptions {
    /// Shows all but the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoint, cache_dir, demo_dir, token, proxy, offline, revision } = self;
        f.debug_struct("HubOptions")
            .field("endpoint", endpoint)
            .field("cache_dir", cache_dir)
            .field("demo_dir", demo_dir)
            .field("token", &token.as_ref().map(|_| "hidden"))
            .field("proxy", proxy)
            .field("offline", offline)
            .field("revision", revision)
            .finish()
    }
}

impl fmt::Debug for ProxyOptions {
    /// Shows the host only, for a user and a password may stand before it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.url.rsplit('@').next().unwrap_or_default();
        f.debug_struct("ProxyOptions").field("host", &host).field("bypass", &self.bypass).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(vars: &[(&str, &str)]) -> Result<HubOptions> {
        HubOptions::from_vars(
            |name| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).into()),
            Places::default(),
        )
    }

    #[test]
    fn defaults_are_those_of_the_python_client() {
        let options = options(&[("HOME", "/home/u")]).unwrap();
        assert_eq!(options.endpoint, "https://huggingface.co");
        assert_eq!(options.cache_dir, PathBuf::from("/home/u/.cache/huggingface/hub"));
        assert_eq!(options.demo_dir, PathBuf::from("/home/u/.cache/chorale"));
        assert_eq!((options.token, options.proxy, options.offline), (None, None, false));
    }

    #[test]
    fn the_nearer_variable_wins() {
        let home = ("HOME", "/home/u");
        let at = |vars: &[(&str, &str)]| options(vars).unwrap().cache_dir;
        assert_eq!(at(&[home, ("XDG_CACHE_HOME", "/x")]), PathBuf::from("/x/huggingface/hub"));
        assert_eq!(at(&[home, ("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/hf")]), PathBuf::from("/hf/hub"));
        assert_eq!(at(&[home, ("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/c")]), PathBuf::from("/c"));
        assert_eq!(at(&[home, ("HF_HUB_CACHE", "")]), PathBuf::from("/home/u/.cache/huggingface/hub"));
        assert_eq!(options(&[home, ("HF_ENDPOINT", "http://m/hf/")]).unwrap().endpoint, "http://m/hf");
    }

    #[test]
    fn a_login_is_found_in_its_file_and_the_variable_wins() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("token"), "hf_file\n").unwrap();
        let hf_home = ("HF_HOME", home.path().to_str().unwrap());
        let token = |vars: &[(&str, &str)]| options(vars).unwrap().token;
        assert_eq!(token(&[("HOME", "/u"), hf_home]).as_deref(), Some("hf_file"));
        assert_eq!(token(&[("HOME", "/u"), hf_home, ("HF_TOKEN", " hf_var ")]).as_deref(), Some("hf_var"));
    }

    #[test]
    fn offline_is_yes_or_no_and_nothing_in_between() {
        let offline =
            |value| options(&[("HOME", "/u"), ("HF_HUB_OFFLINE", value)]).map(|options| options.offline);
        assert!(offline("1").unwrap() && offline("true").unwrap() && offline("Yes").unwrap());
        assert!(!offline("0").unwrap() && !offline("off").unwrap() && !offline("").unwrap());
        assert_eq!(
            offline("maybe").unwrap_err().to_string(),
            "HF_HUB_OFFLINE is `maybe`: use 1, on, yes or true, or 0, off, no or false"
        );
    }

    #[test]
    fn no_home_is_an_error_that_says_what_to_set() {
        assert_eq!(
            options(&[]).unwrap_err().to_string(),
            "HOME is not set, or not a whole path: set it, or XDG_CACHE_HOME, or name a place with --cache-dir"
        );
    }

    #[test]
    fn the_proxy_is_that_of_the_endpoints_scheme() {
        let proxy = |endpoint| {
            let vars = [("HOME", "/u"), ("HF_ENDPOINT", endpoint), ("HTTPS_PROXY", "http://p:1")];
            options(&vars).unwrap().proxy.map(|proxy| proxy.url)
        };
        assert_eq!(proxy("https://hub.lan").as_deref(), Some("http://p:1"));
        assert_eq!(proxy("http://localhost:8080"), None);
    }

    #[test]
    fn secrets_are_not_shown() {
        let options = options(&[
            ("HOME", "/u"),
            ("HF_TOKEN", "hf_secret"),
            ("HTTPS_PROXY", "http://me:secret@proxy:3128"),
            ("NO_PROXY", "localhost, .lan"),
        ])
        .unwrap();
        assert_eq!(options.proxy.as_ref().unwrap().bypass, ["localhost", ".lan"]);
        let text = format!("{options:?}");
        assert!(!text.contains("secret") && text.contains("proxy:3128"), "{text}");
    }
}
