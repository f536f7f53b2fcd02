//! The child is called; losses are added.

use kiln::prelude::*;

axes! { B: "batch", D: "model", C: "classes" }

/// Scales.
#[layer]
pub fn scale(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, D> {
    x * w
}

/// Loss with a penalty.
#[layer]
pub fn classify(x: Tensor<B, D>, labels: Ids<B>, #[param(init = xavier)] w: Tensor<D, C>, #[sub] scale: Scale) -> Loss {
    let y = x + scale.forward(x);
    let loss = x.matmul(w).cross_entropy(labels);
    let root = loss * 0.5;
    y.matmul(w).cross_entropy(labels) + root
}
