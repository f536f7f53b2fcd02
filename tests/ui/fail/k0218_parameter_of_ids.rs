//! A parameter of ids cannot be trained.

use kiln::prelude::*;

axes! { B: "batch", V: "vocab", D: "model" }

/// Rows of a table.
#[layer]
pub fn look_up(
    //~ K0218 Ids<B>
    #[param(init = zeros)] ids: Ids<B>,
    //~ K0218 f32
    #[param(init = ones)] scale: f32,
    #[param(init = normal(0.02))] table: Tensor<V, D>,
) -> Tensor<B, D> {
    table.gather(ids) * scale
}
