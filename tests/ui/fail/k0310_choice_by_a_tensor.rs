//! A choice on the host depends on a tensor.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// An activation.
#[layer]
pub fn activation(x: Tensor<B, D>, slope: Tensor<D>) -> Tensor<B, D> {
    //~ K0310 x
    if x { x } else { x * slope }
}

/// Another one.
#[layer]
pub fn smooth(x: Tensor<B, D>, #[config] width: f64) -> Tensor<B, D> {
    //~ K0310 width
    match width {
        _ => x.silu(),
    }
}
