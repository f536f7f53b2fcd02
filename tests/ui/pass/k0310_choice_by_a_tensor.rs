//! A flag chooses on the host, `select` by element.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// An activation.
#[layer]
pub fn activation(x: Tensor<B, D>, slope: Tensor<D>) -> Tensor<B, D> {
    x.ge(0.0).select(x, x * slope)
}

/// Another one.
#[layer]
pub fn smooth(x: Tensor<B, D>, #[config] smooth: bool) -> Tensor<B, D> {
    match smooth {
        true => x.silu(),
        false => x.relu(),
    }
}
