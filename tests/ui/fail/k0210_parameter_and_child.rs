//! One argument is a parameter and a child.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// Scales by one value per feature.
#[layer]
pub fn scale(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, D> {
    x * w
}

/// Scales and keeps the input.
#[layer]
//~ K0210 #[sub]
pub fn block(x: Tensor<B, D>, #[param(init = ones)] #[sub] inner: Scale) -> Tensor<B, D> {
    x + inner.forward(x)
}
