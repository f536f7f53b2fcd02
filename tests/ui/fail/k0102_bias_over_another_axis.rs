//! The biases of two projections are swapped.

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
    //~ K0102 b2
    let h = (x.matmul(w1) + b2).relu();
    //~ K0102 b1
    h.matmul(w2) + b1
}
