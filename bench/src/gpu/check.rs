//! Every kernel of every registered layer and every library operation on a device, against the f64 interpreter; shared among processes,
//! since compiling takes longer than running.

use super::Result;
use kiln::DType;
use kiln::check::kernels::{EXTENTS, Extents, KernelCase, Trial, cases};
use kiln::check::library;
use kiln::device::Target;
use kiln::device::cube::CubeDevice;
use serde::{Deserialize, Serialize};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What was checked.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Checked {
    /// Kernels of layers.
    pub kernels: usize,
    /// Runs of them: sizes × element types.
    pub trials: usize,
    /// Checks of library operations.
    pub operations: usize,
    /// What failed, with its message.
    pub failures: Vec<String>,
}

/// One of several processes that check together: each takes every `of`-th.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Which.
    pub index: usize,
    /// Of how many.
    pub of: usize,
}

impl Share {
    /// Everything.
    pub const ALL: Share = Share { index: 0, of: 1 };

    /// `2/8`.
    ///
    /// # Errors
    /// What it is not.
    pub fn parse(text: &str) -> std::result::Result<Share, String> {
        let numbers = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match numbers {
            Some((index, of)) if index < of => Ok(Share { index, of }),
            _ => Err(format!("`{text}` is no share such as 2/8")),
        }
    }

    fn takes<T>(self, all: impl IntoIterator<Item = T>) -> impl Iterator<Item = T> {
        all.into_iter().skip(self.index).step_by(self.of)
    }
}

impl std::fmt::Display for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

/// Precisions of layers.
const PRECISIONS: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];
/// Kernels of a dry run.
const QUICK_KERNELS: usize = 4;
/// Library operations of a dry run, by name: the cheapest.
const QUICK_OPERATIONS: [&str; 2] = ["ids are sorted stably", "windows slice, pad and join"];

/// Checks all, or a few.
///
/// # Errors
/// If a layer does not compile; what a kernel does wrong is in the result.
pub fn run(target: &Target, is_quick: bool, share: Share) -> Result<Checked> {
    match target {
        Target::Host => kernels(is_quick, share, |trial, _| trial.on_host().map_err(|e| e.to_string())),
        Target::Gpu(device) => on(device, is_quick, share),
    }
}

fn on(device: &CubeDevice, is_quick: bool, share: Share) -> Result<Checked> {
    let mut checked =
        kernels(is_quick, share, |trial, case| trial.on_device(device, case.emitted).map_err(|e| e.to_string()))?;
    let all = library::checks();
    for (name, check) in share.takes(all.into_iter().filter(|(name, _)| !is_quick || QUICK_OPERATIONS.contains(name))) {
        checked.operations += 1;
        if let Err(why) = guarded(|| check(device).map_err(|e| e.to_string())) {
            checked.fail(format!("{name}: {why}"));
        }
    }
    println!("{} library operations, {} failures in all", checked.operations, checked.failures.len());
    Ok(checked)
}

fn kernels(
    is_quick: bool,
    share: Share,
    run: impl Fn(&Trial, &KernelCase) -> std::result::Result<(), String>,
) -> Result<Checked> {
    let mut checked = Checked::default();
    let cases = cases()?;
    let (n, extents, precisions): (_, &[Extents], _) = match is_quick {
        true => (QUICK_KERNELS, &[Extents::Wide], &PRECISIONS[..1]),
        false => (cases.len(), &EXTENTS, &PRECISIONS[..]),
    };
    for case in share.takes(cases.iter().take(n)) {
        checked.kernels += 1;
        let precisions = if case.has_compute_type() { precisions } else { &PRECISIONS[..1] };
        for &extents in extents {
            for &precision in precisions {
                checked.trials += 1;
                if let Err(why) = guarded(|| run(&case.trial(extents, precision), case)) {
                    checked.fail(format!("{}, {extents:?} in {precision}: {why}", case.layer));
                }
            }
        }
    }
    println!("{} kernels of layers in {} trials, {} failures", checked.kernels, checked.trials, checked.failures.len());
    Ok(checked)
}

impl Checked {
    /// The results of several processes.
    pub fn add(&mut self, other: Checked) {
        self.kernels += other.kernels;
        self.trials += other.trials;
        self.operations += other.operations;
        self.failures.extend(other.failures);
    }

    fn fail(&mut self, why: String) {
        println!("FAILED {why}");
        self.failures.push(why);
    }
}

/// A check that panics has failed; the others still run.
fn guarded(check: impl FnOnce() -> std::result::Result<(), String>) -> std::result::Result<(), String> {
    catch_unwind(AssertUnwindSafe(check)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(format!("panicked: {}", text.unwrap_or("without a message")))
    })
}
