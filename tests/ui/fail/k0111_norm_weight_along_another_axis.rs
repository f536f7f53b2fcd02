//! The weight of a norm has the wrong axis.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", D: "model" }

/// RMSNorm, then LayerNorm.
#[layer]
pub fn norms(
    x: Tensor<B, S, D>,
    #[param(init = ones)] scale: Tensor<S>,
    #[param(init = ones)] w: Tensor<D>,
    #[param(init = zeros)] b: Tensor<S, D>,
) -> Tensor<B, S, D> {
    //~ K0111 scale
    let y = x.rms_norm(scale, 1e-5);
    //~ K0111 b
    let z = x.layer_norm(w, b, 1e-5);
    y + z
}
