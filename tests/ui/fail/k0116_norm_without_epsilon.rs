//! Arguments are missing.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", D: "model" }

/// RMSNorm with dropout.
#[layer]
pub fn norm(x: Tensor<B, S, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, S, D> {
    //~ K0116 rms_norm
    let y = x.rms_norm(w);
    //~ K0116 dropout
    y.dropout()
}
