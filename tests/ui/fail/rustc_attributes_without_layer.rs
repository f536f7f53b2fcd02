//! Without `#[layer]` the attributes of arguments mean nothing.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// Scales.
pub fn scale(
    x: Tensor,
    //~ rustc param
    #[param(init = ones)] w: Tensor,
    //~ rustc config
    #[config] by: f64,
) -> Tensor {
    x * w * by
}
