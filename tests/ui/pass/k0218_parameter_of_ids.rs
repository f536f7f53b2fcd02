//! Ids are an input, the parameter is a tensor.

use kiln::prelude::*;

axes! { B: "batch", V: "vocab", D: "model" }

/// Rows of a table.
#[layer]
pub fn look_up(
    ids: Ids<B>,
    #[param(init = ones)] scale: Tensor<D>,
    #[param(init = normal(0.02))] table: Tensor<V, D>,
) -> Tensor<B, D> {
    table.gather(ids) * scale
}
