//! The table is a frozen parameter.

use kiln::prelude::*;

axes! { B: "batch", V: "vocab", D: "model" }

/// Rows of a fixed table.
#[layer]
pub fn look_up(
    ids: Ids<B>,
    #[param(init = normal(1.0))] #[frozen] table: Tensor<V, D>,
) -> Tensor<B, D> {
    table.gather(ids)
}
