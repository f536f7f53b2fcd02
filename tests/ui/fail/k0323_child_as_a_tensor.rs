//! A child and a loss stand where tensors are needed.

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
    //~ K0323 scale
    let y = x + scale;
    let loss = x.matmul(w).cross_entropy(labels);
    //~ K0323 loss
    let root = loss.sqrt();
    y.matmul(w).cross_entropy(labels) + root
}
