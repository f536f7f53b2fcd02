//! `#[layer(trace)]` takes any Rust.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// Eight times the input.
#[layer(trace)]
pub fn eightfold(x: Tensor<B, D>) -> Tensor<B, D> {
    let mut y = x;
    for _ in 0..3 {
        y += y;
    }
    y
}
