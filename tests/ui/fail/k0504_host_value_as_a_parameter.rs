//! A host value of a child is read like a parameter.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// Scales.
#[layer]
pub fn scale(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>, #[config] factor: f64) -> Tensor<B, D> {
    x * w * factor
}

/// Scales and keeps a share of the input.
#[layer]
pub fn block(x: Tensor<B, D>, #[sub] inner: Scale) -> Tensor<B, D> {
    //~ K0504 inner.factor
    x * inner.factor + inner.forward(x)
}
