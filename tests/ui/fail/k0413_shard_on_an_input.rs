//! Arguments cannot be split in these ways.

use kiln::prelude::*;

axes! { B: "batch", D: "model", F: "hidden" }

/// One projection.
#[layer]
pub fn project(
    //~ K0413 data
    #[shard(data)] x: Tensor<B, D>,
    //~ K0413 tensor
    #[param(init = xavier)] #[shard(tensor = F)] w: Tensor<D, F>,
) -> Tensor<B, F> {
    x.matmul(w)
}
