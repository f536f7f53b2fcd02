//! A body returns at its end.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// An activation, or none.
#[layer]
pub fn activation(x: Tensor<B, D>, #[config] linear: bool) -> Tensor<B, D> {
    if linear { x } else { x.silu() }
}
