//! Kernels that are compiled where they run.

use crate::fake::compiled;
use chorale_cuda::{Driver, GpuError, Kernels, Options};
use std::sync::Arc;

const SOURCES: &[(&str, &str)] = &[
    ("rows.cu", "#include \"gpu.cuh\"\nkernel add 16 0 90 256\n"),
    ("linear_sm90.cu", "\nkernel bulk 16 0 90 384\n"),
];
const HEADERS: &[(&str, &str)] = &[("gpu.cuh", "typedef unsigned u32;")];

fn open(sources: &[(&str, &str)], cache: Option<&std::path::Path>) -> Result<Arc<Driver>, GpuError> {
    let kernels = Kernels { fatbins: &[], sources, headers: HEADERS };
    Driver::open(0, &Options { kernels, cache: cache.map(Into::into), with_graphs: true })
}

pub(crate) fn says_that_there_is_no_compiler() {
    match open(SOURCES, None) {
        Ok(_) => eprintln!("skipped: this machine has NVRTC"),
        Err(refused) => {
            assert!(refused.to_string().contains("libnvrtc.so.13 is not found. Install"), "{refused}")
        }
    }
}

pub(crate) fn compiles_at_the_first_start() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("kernels");
    assert_eq!(open(SOURCES, Some(&cache)).unwrap().kernels(), ["add", "bulk"]);
    assert_eq!(compiled(), 2);
    assert_eq!(open(SOURCES, Some(&cache)).unwrap().kernels(), ["add", "bulk"]);
    assert_eq!(compiled(), 2, "the second start compiles nothing");

    // A file that is not what was written is made anew.
    let mut kept: Vec<_> = std::fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().path()).collect();
    kept.sort();
    assert_eq!(kept.len(), 2, "{kept:?}");
    assert!(kept[0].file_name().unwrap().to_str().unwrap().starts_with("linear_sm90-"));
    std::fs::write(&kept[0], "").unwrap();
    open(SOURCES, Some(&cache)).unwrap();
    assert_eq!(compiled(), 3);

    // Another source is another file.
    let changed = [("rows.cu", "// changed\nkernel add 16 0 90 256\n"), SOURCES[1]];
    open(&changed, Some(&cache)).unwrap();
    assert_eq!(compiled(), 4);

    // Where nothing can be kept, each start compiles.
    let unwritable = folder.path().join("file");
    std::fs::write(&unwritable, "").unwrap();
    for cache in [None, Some(unwritable.as_path())] {
        open(SOURCES, cache).unwrap();
    }
    assert_eq!(compiled(), 8);
}

pub(crate) fn says_what_the_compiler_says() {
    let refused = open(&[("rows.cu", "#error no")], None).err().unwrap();
    assert_eq!(
        refused.to_string(),
        "no kernels for this GPU: rows.cu does not compile (error 6): line 1: error: what the compiler says"
    );
}
