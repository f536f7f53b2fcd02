//! The rate is a share, the epsilon is small.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", D: "model" }

/// RMSNorm with dropout.
#[layer]
pub fn norm(x: Tensor<B, S, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, S, D> {
    let y = x.rms_norm(w, 1e-5);
    x + y.dropout(0.1)
}
