//! A child is given a number and a mask.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// Scales.
#[layer]
pub fn scale(x: Tensor<B, D>, by: Tensor<D>) -> Tensor<B, D> {
    x * by
}

/// Scales twice.
#[layer]
pub fn twice(x: Tensor<B, D>, by: Tensor<D>, #[sub] first: Scale, #[sub] second: Scale) -> Tensor<B, D> {
    //~ K0329 0.5
    let y: Tensor<B, D> = first.forward(x, 0.5);
    //~ K0329 by.gt(0.0)
    let z: Tensor<B, D> = second.forward(x, by.gt(0.0));
    y + z
}
