//! What kernels may use and must hold: `kernels/budgets.toml`.

use crate::dump::Code;
use std::collections::BTreeSet;
use std::path::Path;
use toml::Table;

/// `pdl_wait()` and `pdl_trigger()`: on GPUs that have them, each kernel begins
/// while the one before it still runs.
const WAITING: [&str; 2] = ["ACQBULK", "PREEXIT"];

/// All rules. Each holds for the kernels that its pattern fits; of two limits
/// the later one counts, and what is needed adds up.
pub(crate) struct Budgets {
    rules: Vec<Rule>,
}

/// What each of some kernels keeps to.
struct Rule {
    /// A kernel's name; a `*` stands for any text.
    kernels: String,
    registers_min: Option<i64>,
    registers_max: Option<i64>,
    instructions_max: Option<i64>,
    /// Beginnings of names of instructions.
    needs: Vec<String>,
}

impl Budgets {
    pub(crate) fn read(path: &Path) -> Self {
        let table: Table = std::fs::read_to_string(path).unwrap().parse().unwrap();
        let rules = table["rule"].as_array().unwrap().iter().map(|rule| {
            let rule = rule.as_table().unwrap();
            let known = ["kernels", "registers_min", "registers_max", "instructions_max", "needs"];
            assert!(rule.keys().all(|key| known.contains(&key.as_str())), "{rule:?}");
            let number = |name: &str| rule.get(name).map(|value| value.as_integer().unwrap());
            let needs = rule.get("needs").map(|value| value.as_array().unwrap().iter());
            Rule {
                kernels: rule["kernels"].as_str().unwrap().to_owned(),
                registers_min: number("registers_min"),
                registers_max: number("registers_max"),
                instructions_max: number("instructions_max"),
                needs: needs.into_iter().flatten().map(|value| value.as_str().unwrap().to_owned()).collect(),
            }
        });
        Self { rules: rules.collect() }
    }

    /// What a kernel does not keep to. No kernel has local memory.
    pub(crate) fn broken_by(&self, code: &Code) -> Vec<String> {
        let mut broken = Vec::new();
        let local = code
            .instructions
            .iter()
            .filter(|name| name.starts_with("LDL") || name.starts_with("STL"))
            .count();
        let fitting = || self.rules.iter().filter(|rule| fits(&rule.kernels, &code.kernel));
        if code.stack_bytes + code.local_bytes > 0 || local > 0 {
            let (stack, bytes) = (code.stack_bytes, code.local_bytes);
            broken
                .push(format!("has {stack} bytes of stack and {bytes} of local memory, used {local} times"));
        }
        let mut limit = |what: &str, value: i64, max: Option<i64>| {
            if let Some(max) = max.filter(|&max| value > max) {
                broken.push(format!("has {value} {what}, at most {max} are allowed"));
            }
        };
        let instructions = code.instructions.len() as i64;
        limit(
            "registers",
            code.registers.into(),
            fitting().filter_map(|rule| rule.registers_max).next_back(),
        );
        limit("instructions", instructions, fitting().filter_map(|rule| rule.instructions_max).next_back());
        let least = fitting().filter_map(|rule| rule.registers_min).next_back();
        if let Some(least) = least.filter(|&least| i64::from(code.registers) < least) {
            let own = code.registers;
            broken.push(format!("has {own} registers, and would wait forever for the rest of {least}"));
        }
        let needed = fitting().flat_map(|rule| &rule.needs).map(String::as_str);
        // Those that show what primitives do end with their launch.
        let is_dependent = code.waits() && !code.kernel.starts_with("selftest_");
        for need in needed.chain(is_dependent.then_some(WAITING).into_iter().flatten()) {
            if !code.instructions.iter().any(|name| name.starts_with(need)) {
                broken.push(format!("has no {need}"));
            }
        }
        broken.extend(early(code).map(|name| format!("has {name} before it waits for the kernel before it")));
        broken
            .into_iter()
            .map(|what| format!("{}.cu: {} on {} {what}", code.file, code.kernel, code.gpu))
            .collect()
    }

    /// Rules that hold for no kernel.
    pub(crate) fn idle(&self, kernels: &BTreeSet<&str>) -> Vec<String> {
        let is_idle = |rule: &&Rule| !kernels.iter().any(|kernel| fits(&rule.kernels, kernel));
        self.rules.iter().filter(is_idle).map(|rule| format!("{:?} fits no kernel", rule.kernels)).collect()
    }
}

/// What touches global memory where the kernel before may still run, and may not:
/// before the wait, a kernel writes nothing, and reads what nobody writes, or past
/// the L1 cache, for only the wait promises that this one holds nothing older.
/// That the code is in this order is as the compiler happens to lay it out.
fn early(code: &Code) -> impl Iterator<Item = &str> {
    let first = code.instructions.iter().position(|name| name.starts_with(WAITING[0])).unwrap_or(0);
    let has_part = |name: &str, part| name.split('.').any(|own| own == part);
    let is_early = move |name: &&String| match name.split('.').next().unwrap_or_default() {
        "LDG" | "LD" => !has_part(name, "STRONG") && !has_part(name, "CONSTANT"),
        "LDGSTS" => !has_part(name, "BYPASS"),
        "STG" | "ST" | "ATOMG" | "ATOM" | "RED" | "REDG" => true,
        _ => false,
    };
    code.instructions[..first].iter().filter(is_early).map(String::as_str)
}

/// True if a pattern fits a name.
fn fits(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(name) = name.strip_prefix(start) else { return false };
    (0..=name.len()).any(|skipped| fits(rest, &name[skipped..]))
}
