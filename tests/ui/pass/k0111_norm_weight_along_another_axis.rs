//! The weight lies along the normalised axis.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", D: "model" }

/// RMSNorm, then LayerNorm.
#[layer]
pub fn norms(
    x: Tensor<B, S, D>,
    #[param(init = ones)] scale: Tensor<D>,
    #[param(init = ones)] w: Tensor<D>,
    #[param(init = zeros)] b: Tensor<D>,
) -> Tensor<B, S, D> {
    let y = x.rms_norm(scale, 1e-5);
    let z = x.layer_norm(w, b, 1e-5);
    y + z
}
