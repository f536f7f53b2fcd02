//! The axes of the caller.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", D: "model", F: "hidden" }

/// One projection between any two axes.
#[layer]
pub fn linear<In: Axis, Out: Axis>(x: Tensor<B, S, In>, #[param(init = xavier)] w: Tensor<In, Out>) -> Tensor<B, S, Out> {
    x.matmul(w)
}

/// Feed-forward network.
#[layer]
pub fn mlp(x: Tensor<B, S, D>, #[sub] up: Linear<D, F>, #[sub] down: Linear<F, D>) -> Tensor<B, S, D> {
    let h: Tensor<B, S, F> = up.forward(x);
    down.forward(h.gelu())
}
