//! A rate in percent, and a negative epsilon.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", D: "model" }

/// RMSNorm with dropout.
#[layer]
pub fn norm(x: Tensor<B, S, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, S, D> {
    //~ K0118 -1e-5
    let y = x.rms_norm(w, -1e-5);
    //~ K0118 10.0
    x + y.dropout(10.0)
}
