//! The equivalence tier: annotations, ranks, micro-batches and threads change what a step costs, never what it means.

mod batches;
mod checkpoint;
mod fusion;
mod overflow;
mod poison;
mod ranks;
mod reference;

use kiln::Sizes;
use kiln::prelude::sizes;
use kiln_tests::models::*;

/// Sizes of which none is a multiple of 32 and every split of two has odd halves.
fn small() -> Sizes {
    sizes! { B = 4, S = 7, D = 12, G = 2, R = 3, K = 6, F = 22, V = 37, L = 2 }
}
