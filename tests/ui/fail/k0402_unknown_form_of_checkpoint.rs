//! Forms of `#[checkpoint]` that do not exist.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// Scales.
#[layer]
//~ K0402 allways
#[checkpoint(allways)]
pub fn scale(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, D> {
    x * w
}

/// Shifts.
#[layer]
//~ K0402 offload
#[checkpoint(never, offload)]
pub fn shift(x: Tensor<B, D>, #[param(init = zeros)] b: Tensor<D>) -> Tensor<B, D> {
    x + b
}

/// Scales and shifts.
#[layer]
//~ K0402 x * w
#[checkpoint(save = [x * w])]
pub fn affine(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>, #[param(init = zeros)] b: Tensor<D>) -> Tensor<B, D> {
    let y = x * w;
    y + b
}
