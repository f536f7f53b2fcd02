//! Instruction counts of fixed work of the host device: callgrind counts each case of `counted`, and the number is that of the golden table
//! within 5 %, up or down. Wall times decide nothing.
//!
//! `cargo xtask test --tier counts` installs valgrind and builds `counted`; with `BLESS=1` it rewrites the table.

use kiln_bench::host::counted;
use kiln_tests::{folders, skips, snapshot};
use libtest_mimic::{Arguments, Failed, Trial};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::{env, fs};

/// How far a count may be from the table's, as a part of it. Two compilers differ by less in loops of vectors; one more pass over an
/// operand, or a copy that was saved, is more.
const SLACK: f64 = 0.05;

/// The function whose instructions count, and all that it calls.
const REGION: &str = "--toggle-collect=*counted_region*";

/// What was counted in this run, for blessing.
static COUNTED: Mutex<BTreeMap<&str, u64>> = Mutex::new(BTreeMap::new());

fn main() {
    let arguments = Arguments::from_args();
    let cases = counted::names().map(|name| Trial::test(format!("{name}_counted"), move || case(name)));
    let whole = Trial::test("every_line_of_the_table_is_a_case", every_line_is_a_case);
    let conclusion = libtest_mimic::run(&arguments, cases.chain([whole]).collect());
    if snapshot::blessing() {
        bless();
    }
    conclusion.exit();
}

fn case(name: &'static str) -> Result<(), Failed> {
    let program = match program() {
        Ok(program) => program,
        Err(reason) => {
            skips::skip(name, &reason);
            return Ok(());
        }
    };
    let actual = count(&program, name)?;
    if snapshot::blessing() {
        COUNTED.lock()?.insert(name, actual);
        return Ok(());
    }
    let expected = table()?.get(name).copied();
    Ok(compare(name, expected, actual)?)
}

fn every_line_is_a_case() -> Result<(), Failed> {
    let known: Vec<&str> = counted::names().collect();
    match table()?.keys().find(|line| !known.contains(&line.as_str())) {
        Some(line) if !snapshot::blessing() => {
            Err(format!("`{line}` is no case of `counted` (BLESS=1 rewrites)").into())
        }
        _ => Ok(()),
    }
}

/// `counted` in release mode, or why nothing can be counted here.
fn program() -> Result<PathBuf, String> {
    #[cfg(target_arch = "x86_64")]
    let has_v3 =
        is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
    #[cfg(not(target_arch = "x86_64"))]
    let has_v3 = false;
    if !has_v3 {
        return Err("the processor has no AVX2, and instructions are counted for x86-64-v3".to_owned());
    }
    let absent = || "no `counted`: `cargo xtask test --tier counts` builds it".to_owned();
    let program = env::var_os("KILN_COUNTED").map(PathBuf::from);
    program.ok_or_else(|| env::var("KILN_NO_VALGRIND").unwrap_or_else(|_| absent()))
}

/// Instructions inside of the region.
fn count(program: &Path, name: &str) -> Result<u64, Failed> {
    let folder = tempfile::tempdir()?;
    let mut callgrind = Command::new("valgrind");
    callgrind.args(["--tool=callgrind", REGION]);
    callgrind.arg(format!("--callgrind-out-file={}", folder.path().join("profile").display()));
    callgrind.arg(program).arg(name).env("KILN_CPU", "x86-64-v3");
    let output = callgrind.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("valgrind ended with {}:\n{said}", output.status).into());
    }
    match collected(&said) {
        Some(n) if n > 0 => Ok(n),
        _ => Err(format!("callgrind collected nothing in `counted_region`:\n{said}").into()),
    }
}

/// The number in `==1== Collected : 28075110`.
fn collected(said: &str) -> Option<u64> {
    said.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok())
}

/// The error says how far a count is from the table's.
fn compare(name: &str, expected: Option<u64>, actual: u64) -> Result<(), String> {
    let bless = "`BLESS=1 cargo xtask test --tier counts` rewrites the table";
    let Some(expected) = expected else { return Err(format!("`{name}` is not in the table; {bless}")) };
    let off = actual as f64 / expected as f64 - 1.0;
    let numbers = format!("{actual} instructions, {:+.1} % beside {expected}", 100.0 * off);
    match () {
        () if off > SLACK => Err(format!("`{name}` got slower: {numbers}; if that must be, {bless}")),
        () if off < -SLACK => Err(format!("`{name}` got faster: {numbers}; so that it stays so, {bless}")),
        () => Ok(()),
    }
}

/// Lines of a name and a number.
fn table() -> Result<BTreeMap<String, u64>, String> {
    let path = table_file();
    let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let line = |line: &str| {
        let (name, n) = line.split_once(' ').ok_or_else(|| format!("`{line}` is no name and number"))?;
        Ok((name.to_owned(), n.trim().parse().map_err(|_| format!("`{n}` is no number"))?))
    };
    text.lines().map(line).collect()
}

fn table_file() -> PathBuf {
    folders::root().join("tests/golden/counts.txt")
}

/// Writes what was counted; cases that were not keep their lines.
fn bless() {
    let counted = COUNTED.lock().expect("no case panics with the lock");
    let old = table().unwrap_or_default();
    let mut text = String::new();
    for name in counted::names() {
        if let Some(n) = counted.get(name).or(old.get(name)) {
            writeln!(text, "{name:<20} {n:>12}").expect("a string takes all");
        }
    }
    snapshot::check(&table_file(), &text).expect("the table can be written");
}
