//! Whole training steps on a GPU: the same plan gives the host's losses, norms and weights, and what a device cannot do is a typed error.

mod failures;
mod steps;

use kiln::Sizes;
use kiln::device::Target;
use kiln::prelude::sizes;
use kiln_tests::models::*;
use kiln_tests::skips;
use std::sync::LazyLock;

/// One device for all cases: opening one takes seconds on software drivers.
static WGPU: LazyLock<Option<Target>> = LazyLock::new(|| Target::wgpu().ok());

/// The device, unless this machine has none.
fn wgpu(case: &str) -> Option<Target> {
    let target = skips::no_wgpu().is_none().then(|| WGPU.clone()).flatten();
    if target.is_none() {
        skips::skip(case, "no wgpu device");
    }
    target
}

/// Sizes of no round number.
fn small() -> Sizes {
    sizes! { B = 4, S = 7, D = 12, G = 2, R = 3, K = 6, F = 22, V = 37, L = 2 }
}
