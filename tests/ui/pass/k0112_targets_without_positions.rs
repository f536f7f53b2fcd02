//! There is one prediction per sequence.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", D: "model", C: "classes" }

/// Loss of a classifier of sequences.
#[layer]
pub fn classify(x: Tensor<B, S, D>, labels: Ids<B>, #[param(init = xavier)] w: Tensor<D, C>) -> Loss {
    x.mean(S).matmul(w).cross_entropy(labels)
}
