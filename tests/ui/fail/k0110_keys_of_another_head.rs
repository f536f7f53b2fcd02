//! Keys and values of a head that the queries do not have.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", D: "model", H: "heads", K: "head", Q: "query head" }

/// Multi-head attention.
#[layer]
pub fn attention(
    x: Tensor<B, S, D>,
    #[param(init = normal(0.02))] wq: Tensor<D, H, Q>,
    #[param(init = normal(0.02))] wk: Tensor<D, H, K>,
    #[param(init = normal(0.02))] wv: Tensor<D, H, K>,
    #[param(init = normal(0.02))] wo: Tensor<H, Q, D>,
) -> Tensor<B, S, D> {
    let q = x.einsum(wq, "b s d, d h q -> b h s q");
    let k = x.einsum(wk, "b s d, d h k -> b h s k");
    let v = x.einsum(wv, "b s d, d h k -> b h s k");
    //~ K0110 k
    let y = q.attend(k, v, Causal);
    //~ K0110 x
    let z = q.attend(k.rename(K, Q), x, Causal);
    (y + z).einsum(wo, "b h s q, h q d -> b s d")
}
