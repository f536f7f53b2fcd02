//! Only a parameter can be frozen.

use kiln::prelude::*;

axes! { B: "batch", V: "vocab", D: "model" }

/// Rows of a fixed table.
#[layer]
pub fn look_up(
    ids: Ids<B>,
    //~ K0209 #[frozen]
    #[frozen] table: Tensor<V, D>,
) -> Tensor<B, D> {
    table.gather(ids)
}
