//! A GPT over bytes: rotary positions, grouped queries, RMSNorm before each part, SwiGLU; the head is a matrix of its own, or the embedding.

// ANCHOR: model
use kiln::prelude::*;

axes! { B: "batch", S: "sequence", D: "model", G: "groups", R: "heads per group", K: "head", F: "hidden", V: "vocab", L: "layers" }

// ANCHOR: swiglu
/// SwiGLU feed-forward network (Shazeer 2020, arXiv 2002.05202).
#[layer]
#[shard(tensor)]
pub fn swiglu(
    x: Tensor<B, S, D>,
    #[param(init = normal(0.02))] gate: Tensor<D, F>,
    #[param(init = normal(0.02))] up: Tensor<D, F>,
    #[param(init = normal(0.02))] down: Tensor<F, D>,
) -> Tensor<B, S, D> {
    let h = x.matmul(gate).silu() * x.matmul(up);
    h.matmul(down)
}
// ANCHOR_END: swiglu

/// Grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245): G key/value groups, R query heads in each.
#[layer]
#[shard(tensor = G)]
pub fn attention(
    x: Tensor<B, S, D>,
    rope: Rope<S, K>,
    #[param(init = normal(0.02))] wq: Tensor<D, G, R, K>,
    #[param(init = normal(0.02))] wk: Tensor<D, G, K>,
    #[param(init = normal(0.02))] wv: Tensor<D, G, K>,
    #[param(init = normal(0.02))] wo: Tensor<G, R, K, D>,
) -> Tensor<B, S, D> {
    let q = x.einsum(wq, "b s d, d g r k -> b g r s k").rope(rope);
    let k = x.einsum(wk, "b s d, d g k -> b g s k").rope(rope);
    let v = x.einsum(wv, "b s d, d g k -> b g s k");
    q.attend(k, v, Causal).einsum(wo, "b g r s k, g r k d -> b s d")
}

/// Pre-norm transformer block; what it keeps and computes in comes from the session.
#[layer]
pub fn block(
    x: Tensor<B, S, D>,
    rope: Rope<S, K>,
    #[param(init = ones)] n1: Tensor<D>,
    #[param(init = ones)] n2: Tensor<D>,
    #[sub] attn: Attention,
    #[sub] mlp: Swiglu,
) -> Tensor<B, S, D> {
    let x = x + attn.forward(x.rms_norm(n1, 1e-5), rope);
    x + mlp.forward(x.rms_norm(n2, 1e-5))
}

/// Embedding, blocks and final norm: shared by the training and the generating root.
#[layer]
pub fn trunk(
    ids: Ids<B, S>,
    #[param(init = normal(0.02))] emb: Tensor<V, D>,
    #[sub] blocks: Repeat<Block, L>,
    #[param(init = ones)] nf: Tensor<D>,
) -> Tensor<B, S, D> {
    let rope = Rope::new(10_000.0);
    let mut x = emb.gather(ids);
    for block in blocks {
        x = block.forward(x, rope);
    }
    x.rms_norm(nf, 1e-5)
}

/// Training root: its output is the loss.
#[layer]
pub fn gpt(
    ids: Ids<B, S>,
    next: Ids<B, S>,
    #[sub] trunk: Trunk,
    #[param(init = normal(0.02))] head: Tensor<V, D>,
) -> Loss {
    trunk.forward(ids).linear_cross_entropy(head, next)
}

/// Generating root over the same state.
#[layer]
pub fn gpt_logits(
    ids: Ids<B, S>,
    #[sub] trunk: Trunk,
    #[param(init = normal(0.02))] head: Tensor<V, D>,
) -> Tensor<B, S, V> {
    trunk.forward(ids).einsum(head, "b s d, v d -> b s v")
}
// ANCHOR_END: model

// ANCHOR: tied
/// Training root whose head is the embedding: `trunk.emb` reads the child's parameter (tied weights).
#[layer]
pub fn gpt_tied(ids: Ids<B, S>, next: Ids<B, S>, #[sub] trunk: Trunk) -> Loss {
    trunk.forward(ids).linear_cross_entropy(trunk.emb, next)
}
// ANCHOR_END: tied
