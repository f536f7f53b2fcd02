//! Queries, keys and values agree.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", D: "model", H: "heads", Q: "query head" }

/// Multi-head attention.
#[layer]
pub fn attention(
    x: Tensor<B, S, D>,
    #[param(init = normal(0.02))] wq: Tensor<D, H, Q>,
    #[param(init = normal(0.02))] wk: Tensor<D, H, Q>,
    #[param(init = normal(0.02))] wv: Tensor<D, H, Q>,
    #[param(init = normal(0.02))] wo: Tensor<H, Q, D>,
) -> Tensor<B, S, D> {
    let q = x.einsum(wq, "b s d, d h q -> b h s q");
    let k = x.einsum(wk, "b s d, d h q -> b h s q");
    let v = x.einsum(wv, "b s d, d h q -> b h s q");
    let y = q.attend(k, v, Causal);
    let z = q.attend(k, v, Full);
    (y + z).einsum(wo, "b h s q, h q d -> b s d")
}
