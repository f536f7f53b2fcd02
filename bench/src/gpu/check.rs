//! Every kernel of every registered layer and every library operation on a device, against the f64 interpreter.

use super::Result;
use kiln::DType;
use kiln::check::kernels::{EXTENTS, Extents, KernelCase, Trial, cases};
use kiln::check::library;
use kiln::device::Target;
use kiln::device::cube::{CubeDevice, Runtime};
use serde::Serialize;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What was checked.
#[derive(Debug, Default, Serialize)]
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
pub fn run(target: &Target, is_quick: bool) -> Result<Checked> {
    match target {
        Target::Host => kernels(is_quick, |trial, _| trial.on_host().map_err(|e| e.to_string())),
        Target::Wgpu(device) => on(device, is_quick),
        #[cfg(feature = "cuda")]
        Target::Cuda(device) => on(device, is_quick),
    }
}

fn on<R: Runtime>(device: &CubeDevice<R>, is_quick: bool) -> Result<Checked> {
    let mut checked =
        kernels(is_quick, |trial, case| trial.on_device(device, case.emitted).map_err(|e| e.to_string()))?;
    let all = library::checks::<R>();
    for (name, check) in all.into_iter().filter(|(name, _)| !is_quick || QUICK_OPERATIONS.contains(name)) {
        checked.operations += 1;
        if let Err(why) = guarded(|| check(device).map_err(|e| e.to_string())) {
            checked.fail(format!("{name}: {why}"));
        }
    }
    println!("{} library operations, {} failures in all", checked.operations, checked.failures.len());
    Ok(checked)
}

fn kernels(is_quick: bool, run: impl Fn(&Trial, &KernelCase) -> std::result::Result<(), String>) -> Result<Checked> {
    let mut checked = Checked::default();
    let cases = cases()?;
    let (n, extents, precisions): (_, &[Extents], _) = match is_quick {
        true => (QUICK_KERNELS, &[Extents::Wide], &PRECISIONS[..1]),
        false => (cases.len(), &EXTENTS, &PRECISIONS[..]),
    };
    for case in cases.iter().take(n) {
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
