//! Groups and heads of each group could be split; in the second layer nothing can.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", D: "model", G: "groups", R: "heads per group", K: "head" }

/// Grouped-query attention.
#[layer]
//~ K0411 tensor
#[shard(tensor)]
pub fn attention(
    x: Tensor<B, S, D>,
    #[param(init = normal(0.02))] wq: Tensor<D, G, R, K>,
    #[param(init = normal(0.02))] wk: Tensor<D, G, K>,
    #[param(init = normal(0.02))] wv: Tensor<D, G, K>,
    #[param(init = normal(0.02))] wo: Tensor<G, R, K, D>,
) -> Tensor<B, S, D> {
    let q = x.einsum(wq, "b s d, d g r k -> b g r s k");
    let k = x.einsum(wk, "b s d, d g k -> b g s k");
    let v = x.einsum(wv, "b s d, d g k -> b g s k");
    q.attend(k, v, Causal).einsum(wo, "b g r s k, g r k d -> b s d")
}

/// Scales.
#[layer]
//~ K0411 tensor
#[shard(tensor)]
pub fn scale(x: Tensor<B, S, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, S, D> {
    x * w
}
