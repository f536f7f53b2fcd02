//! The layers of the classifier.

use crate::{C, E, H, M, N, P, affine};
use forge::prelude::*;

/// y = x·w + b, at any two axes.
#[layer]
pub fn linear<In: Axis, Out: Axis>(
    x: Tensor<N, In>,
    #[param(init = xavier)] w: Tensor<In, Out>,
    #[param(init = zeros)] b: Tensor<Out>,
) -> Tensor<N, Out> {
    x.matmul(w) + b
}

/// What a block adds to its input, recorded: the body runs once when the model is linked.
#[layer(trace)]
pub fn feed_forward(x: Tensor<N, H>, #[sub] up: Linear<H, M>, #[sub] down: Linear<M, H>) -> Tensor<N, H> {
    let steps: [&dyn Fn(Tensor) -> Tensor; 3] = [&|x| up.forward(x), &|x| x.gelu(), &|x| down.forward(x)];
    steps.iter().fold(x, |x, step| step(x))
}

/// A residual block; a layer under `cfg_attr`, as a crate with an optional model has it.
#[cfg_attr(all(), layer)]
pub fn block(
    x: Tensor<N, H>,
    /// Added to the variance.
    #[config]
    eps: f64,
    /// Share of the inner result that training drops.
    #[config(default = 0.0)]
    rate: f64,
    /// Without it the block is its inner part alone.
    #[config(default = true)]
    residual: bool,
    #[param(init = ones)] scale: Tensor<H>,
    #[param(init = zeros)] shift: Tensor<H>,
    #[sub] inner: FeedForward,
) -> Tensor<N, H> {
    let centred = x - x.mean(H).over(H);
    let variance = (centred * centred).mean(H);
    let standard = centred * (variance + eps).rsqrt().over(H);
    let normed: Tensor<N, H> = affine(standard, scale, shift);
    let y: Tensor<N, H> = inner.forward(normed);
    let y = y.dropout(rate);
    if residual { x + y } else { y }
}

/// Scores of the classes.
#[layer]
pub fn scorer(
    x: Tensor<N, P>,
    #[sub] stem: Linear<P, H>,
    #[sub] blocks: Repeat<Block, E>,
    #[sub] head: Linear<H, C>,
) -> Tensor<N, C> {
    let mut h: Tensor<N, H> = stem.forward(x);
    for block in blocks {
        h = block.forward(h);
    }
    head.forward(h)
}

/// The block without an operation of its own, so that every device runs it.
#[layer]
pub fn plain_block(
    x: Tensor<N, H>,
    /// Added to the variance.
    #[config]
    eps: f64,
    /// Share of the inner result that training drops.
    #[config(default = 0.0)]
    rate: f64,
    #[param(init = ones)] scale: Tensor<H>,
    #[param(init = zeros)] shift: Tensor<H>,
    #[sub] inner: FeedForward,
) -> Tensor<N, H> {
    let y: Tensor<N, H> = inner.forward(x.layer_norm(scale, shift, eps));
    x + y.dropout(rate)
}

/// Scores of the classes by plain blocks.
#[layer]
pub fn plain_scorer(
    x: Tensor<N, P>,
    #[sub] stem: Linear<P, H>,
    #[sub] blocks: Repeat<PlainBlock, E>,
    #[sub] head: Linear<H, C>,
) -> Tensor<N, C> {
    let mut h: Tensor<N, H> = stem.forward(x);
    for block in blocks {
        h = block.forward(h);
    }
    head.forward(h)
}
