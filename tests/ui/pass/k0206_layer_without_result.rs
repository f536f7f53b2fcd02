//! A layer returns tensors or a loss.

use kiln::prelude::*;

axes! { B: "batch", D: "model", C: "classes" }

/// Scores of the classes.
#[layer]
pub fn scores(x: Tensor<B, D>, #[param(init = xavier)] w: Tensor<D, C>) -> Tensor<B, C> {
    x.matmul(w)
}

/// Loss of a classifier.
#[layer]
pub fn classify(x: Tensor<B, D>, labels: Ids<B>, #[sub] scores: Scores) -> Loss {
    let y: Tensor<B, C> = scores.forward(x);
    y.cross_entropy(labels)
}
