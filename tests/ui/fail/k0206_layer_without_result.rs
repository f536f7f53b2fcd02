//! One layer returns nothing, one a number.

use kiln::prelude::*;

axes! { B: "batch", D: "model", C: "classes" }

/// Scores of the classes.
#[layer]
//~ K0206 scores
pub fn scores(x: Tensor<B, D>, #[param(init = xavier)] w: Tensor<D, C>) {
    x.matmul(w);
}

/// Loss of a classifier.
#[layer]
//~ K0206 f32
pub fn classify(x: Tensor<B, D>, labels: Ids<B>, #[sub] scores: Scores) -> f32 {
    let y: Tensor<B, C> = scores.forward(x);
    y.cross_entropy(labels)
}
