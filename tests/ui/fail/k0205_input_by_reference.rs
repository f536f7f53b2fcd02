//! Inputs of types that a layer does not take.

use kiln::prelude::*;

axes! { B: "batch", D: "model", F: "hidden" }

/// Two projections.
#[layer]
pub fn project(
    //~ K0205 &Tensor<B, D>
    x: &Tensor<B, D>,
    //~ K0205 Vec<f32>
    bias: Vec<f32>,
    #[param(init = xavier)] w: Tensor<D, F>,
) -> Tensor<B, F> {
    x.matmul(w) + bias
}

/// It has no mistake of its own.
#[layer]
pub fn twice(x: Tensor<B, D>, bias: Tensor<F>, #[sub] first: Project, #[sub] second: Project) -> Tensor<B, F> {
    let a: Tensor<B, F> = first.forward(x, bias);
    a + second.forward(x, bias)
}
