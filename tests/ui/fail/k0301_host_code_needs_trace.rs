//! A loop on the host stands in a parsed body.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// Eight times the input.
#[layer]
pub fn eightfold(x: Tensor<B, D>) -> Tensor<B, D> {
    let mut y = x;
    //~ K0301 while
    while y.sum((B, D)).to_vec()[0] < 8.0 {
        y += y;
    }
    y
}
