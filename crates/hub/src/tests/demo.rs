//! The demo model: unpacked once, checked always, repaired when needed.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, SystemTime};

use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use super::{Script, names};
use crate::demo::{Archive, DEMO};
use crate::digest::sha256;
use crate::manifest::modified_ns;
use crate::{Error, unpack_demo};

const FILES: [(&str, usize); 2] = [("config.json", 20), ("model.safetensors", 700_000)];

/// What is done to an unpacked directory, and how.
type Damage = (&'static str, fn(&Path));

/// A small archive in the shape of the real one.
struct Small {
    bytes: Vec<u8>,
    sha256: String,
}

impl Small {
    fn new() -> Self {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, len) in FILES {
            let mut header = tar::Header::new_gnu();
            header.set_size(len as u64);
            header.set_mode(0o600);
            tar.append_data(&mut header, format!("demo/{name}"), content(name, len).as_slice()).unwrap();
        }
        let bytes = compress_to_vec(tar.into_inner().unwrap().as_slice(), CompressionLevel::Fastest);
        let sha256 = sha256(&bytes);
        Self { bytes, sha256 }
    }

    fn archive(&self) -> Archive<'_> {
        let num_bytes = FILES.iter().map(|(_, len)| *len as u64).sum();
        Archive { bytes: &self.bytes, sha256: &self.sha256, num_files: FILES.len(), num_bytes }
    }

    fn provide(&self, cache_dir: &Path) -> std::path::PathBuf {
        self.archive().provide(cache_dir, &|_| {}).unwrap()
    }
}

fn content(name: &str, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8 ^ name.as_bytes()[i % name.len()]).collect()
}

fn assert_right(directory: &Path) {
    assert_eq!(names(directory), [".manifest.json", "config.json", "model.safetensors"]);
    for (name, len) in FILES {
        assert_eq!(fs::read(directory.join(name)).unwrap(), content(name, len), "{name}");
    }
}

/// When each file was written, and which file it is: a file written anew differs.
fn identity(directory: &Path) -> Vec<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let metadata = names(directory).into_iter().map(|name| fs::metadata(directory.join(name)).unwrap());
    metadata.map(|metadata| (metadata.ino(), modified_ns(&metadata))).collect()
}

#[test]
fn the_built_in_archive_is_what_its_constants_say() {
    assert_eq!(sha256(DEMO.bytes), DEMO.sha256);
    let cache = tempfile::tempdir().unwrap();
    let script = Script::default();
    let directory = unpack_demo(cache.path(), &|event| script.hear(event)).unwrap();
    let files: Vec<_> = names(&directory).into_iter().filter(|name| !name.starts_with('.')).collect();
    assert_eq!(files, ["LICENSE", "README.md", "config.json", "generation_config.json", "model.safetensors"]);
    let num_bytes: u64 = files.iter().map(|name| fs::metadata(directory.join(name)).unwrap().len()).sum();
    assert_eq!((files.len(), num_bytes), (DEMO.num_files, DEMO.num_bytes));
    let lines = script.lines();
    assert_eq!(lines[0], format!("planned {} files, {num_bytes} bytes", files.len()));
    assert_eq!(lines.len(), 2 + 2 * files.len());
    assert_eq!(directory, cache.path().join("demo-model-0801aa71a6d8"));

    let before = identity(&directory);
    let script = Script::default();
    unpack_demo(cache.path(), &|event| script.hear(event)).unwrap();
    assert_eq!((identity(&directory), script.lines()), (before, vec![]));
}

#[test]
fn a_second_start_writes_nothing() {
    let (cache, small) = (tempfile::tempdir().unwrap(), Small::new());
    let directory = small.provide(cache.path());
    assert_right(&directory);
    let before = identity(&directory);
    assert_eq!(small.provide(cache.path()), directory);
    assert_eq!(identity(&directory), before);
}

#[test]
fn a_truncated_an_altered_and_a_missing_file_are_repaired() {
    let small = Small::new();
    let damages: [Damage; 6] = [
        ("truncated", |directory| fs::write(directory.join("model.safetensors"), "cut").unwrap()),
        ("altered", |directory| {
            let mut bytes = fs::read(directory.join("model.safetensors")).unwrap();
            bytes[350_000] ^= 1;
            fs::write(directory.join("model.safetensors"), bytes).unwrap();
            touch(&directory.join("model.safetensors"));
        }),
        ("missing", |directory| fs::remove_file(directory.join("config.json")).unwrap()),
        ("a manifest cut short", |directory| fs::write(directory.join(".manifest.json"), "{").unwrap()),
        ("no manifest", |directory| fs::remove_file(directory.join(".manifest.json")).unwrap()),
        ("a manifest of another archive", |directory| {
            let manifest = fs::read_to_string(directory.join(".manifest.json")).unwrap();
            let other = manifest.replacen("\"archive\": \"", "\"archive\": \"0", 1);
            fs::write(directory.join(".manifest.json"), other).unwrap();
        }),
    ];
    for (what, damage) in damages {
        let cache = tempfile::tempdir().unwrap();
        let directory = small.provide(cache.path());
        damage(&directory);
        assert_eq!(small.provide(cache.path()), directory, "{what}");
        assert_right(&directory);
        let before = identity(&directory);
        small.provide(cache.path());
        assert_eq!(identity(&directory), before, "{what}: whole again");
        assert_eq!(names(cache.path()).len(), 2, "{what}: the directory and its lock");
    }
}

#[test]
fn a_touched_file_is_hashed_once_and_kept() {
    let (cache, small) = (tempfile::tempdir().unwrap(), Small::new());
    let directory = small.provide(cache.path());
    touch(&directory.join("model.safetensors"));
    let model = |directory: &Path| identity(directory)[2];
    let (before, manifest) = (model(&directory), fs::read(directory.join(".manifest.json")).unwrap());
    small.provide(cache.path());
    assert_eq!(model(&directory), before);
    assert_ne!(fs::read(directory.join(".manifest.json")).unwrap(), manifest);
}

#[test]
fn two_at_once_unpack_once() {
    let (cache, small) = (tempfile::tempdir().unwrap(), Small::new());
    let script = Script::default();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let directory = small.archive().provide(cache.path(), &|event| script.hear(event)).unwrap();
                assert_right(&directory);
            });
        }
    });
    assert_eq!(script.lines().iter().filter(|line| line.starts_with("planned")).count(), 1);
}

#[test]
fn what_a_killed_process_left_is_swept() {
    let (cache, small) = (tempfile::tempdir().unwrap(), Small::new());
    fs::create_dir(cache.path().join(".demo-model-killed")).unwrap();
    small.provide(cache.path());
    assert!(!cache.path().join(".demo-model-killed").exists());
}

#[test]
fn an_archive_that_is_not_the_built_in_one_is_refused() {
    let (cache, small) = (tempfile::tempdir().unwrap(), Small::new());
    let mut bytes = small.bytes.clone();
    bytes[100] ^= 1;
    let archive = Archive { bytes: &bytes, ..small.archive() };
    let error = archive.provide(cache.path(), &|_| {}).unwrap_err();
    assert!(matches!(error, Error::DemoDamaged { .. }), "{error}");
    assert_eq!(names(cache.path()).len(), 1, "only the lock");
}

#[test]
fn a_cache_directory_that_cannot_be_made_is_named() {
    let cache = tempfile::tempdir().unwrap();
    let file = cache.path().join("file");
    fs::write(&file, "").unwrap();
    let error = Small::new().archive().provide(&file.join("below"), &|_| {}).unwrap_err();
    assert!(error.to_string().contains(&file.display().to_string()), "{error}");
}

/// Gives a file another time, far enough from now for any file system to notice.
fn touch(path: &Path) {
    let file = File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
}
