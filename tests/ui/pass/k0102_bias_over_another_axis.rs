//! Each bias lies along the axis that its projection gives.

use kiln::prelude::*;

axes! { B: "batch", D: "pixels", H: "hidden", C: "classes" }

/// A perceptron with one hidden layer.
#[layer]
pub fn perceptron(
    x: Tensor<B, D>,
    #[param(init = kaiming)] w1: Tensor<D, H>,
    #[param(init = zeros)] b1: Tensor<H>,
    #[param(init = kaiming)] w2: Tensor<H, C>,
    #[param(init = zeros)] b2: Tensor<C>,
) -> Tensor<B, C> {
    let h = (x.matmul(w1) + b1).relu();
    h.matmul(w2) + b2
}
