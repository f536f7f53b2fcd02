//! A mean over positions is taken from every position.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", D: "model" }

/// Every position without the mean of its sequence.
#[layer]
pub fn centre(x: Tensor<B, S, D>) -> Tensor<B, S, D> {
    let m = x.mean(S);
    //~ K0102 m
    x - m
}
