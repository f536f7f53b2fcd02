//! The ui tier: each rule fires on the right token, and only then; renaming every name changes nothing.
//!
//! Each `ui/fail/<code>_<what>.rs` carries `//~ K0101 token` on the line above each mistake (`//~ rustc token` where the mistake is
//! rustc's to report, alone); the file of the same name in `ui/pass` is the corrected code. All cases are examples of one generated crate, checked by one `cargo check`; a second crate holds the same
//! cases with every user's name changed and two lines inserted at the top.

mod cases;
mod check;
mod reference;
mod rename;

use cases::{Case, Kind};
use check::{Diagnostics, diagnose};
use libtest_mimic::{Arguments, Failed, Trial};
use std::sync::{Arc, LazyLock};

/// Codes of the compile-time families that cannot be raised while a crate is checked, with the reason; all others need a failing and
/// a passing case.
const RAISED_LATER: &[(&str, &str)] = &[
    ("K0115", "no method spells `broadcast`: the verifier raises it on IR in text form"),
    ("K0121", "sizes of eager tensors are known when they meet"),
    ("K0122", "values of a host tensor are counted when it is made"),
    ("K0123", "sizes of an eager run are known while it runs"),
    ("K0124", "a reference is compared with its `sig` when it has run"),
    ("K0602", "operations of linked crates meet at start-up"),
    ("K0341", "a traced body is recorded at start-up"),
    ("K0343", "a traced body is recorded at start-up"),
    ("K0344", "a traced body is recorded at start-up"),
    ("K0345", "a traced body is recorded at start-up"),
    ("K0346", "a traced body is recorded at start-up"),
    ("K0347", "a traced body is recorded at start-up"),
];

type Shared = Arc<LazyLock<Result<Diagnostics, String>, Box<dyn FnOnce() -> Result<Diagnostics, String> + Send>>>;

fn main() {
    let arguments = Arguments::from_args();
    let cases = Arc::new(cases::read());
    // One cargo run for all cases, and none if no case is asked for (`--list`).
    let plain = shared(cases.clone(), "ui", |case| case.source.clone());
    let renamed = shared(cases.clone(), "ui-renamed", |case| rename::source(&case.source));

    let mut trials = Vec::new();
    for case in cases.iter() {
        let (this, outcome) = (case.clone(), plain.clone());
        trials.push(trial(case.name(), outcome, move |d| check::case(&this, d)));
        if case.kind == Kind::Fail {
            let (this, outcome) = (case.clone(), renamed.clone());
            trials.push(trial(format!("renamed/{}", case.stem), outcome, move |d| check::renamed(&this, d)));
        }
    }
    for &(code, title) in kiln_compiler::diagnostics::CODES {
        if code < "K07" && RAISED_LATER.iter().all(|(c, _)| *c != code) {
            let cases = cases.clone();
            trials.push(Trial::test(format!("codes/{code}"), move || Ok(check::has_pair(&cases, code, title)?)));
        }
    }
    let (all, outcome) = (cases.clone(), plain.clone());
    trials.push(trial("error_reference_is_current".to_owned(), outcome, move |d| reference::check(&all, d)));
    libtest_mimic::run(&arguments, trials).exit();
}

fn shared(cases: Arc<Vec<Case>>, folder: &'static str, source: fn(&Case) -> String) -> Shared {
    Arc::new(LazyLock::new(Box::new(move || diagnose(&cases, folder, source))))
}

fn trial(
    name: String,
    outcome: Shared,
    check: impl FnOnce(&Diagnostics) -> Result<(), String> + Send + 'static,
) -> Trial {
    Trial::test(name, move || match &**outcome {
        Ok(diagnostics) => Ok(check(diagnostics)?),
        Err(why) => Err(Failed::from(why)),
    })
}
