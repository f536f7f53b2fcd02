//! Another axis is split.

use kiln::prelude::*;

axes! { B: "batch", D: "model", E: "experts", F: "hidden" }

/// A mixture of projections.
#[layer]
#[shard(tensor = F)]
pub fn mixture(
    x: Tensor<B, D>,
    #[param(init = xavier)] router: Tensor<D, E>,
    #[param(init = xavier)] up: Tensor<D, E, F>,
    #[param(init = xavier)] down: Tensor<E, F, D>,
) -> Tensor<B, D> {
    let weights = x.matmul(router).softmax(E);
    let h = x.matmul(up).gelu() * weights.over(F);
    h.einsum(down, "b e f, e f d -> b d")
}
