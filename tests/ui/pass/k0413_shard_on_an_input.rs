//! Parameters are stored in parts over `data`.

use kiln::prelude::*;

axes! { B: "batch", D: "model", F: "hidden" }

/// One projection.
#[layer]
pub fn project(
    x: Tensor<B, D>,
    #[param(init = xavier)] #[shard(data)] w: Tensor<D, F>,
) -> Tensor<B, F> {
    x.matmul(w)
}
