//! The result goes back to the model axis.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", D: "model", F: "hidden" }

/// One projection.
#[layer]
pub fn up(x: Tensor<B, S, D>, #[param(init = xavier)] w: Tensor<D, F>) -> Tensor<B, S, F> {
    x.matmul(w).gelu()
}

/// Residual block, and the child's value alone.
#[layer]
pub fn block(x: Tensor<B, S, D>, #[param(init = xavier)] down: Tensor<F, D>, #[sub] up: Up) -> Tensor<B, S, D> {
    let y = x + up.forward(x).matmul(down);
    let h: Tensor<B, S, F> = up.forward(y);
    h.matmul(down) + y
}
