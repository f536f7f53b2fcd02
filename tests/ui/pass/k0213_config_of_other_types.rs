//! Host values are scalars.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// Norm, activation, dropout.
#[layer]
pub fn regularise(
    x: Tensor<B, D>,
    #[param(init = ones)] w: Tensor<D>,
    #[config] activation: bool,
    #[config(default = 0.1)] rate: f64,
    #[config(default = 1e-5)] eps: f64,
) -> Tensor<B, D> {
    let h = x.rms_norm(w, eps).dropout(rate);
    if activation { h.silu() } else { h.gelu() }
}
