//! Models that tests train: a transformer with dropout in every part, and small layers around single questions.
#![allow(missing_docs, reason = "test models")]

use kiln::prelude::*;
use kiln_examples::gpt::Block as ExampleBlock;

axes! {
    B: "batch", S: "sequence", D: "model", G: "groups", R: "heads per group", K: "head", F: "hidden", V: "vocab", L: "layers",
    N: "rows", H: "features", P: "inner", C: "classes",
}

/// Feed-forward part. Split over F it has every kind of operand: columns and rows of matrices, a vector, a statistic over the
/// split axis, a mask.
#[layer]
#[shard(tensor = F)]
pub fn mlp(
    x: Tensor<B, S, D>,
    #[config(default = 0.1)] rate: f64,
    #[param(init = normal(0.15))] gate: Tensor<D, F>,
    #[param(init = normal(0.15))] up: Tensor<D, F>,
    #[param(init = normal(0.15))] bias: Tensor<F>,
    #[param(init = normal(0.15))] down: Tensor<F, D>,
) -> Tensor<B, S, D> {
    let h = (x.matmul(gate) + bias).silu() * x.matmul(up);
    let centred = h - h.mean(F).over(F);
    centred.dropout(rate).matmul(down)
}

/// Attention of normed queries. Split over G its weights `nq` are whole on every rank and meet split queries.
#[layer]
#[shard(tensor = G)]
pub fn attn(
    x: Tensor<B, S, D>,
    rope: Rope<S, K>,
    #[config(default = 0.1)] rate: f64,
    #[param(init = normal(0.15))] wq: Tensor<D, G, R, K>,
    #[param(init = normal(0.15))] wk: Tensor<D, G, K>,
    #[param(init = normal(0.15))] wv: Tensor<D, G, K>,
    #[param(init = uniform(0.5, 1.5))] nq: Tensor<K>,
    #[param(init = normal(0.15))] wo: Tensor<G, R, K, D>,
) -> Tensor<B, S, D> {
    let q = x.einsum(wq, "b s d, d g r k -> b g r s k").rms_norm(nq, 1e-5).rope(rope);
    let k = x.einsum(wk, "b s d, d g k -> b g s k").rope(rope);
    let v = x.einsum(wv, "b s d, d g k -> b g s k");
    q.attend(k, v, Causal).dropout(rate).einsum(wo, "b g r s k, g r k d -> b s d")
}

/// A block that keeps what the session says.
#[layer]
pub fn block(
    x: Tensor<B, S, D>,
    rope: Rope<S, K>,
    #[config(default = 0.1)] rate: f64,
    #[param(init = uniform(0.5, 1.5))] n1: Tensor<D>,
    #[param(init = uniform(0.5, 1.5))] n2: Tensor<D>,
    #[sub] attn: Attn,
    #[sub] mlp: Mlp,
) -> Tensor<B, S, D> {
    let x = x + attn.forward(x.rms_norm(n1, 1e-5), rope).dropout(rate);
    x + mlp.forward(x.rms_norm(n2, 1e-5))
}

#[layer]
pub fn trunk(
    ids: Ids<B, S>,
    #[param(init = normal(1.0))] emb: Tensor<V, D>,
    #[sub] blocks: Repeat<Block, L>,
    #[param(init = uniform(0.5, 1.5))] nf: Tensor<D>,
) -> Tensor<B, S, D> {
    let rope = Rope::new(10_000.0);
    let mut x = emb.gather(ids);
    for block in blocks {
        x = block.forward(x, rope);
    }
    x.rms_norm(nf, 1e-5)
}

/// A GPT with dropout.
#[layer]
pub fn dropped(ids: Ids<B, S>, next: Ids<B, S>, #[sub] trunk: Trunk) -> Loss {
    trunk.forward(ids).linear_cross_entropy(trunk.emb, next)
}

/// The same block, which keeps its inputs alone.
#[layer]
#[checkpoint]
pub fn light_block(
    x: Tensor<B, S, D>,
    rope: Rope<S, K>,
    #[config(default = 0.1)] rate: f64,
    #[param(init = uniform(0.5, 1.5))] n1: Tensor<D>,
    #[param(init = uniform(0.5, 1.5))] n2: Tensor<D>,
    #[sub] attn: Attn,
    #[sub] mlp: Mlp,
) -> Tensor<B, S, D> {
    let x = x + attn.forward(x.rms_norm(n1, 1e-5), rope).dropout(rate);
    x + mlp.forward(x.rms_norm(n2, 1e-5))
}

#[layer]
pub fn light_trunk(
    ids: Ids<B, S>,
    #[param(init = normal(1.0))] emb: Tensor<V, D>,
    #[sub] blocks: Repeat<LightBlock, L>,
    #[param(init = uniform(0.5, 1.5))] nf: Tensor<D>,
) -> Tensor<B, S, D> {
    let rope = Rope::new(10_000.0);
    let mut x = emb.gather(ids);
    for block in blocks {
        x = block.forward(x, rope);
    }
    x.rms_norm(nf, 1e-5)
}

/// The same GPT, whose blocks say `#[checkpoint]`. Its parameters have the same paths, so its masks are the same too.
#[layer]
pub fn light(ids: Ids<B, S>, next: Ids<B, S>, #[sub] trunk: LightTrunk) -> Loss {
    trunk.forward(ids).linear_cross_entropy(trunk.emb, next)
}

/// A matrix and a vector whose gradients a test sets, and a matrix that is not trained.
#[layer]
pub fn pair(
    x: Tensor<N, H>,
    class: Ids<N>,
    #[param(init = ones)] b: Tensor<H>,
    #[frozen]
    #[param(init = xavier)]
    fixed: Tensor<H, P>,
    #[param(init = xavier)] w: Tensor<P, C>,
) -> Loss {
    x.rms_norm(b, 1e-5).matmul(fixed).matmul(w).cross_entropy(class)
}

/// The block of the example, whose result is taken for logits.
#[layer]
pub fn judged(class: Ids<B, S>, #[param(init = normal(1.0))] x: Tensor<B, S, D>, #[sub] block: ExampleBlock) -> Loss {
    let y: Tensor<B, S, D> = block.forward(x, Rope::new(10_000.0));
    y.cross_entropy(class)
}

/// The result of the same block.
#[layer]
pub fn shown(x: Tensor<B, S, D>, #[sub] block: ExampleBlock) -> Tensor<B, S, D> {
    block.forward(x, Rope::new(10_000.0))
}
