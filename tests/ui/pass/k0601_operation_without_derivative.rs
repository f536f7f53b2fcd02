//! The operation has a derivative, or no gradient passes.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// The larger of x and 0 without a derivative.
#[op(sig = "b d -> b d")]
pub fn clip(x: &HostArray) -> HostArray {
    HostArray::new(x.dims.clone(), x.data.iter().map(|x| x.max(0.0)).collect())
}

/// Scales what was clipped.
#[layer]
pub fn block(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, D> {
    let y: Tensor<B, D> = clip(stop_gradient(x)) * w;
    y
}
