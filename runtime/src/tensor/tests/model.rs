//! The model of the language's first page, and numbers for it.

#![allow(missing_docs, reason = "test model")]

use crate::prelude::*;

axes! { B: "batch", S: "sequence", D: "model", G: "groups", R: "heads per group", K: "head", F: "hidden", V: "vocab", L: "layers", T: "keys", D2: "model again" }

#[layer]
pub fn swiglu(
    x: Tensor<B, S, D>,
    #[param(init = normal(0.02))] gate: Tensor<D, F>,
    #[param(init = normal(0.02))] up: Tensor<D, F>,
    #[param(init = normal(0.02))] down: Tensor<F, D>,
) -> Tensor<B, S, D> {
    let h = x.matmul(gate).silu() * x.matmul(up);
    h.matmul(down)
}

#[layer]
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

#[layer]
#[checkpoint]
#[precision(bf16)]
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

#[layer]
pub fn gpt(ids: Ids<B, S>, next: Ids<B, S>, #[sub] trunk: Trunk) -> Loss {
    trunk.forward(ids).linear_cross_entropy(trunk.emb, next)
}

#[layer]
pub fn gpt_logits(ids: Ids<B, S>, #[sub] trunk: Trunk) -> Tensor<B, S, V> {
    trunk.forward(ids).einsum(trunk.emb, "b s d, v d -> b s v")
}

/// Every kind of argument of a method once.
#[layer]
pub fn methods(
    x: Tensor<B, S, D>,
    rope: Rope<S, D>,
    #[config(default = 0.5)] scale: f64,
    #[config(default = 0.1)] rate: f64,
    #[param(init = ones)] w: Tensor<D>,
    #[param(init = zeros)] b: Tensor<D>,
) -> Tensor<B, S, D> {
    let y = (2.0 * x - 1.0) / (x.abs() + 1.5) + b;
    let centred = y - y.mean(D).over(D);
    let mut z = centred.layer_norm(w, b, 1e-5).dropout(0.25);
    z += x.gt(0.0).select(x.maximum(y), -1.0) * w;
    z -= z.softmax(D).dropout(rate) * scale;
    let heads = z.split(D, (G, K)).permute((B, G, S, K));
    let joined = heads.permute((B, S, G, K)).merge((G, K), D);
    let keys = joined.rename(S, T);
    let a = joined.rope(rope).attend(keys, keys, Full).f32();
    (-a).exp().minimum(stop_gradient(x)).log_softmax(D).gelu() + (x * x).sum((S, D)).over((S, D))
}

/// Losses added and scaled.
#[layer]
pub fn two_losses(x: Tensor<B, D>, y: Ids<B>, #[param(init = xavier)] w: Tensor<D, V>) -> Loss {
    let logits = x.matmul(w);
    logits.cross_entropy(y) + logits.tanh().cross_entropy(y) * 0.1 / 2.0
}

/// Numbers in [−1, 1) from a counter, the same everywhere.
pub fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let word = |i: u64| (seed * 1_000_003 + i).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
    (0..n as u64).map(|i| word(i) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// A host tensor of such numbers.
pub fn tensor(dims: &[usize], seed: u64) -> Tensor {
    Tensor::new(dims, numbers(dims.iter().product(), seed))
}

/// A matrix product at any axes.
#[layer]
pub fn linear<In: Axis, Out: Axis>(x: Tensor<B, In>, #[param(init = xavier)] w: Tensor<In, Out>) -> Tensor<B, Out> {
    x.matmul(w)
}

/// Host choices, one of them inside a loop, with random operations in and after the branches.
#[layer]
pub fn switched(
    x: Tensor<B, D>,
    #[config] wide: bool,
    #[config(default = true)] deep: bool,
    #[sub] steps: Repeat<Linear<D, D2>, L>,
    #[param(init = ones)] w: Tensor<D>,
) -> Tensor<B, D> {
    let mut y = if wide { x.dropout(0.5) * w } else { x };
    for step in steps {
        let h: Tensor<B, D2> = step.forward(y);
        y = if deep { h.dropout(0.25).rename(D2, D) + y } else { h.rename(D2, D) };
    }
    match wide {
        true => y += w,
        false => y -= w,
    }
    y.dropout(0.1)
}

/// A generic child at two pairs of axes.
#[layer]
pub fn perceptron(x: Tensor<B, D>, #[sub] up: Linear<D, F>, #[sub] down: Linear<F, D>) -> Tensor<B, D> {
    let h: Tensor<B, F> = up.forward(x);
    let y: Tensor<B, D> = down.forward(h.relu());
    y + x
}

/// Any Rust: recorded when the model is linked.
#[layer(trace)]
pub fn powers(x: Tensor<B, D>, #[config(default = 3)] n: i64, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, D> {
    let terms: Vec<Tensor> = (1..=n)
        .scan(x, |p, _| {
            *p *= x;
            Some(*p)
        })
        .collect();
    terms.into_iter().rev().fold(x, |sum, term| sum * w + term)
}
