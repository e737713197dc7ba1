//! What `cuobjdump` tells of a fatbin.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// A kernel as one GPU runs it.
pub(crate) struct Code {
    pub(crate) file: String,
    pub(crate) kernel: String,
    /// Such as `sm_90a`.
    pub(crate) gpu: String,
    pub(crate) registers: u32,
    pub(crate) stack_bytes: u32,
    pub(crate) shared_bytes: u32,
    pub(crate) local_bytes: u32,
    /// Names with what is behind their dots, such as `HMMA.16816.F32.BF16`.
    pub(crate) instructions: Vec<String>,
}

impl Code {
    /// True where a kernel may begin before the one ahead of it has ended.
    pub(crate) fn waits(&self) -> bool {
        let number = self.gpu.trim_start_matches("sm_").trim_end_matches(char::is_alphabetic);
        number.parse::<u32>().unwrap() >= 90
    }
}

/// All kernels of a fatbin on all its GPUs.
pub(crate) fn read(cuobjdump: &Path, fatbin: &Path) -> Vec<Code> {
    let file = fatbin.file_stem().unwrap().to_str().unwrap().to_owned();
    let mut all = BTreeMap::new();
    let mut gpu = String::new();
    let mut kernel = String::new();
    for line in run(cuobjdump, "--dump-resource-usage", fatbin).lines() {
        let line = line.trim();
        if let Some(found) = line.strip_prefix("arch = ") {
            gpu = found.to_owned();
        } else if let Some(found) = line.strip_prefix("Function ") {
            kernel = found.trim_end_matches(':').to_owned();
        } else if line.starts_with("REG:") {
            let fields: BTreeMap<&str, u32> = line
                .split(' ')
                .filter_map(|field| {
                    let (name, value) = field.split_once(':')?;
                    Some((name, value.parse().ok()?))
                })
                .collect();
            let code = Code {
                file: file.clone(),
                kernel: kernel.clone(),
                gpu: gpu.clone(),
                registers: fields["REG"],
                stack_bytes: fields["STACK"],
                shared_bytes: fields["SHARED"],
                local_bytes: fields["LOCAL"],
                instructions: Vec::new(),
            };
            assert!(all.insert(key(&kernel, &gpu), code).is_none());
        }
    }
    assert!(!all.is_empty(), "{} holds no kernel", fatbin.display());
    for line in run(cuobjdump, "-sass", fatbin).lines() {
        let line = line.trim();
        if let Some(found) = line.strip_prefix("arch = ") {
            gpu = found.to_owned();
        } else if let Some(found) = line.strip_prefix("Function : ") {
            kernel = found.to_owned();
        } else if let Some(name) = instruction(line) {
            all.get_mut(&key(&kernel, &gpu)).unwrap().instructions.push(name.to_owned());
        }
    }
    assert!(all.values().all(|code| !code.instructions.is_empty()));
    all.into_values().collect()
}

/// Sorts by kernel, and GPUs of the same kernel by their number.
fn key(kernel: &str, gpu: &str) -> (String, usize, String) {
    (kernel.to_owned(), gpu.len(), gpu.to_owned())
}

/// The instruction of a line like `/*0040*/ @P0 BRA 0x240 ; /* … */`. What fills
/// up the end of a kernel is none.
fn instruction(line: &str) -> Option<&str> {
    let (place, rest) = line.strip_prefix("/*")?.split_once("*/")?;
    if place.is_empty() || !place.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let mut words = rest.split_whitespace().filter(|word| !word.starts_with('@') && *word != "{");
    words
        .next()
        .map(|word| word.trim_end_matches(';'))
        .filter(|name| *name != "NOP" && !name.starts_with("/*"))
}

fn run(cuobjdump: &Path, option: &str, fatbin: &Path) -> String {
    let output = Command::new(cuobjdump).arg(option).arg(fatbin).output().unwrap();
    assert!(output.status.success(), "{}: {}", fatbin.display(), String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
