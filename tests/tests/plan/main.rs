//! The plan tier: everything is decided, checked and shown before anything is allocated, and what runs is the plan.

mod explained;
mod refused;
mod schedule;
mod sizes;

use kiln::Sizes;
use kiln::prelude::sizes;
use kiln_tests::models::*;

/// Sizes that every model of these tests takes.
fn small() -> Sizes {
    sizes! { B = 4, S = 7, D = 12, G = 2, R = 3, K = 6, F = 22, V = 37, L = 2 }
}
