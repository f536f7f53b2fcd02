//! Host values that are no scalars, or have no fitting default.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// Norm, activation, dropout.
#[layer]
pub fn regularise(
    x: Tensor<B, D>,
    #[param(init = ones)] w: Tensor<D>,
    //~ K0213 &str
    #[config] activation: &str,
    //~ K0213 "small"
    #[config(default = "small")] rate: f64,
    //~ K0213 initial
    #[config(initial = 1e-5)] eps: f64,
) -> Tensor<B, D> {
    let h = x.rms_norm(w, eps).dropout(rate);
    if activation { h.silu() } else { h.gelu() }
}
