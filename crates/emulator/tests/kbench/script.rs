//! The script `benches/gpu`, with the tool on an emulated GPU beside it.

use std::fs::{Permissions, create_dir, read_dir, read_to_string, set_permissions, write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use tempfile::TempDir;

pub(crate) const CASES: [(&str, fn()); 4] = [
    ("the_script_keeps_few_files_and_a_digest", few_files),
    ("the_script_says_where_there_is_no_gpu", no_gpu),
    ("the_script_goes_on_after_what_fails", goes_on),
    ("the_script_refuses_what_it_does_not_know", refuses),
];

/// What it writes at most: as many files as some machines give back.
const FILES_MAX: usize = 8;

/// The script in a folder that it may not write to, beside a tool that is asked for a GPU.
struct Carried(TempDir);

impl Carried {
    fn new(device: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../benches/gpu");
        std::fs::copy(script, folder.path().join("gpu")).unwrap();
        let tool = std::env::current_exe().unwrap();
        let text = format!("#!/bin/sh\nexec '{}' kbench --device {device} \"$@\"\n", tool.display());
        write(folder.path().join("kbench"), text).unwrap();
        // Stands for a sanitizer that runs what follows its own options.
        let sanitizer = "#!/bin/sh\n[ \"$1\" = --version ] && exit 0\nwhile [ \"${1#*kbench}\" = \"$1\" ]; do shift; \
                         done\nexec \"$@\"\n";
        create_dir(folder.path().join("bin")).unwrap();
        write(folder.path().join("bin/compute-sanitizer"), sanitizer).unwrap();
        for name in ["gpu", "kbench", "bin/compute-sanitizer"] {
            set_permissions(folder.path().join(name), Permissions::from_mode(0o755)).unwrap();
        }
        Self(folder)
    }

    fn run(&self, results: &Path, words: &str) -> Output {
        let path = format!("{}:/usr/bin:/bin", self.0.path().join("bin").display());
        Command::new(self.0.path().join("gpu"))
            .arg(results)
            .args(words.split_whitespace())
            .env("PATH", path)
            .current_dir("/proc")
            .output()
            .unwrap()
    }
}

fn few_files() {
    let results = tempfile::tempdir().unwrap();
    let output = Carried::new(super::OLD).run(results.path(), "--budget 300 --only primitives");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let mut files: Vec<String> = read_dir(results.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    assert!(files.len() <= FILES_MAX, "{files:?}");
    for name in
        ["bench.json", "check.json", "digest.txt", "log.txt", "machine.txt", "ranks.json", "sanitizer.tar.gz"]
    {
        assert!(files.iter().any(|file| file == name), "{name} is not among {files:?}");
    }
    let at = |word: &str| said.find(word).unwrap_or_else(|| panic!("no {word}:\n{said}"));
    let steps = ["== check,", "== bench,", "== ranks,", "== memcheck,", "== racecheck,", "== synccheck,"];
    assert!(steps.windows(2).all(|pair| at(pair[0]) < at(pair[1])), "{said}");
    assert!(at("== synccheck,") < at("== what matters most"));
    assert!(read_to_string(results.path().join("digest.txt")).unwrap().contains("checks, 0 failed"));
    assert!(read_to_string(results.path().join("log.txt")).unwrap().contains("== what matters most"));
}

fn no_gpu() {
    let results = tempfile::tempdir().unwrap();
    let output = Carried::new(99).run(results.path(), "--budget 60");
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("no CUDA device: there is no GPU 99"), "{said}");
    assert!(said.contains("== there is no GPU here that kbench can use"), "{said}");
}

fn goes_on() {
    let results = tempfile::tempdir().unwrap();
    let words = "--budget 60 --steps check,bench --only primitives --patience 1";
    let output = Carried::new(super::HANGS).run(results.path(), words);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("== check failed (1)") && said.contains("== bench,"), "{said}");
    let digest = read_to_string(results.path().join("digest.txt")).unwrap();
    assert!(digest.contains("FAIL primitives") && digest.contains(super::FATAL), "{digest}");
}

fn refuses() {
    let results = tempfile::tempdir().unwrap();
    let carried = Carried::new(super::OLD);
    for words in ["--budget soon", "--steps benches", "--budget"] {
        assert_eq!(carried.run(results.path(), words).status.code(), Some(2), "{words}");
    }
}
