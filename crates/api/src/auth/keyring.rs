//! All keys, by the hashes of their secrets. Looking one up takes the same time
//! whichever it is, and whether there is one.

use super::{Account, Caller, KeySettings};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::sync::Arc;
use subtle::{ConditionallySelectable, ConstantTimeEq};

type Hash = [u8; 32];

/// Beyond this, looking a key up would take longer than what it protects.
const MAX_KEYS: usize = 10_000;

/// The keys that are accepted. Without any, everyone is let in.
#[derive(Debug)]
pub struct Keyring {
    keys: Vec<(Hash, Arc<Account>)>,
    anonymous: Arc<Account>,
}

/// Keys that make no sense. Secrets are never part of the message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The file is not as described at [`KeySettings`].
    #[error("line {line}: {message}")]
    Syntax {
        /// Where, counted from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// A key needs exactly one of the two.
    #[error("key {name:?} needs either a secret or a sha256")]
    SecretOrHash {
        /// Which key.
        name: String,
    },
    /// It would let everyone in.
    #[error("the secret of key {name:?} is empty")]
    EmptySecret {
        /// Which key.
        name: String,
    },
    /// It is not 64 hexadecimal digits.
    #[error("the sha256 of key {name:?} is not 64 hexadecimal digits")]
    BadHash {
        /// Which key.
        name: String,
    },
    /// Logs could not tell them apart.
    #[error("two keys are called {name:?}")]
    NameTwice {
        /// The name.
        name: String,
    },
    /// Nobody could tell whose account pays.
    #[error("key {name:?} has the secret of another key")]
    SecretTwice {
        /// The later one.
        name: String,
    },
    /// More than can be looked up in a moment.
    #[error("there are more than {MAX_KEYS} keys")]
    TooMany,
}

impl Keyring {
    /// No keys: everyone is let in.
    pub fn open() -> Self {
        Self { keys: Vec::new(), anonymous: Arc::new(Account::unlimited(Caller::anonymous())) }
    }

    /// These keys.
    ///
    /// # Errors
    ///
    /// [`KeyError`] names the key that makes no sense.
    pub fn new(settings: Vec<KeySettings>) -> Result<Self, KeyError> {
        if settings.len() > MAX_KEYS {
            return Err(KeyError::TooMany);
        }
        let mut names = BTreeSet::new();
        let mut hashes = BTreeSet::new();
        let mut keyring = Self::open();
        for (index, key) in settings.into_iter().enumerate() {
            let hash = hash_of(&key)?;
            let KeySettings {
                name, weight, priority, max_concurrent_requests, tokens_per_minute, admin, ..
            } = key;
            if !names.insert(name.clone()) {
                return Err(KeyError::NameTwice { name });
            }
            if !hashes.insert(hash) {
                return Err(KeyError::SecretTwice { name });
            }
            let name = Some(Arc::from(name));
            // 0 is the account of those without a key.
            let number = index as u64 + 1;
            let caller = Caller { name, key: number, weight, priority, is_admin: admin };
            let account = Account::new(caller, max_concurrent_requests, tokens_per_minute);
            keyring.keys.push((hash, Arc::new(account)));
        }
        Ok(keyring)
    }

    /// The keys of a file, as described at [`KeySettings`].
    ///
    /// # Errors
    ///
    /// [`KeyError`] names the line or the key.
    pub fn parse_settings(toml: &str) -> Result<Vec<KeySettings>, KeyError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct File {
            #[serde(default)]
            key: Vec<KeySettings>,
        }
        let file: Result<File, toml::de::Error> = toml::from_str(toml);
        // The error's own text quotes the line, and the secret in it.
        file.map(|file| file.key).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start.min(toml.len()));
            let line = toml.as_bytes()[..start].iter().filter(|byte| **byte == b'\n').count() + 1;
            let message = error.message().lines().next().unwrap_or_default().to_owned();
            KeyError::Syntax { line, message }
        })
    }

    /// Whether a key must be shown at all.
    pub fn is_required(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Whose secret this is.
    pub fn find(&self, secret: &[u8]) -> Option<&Arc<Account>> {
        let hash: Hash = Sha256::digest(secret).into();
        let mut found = 0_u32;
        for (number, (known, _)) in (1..).zip(&self.keys) {
            found.conditional_assign(&number, known.ct_eq(&hash));
        }
        self.keys.get((found as usize).checked_sub(1)?).map(|(_, account)| account)
    }

    /// The account of those who show none, where none is required.
    pub fn anonymous(&self) -> &Arc<Account> {
        &self.anonymous
    }
}

fn hash_of(key: &KeySettings) -> Result<Hash, KeyError> {
    let name = || key.name.clone();
    match (&key.secret, &key.sha256) {
        (Some(secret), None) if secret.as_str().is_empty() => Err(KeyError::EmptySecret { name: name() }),
        (Some(secret), None) => Ok(Sha256::digest(secret.as_str()).into()),
        (None, Some(hex)) => parse_hash(hex).ok_or_else(|| KeyError::BadHash { name: name() }),
        _ => Err(KeyError::SecretOrHash { name: name() }),
    }
}

fn parse_hash(hex: &str) -> Option<Hash> {
    let mut hash = Hash::default();
    if hex.len() != 2 * hash.len() || !hex.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in hash.iter_mut().zip(hex.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keyring(toml: &str) -> Result<Keyring, KeyError> {
        Keyring::new(Keyring::parse_settings(toml)?)
    }

    #[test]
    fn a_secret_finds_its_account_and_nothing_else_does() {
        let keyring = keyring(
            r#"
            key = [
                { name = "a", secret = "one", weight = 3, priority = -2, admin = true },
                { name = "b", sha256 = "3FC4CCFE745870E2C0D99F71F30FF0656C8DEDD41CC1D7D3D376B0DBE685E2F3" },
            ]
            "#,
        )
        .unwrap();
        let a = keyring.find(b"one").unwrap().caller();
        assert_eq!((a.key, a.weight.get(), a.priority, a.is_admin), (1, 3, -2, true));
        assert_eq!(keyring.find(b"two").unwrap().caller().name.as_deref(), Some("b"));
        for wrong in [&b""[..], b"on", b"onee", b"One", b"three"] {
            assert!(keyring.find(wrong).is_none());
        }
    }

    #[test]
    fn keys_that_make_no_sense_are_refused_by_name() {
        let name = || "a".to_owned();
        for (toml, expected) in [
            ("key = [{ name = 'a' }]", KeyError::SecretOrHash { name: name() }),
            ("key = [{ name = 'a', secret = 'x', sha256 = 'y' }]", KeyError::SecretOrHash { name: name() }),
            ("key = [{ name = 'a', secret = '' }]", KeyError::EmptySecret { name: name() }),
            ("key = [{ name = 'a', sha256 = 'zz' }]", KeyError::BadHash { name: name() }),
            (
                "key = [{ name = 'a', secret = 'x' }, { name = 'a', secret = 'y' }]",
                KeyError::NameTwice { name: name() },
            ),
            (
                "key = [{ name = 'b', secret = 'x' }, { name = 'a', secret = 'x' }]",
                KeyError::SecretTwice { name: name() },
            ),
        ] {
            assert_eq!(keyring(toml).unwrap_err(), expected, "{toml}");
        }
    }

    #[test]
    fn an_error_does_not_quote_the_secret() {
        for toml in [
            "[[key]]\nname = 'a'\nsecret = 'hunter2' x",
            "[[key]]\nname = 'a'\nsecret = 'hunter2'\nwait = 2",
            "[[key]]\nname = 'a'\nsecret = 'hunter2'\nweight = 0",
            "[[key]]\nname = 'a'\nsecret = ['hunter2']",
        ] {
            let error = keyring(toml).unwrap_err();
            assert!(matches!(error, KeyError::Syntax { .. }), "{error}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        assert!(!format!("{:?}", KeySettings::new("a", "hunter2")).contains("hunter2"));
    }

    #[test]
    fn without_keys_everyone_is_let_in() {
        assert!(!Keyring::open().is_required());
        assert_eq!(Keyring::open().anonymous().caller().key, 0);
    }
}
