//! Whom the members of a cluster trust: an authority, or, if somebody says so,
//! everyone.

use crate::config::Config;
use crate::exit::UsageError;
use chorale_wire::tls::Tls;

/// The cluster's certificates; `None` for plaintext.
pub(super) fn tls(settings: &Config) -> anyhow::Result<Option<Tls>> {
    match (&settings.tls_dir, settings.insecure) {
        (Some(dir), false) => Ok(Some(Tls::load(dir)?)),
        (None, true) => {
            tracing::warn!("the cluster talks in the open and trusts everyone who can reach it (--insecure)");
            Ok(None)
        }
        (Some(_), true) => Err(refuse("--tls-dir and --insecure contradict each other: leave one out")),
        (None, false) => Err(refuse(
            "a cluster needs certificates: make a set for a trial with chorale certs DIR and name a directory of it \
             with --tls-dir, or say --insecure on both sides where nobody else can reach the ports",
        )),
    }
}

fn refuse(why: &str) -> anyhow::Error {
    UsageError(why.to_owned()).into()
}
