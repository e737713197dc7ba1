//! Makes certificates for trials: an authority that exists only while they are
//! made, so that nobody can add to them afterwards. Those of a cluster that is
//! to last come from whoever runs its authority.

use super::{CA_FILE, CERTIFICATE_FILE, KEY_FILE, SERVER_NAME};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How long they may be used.
const LIFETIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// Clocks that are behind ours must not refuse them.
const CLOCK_SLACK: Duration = Duration::from_secs(24 * 60 * 60);
const MAX_NAME_BYTES: usize = 64;

/// Why there are no certificates.
#[derive(Debug, thiserror::Error)]
pub enum CertificatesError {
    /// Nothing is replaced, for somebody may use it.
    #[error("{path} is there already; name a new directory, or remove it", path = path.display())]
    Exists {
        /// What.
        path: PathBuf,
    },
    /// A directory or file cannot be written.
    #[error("cannot write {path}: {source}", path = path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is to be the name of a directory.
    #[error("{name:?} is no name: letters, digits, _, - and ., at most 64")]
    Name {
        /// As it was given.
        name: String,
    },
    /// The keys could not be made.
    #[error("the certificates could not be made: {0}")]
    Make(#[from] rcgen::Error),
}

/// Makes a new authority, and in `folder` for each name a directory as
/// [`super::Tls::load`] reads it. Only their owner can read the files.
///
/// # Errors
///
/// [`CertificatesError`]; nothing that was there is changed.
pub fn make_certificates(folder: &Path, names: &[&str]) -> Result<(), CertificatesError> {
    for name in names {
        check_name(name)?;
        let path = folder.join(name);
        if path.symlink_metadata().is_ok() {
            return Err(CertificatesError::Exists { path });
        }
    }
    let authority = CertifiedIssuer::self_signed(authority_params()?, KeyPair::generate()?)?;
    make_folder(folder, true)?;
    for name in names {
        let key = KeyPair::generate()?;
        let certificate = member_params(name)?.signed_by(&key, &authority)?;
        let place = folder.join(name);
        make_folder(&place, false)?;
        write(place.join(CA_FILE), &authority.pem())?;
        write(place.join(CERTIFICATE_FILE), &certificate.pem())?;
        write(place.join(KEY_FILE), &key.serialize_pem())?;
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), CertificatesError> {
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    let is_name = (1..=MAX_NAME_BYTES).contains(&name.len())
        && name.bytes().all(is_legal)
        && name.bytes().any(|byte| byte != b'.');
    if is_name { Ok(()) } else { Err(CertificatesError::Name { name: name.to_owned() }) }
}

fn authority_params() -> Result<CertificateParams, rcgen::Error> {
    let mut params = dated(CertificateParams::new(Vec::new())?);
    params.distinguished_name.push(DnType::CommonName, "chorale trial authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn member_params(name: &str) -> Result<CertificateParams, rcgen::Error> {
    let mut params = dated(CertificateParams::new(vec![SERVER_NAME.to_owned()])?);
    params.distinguished_name.push(DnType::CommonName, name);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // Each dials and is dialled.
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

fn dated(mut params: CertificateParams) -> CertificateParams {
    let now = SystemTime::now();
    params.not_before = (now - CLOCK_SLACK).into();
    params.not_after = (now + LIFETIME).into();
    params
}

fn make_folder(path: &Path, may_exist: bool) -> Result<(), CertificatesError> {
    let mut builder = DirBuilder::new();
    builder.recursive(may_exist);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).map_err(|source| failed(path.to_owned(), source))
}

fn write(path: PathBuf, content: &str) -> Result<(), CertificatesError> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options.open(&path).and_then(|mut file: File| file.write_all(content.as_bytes()));
    written.map_err(|source| failed(path, source))
}

fn failed(path: PathBuf, source: io::Error) -> CertificatesError {
    if source.kind() == io::ErrorKind::AlreadyExists {
        CertificatesError::Exists { path }
    } else {
        CertificatesError::Write { path, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        make_certificates(folder.path(), &["one"]).unwrap();
        let before = std::fs::read(folder.path().join("one/key.pem")).unwrap();
        let again = make_certificates(folder.path(), &["two", "one"]);
        assert!(matches!(again, Err(CertificatesError::Exists { .. })));
        assert_eq!(std::fs::read(folder.path().join("one/key.pem")).unwrap(), before);
        assert!(!folder.path().join("two").exists(), "nothing is done by half");
    }

    #[cfg(unix)]
    #[test]
    fn only_their_owner_reads_them() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        make_certificates(folder.path(), &["one"]).unwrap();
        for file in [CA_FILE, CERTIFICATE_FILE, KEY_FILE] {
            let mode = std::fs::metadata(folder.path().join("one").join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
    }

    #[test]
    fn names_are_no_paths() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["", ".", "..", "a/b", "/", "é", &"x".repeat(65)] {
            let made = make_certificates(folder.path(), &[name]);
            assert!(matches!(made, Err(CertificatesError::Name { .. })), "{name}");
        }
    }
}
