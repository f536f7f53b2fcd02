//! A layer is generic over axes only.

use kiln::prelude::*;

axes! { B: "batch", D: "model", F: "hidden" }

/// One projection.
#[layer]
//~ K0215 const N: usize
pub fn linear<In: Axis, const N: usize>(x: Tensor<B, In>, #[param(init = xavier)] w: Tensor<In, F>) -> Tensor<B, F> {
    x.matmul(w)
}

/// Another one.
#[layer]
//~ K0215 T
pub fn biased<T>(x: Tensor<B, D>, #[param(init = zeros)] b: Tensor<D>) -> Tensor<B, D> {
    x + b
}
