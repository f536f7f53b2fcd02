//! The child takes what it is given.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", D: "model", F: "hidden" }

/// One projection between any two axes.
#[layer]
pub fn linear<In: Axis, Out: Axis>(x: Tensor<B, S, In>, #[param(init = xavier)] w: Tensor<In, Out>) -> Tensor<B, S, Out> {
    x.matmul(w)
}

/// Feed-forward network over any axis.
#[layer]
pub fn mlp<Width: Axis>(x: Tensor<B, S, Width>, #[sub] up: Linear<Width, F>, #[sub] down: Linear<F, Width>) -> Tensor<B, S, Width> {
    let h: Tensor<B, S, F> = up.forward(x);
    down.forward(h.gelu())
}

/// Residual block.
#[layer]
pub fn block(x: Tensor<B, S, D>, #[sub] mlp: Mlp<D>) -> Tensor<B, S, D> {
    x + mlp.forward(x)
}
