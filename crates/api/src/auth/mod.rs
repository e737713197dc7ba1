//! Who may ask, and what a key is worth. Secrets are hashed when they are read;
//! only the hashes are kept, and nothing here is ever logged but names.

mod account;
mod caller;
mod guard;
mod keyring;
mod settings;

pub use account::Account;
pub use caller::Caller;
pub use keyring::{KeyError, Keyring};
pub use settings::{KeySettings, Secret};

pub(crate) use account::Permit;
pub(crate) use guard::{Guard, require_key, secret};
