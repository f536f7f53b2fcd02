//! There is one label per sequence, but a prediction per position.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", D: "model", C: "classes" }

/// Loss of a classifier of sequences.
#[layer]
pub fn classify(x: Tensor<B, S, D>, labels: Ids<B>, #[param(init = xavier)] w: Tensor<D, C>) -> Loss {
    //~ K0112 labels
    x.matmul(w).cross_entropy(labels)
}
