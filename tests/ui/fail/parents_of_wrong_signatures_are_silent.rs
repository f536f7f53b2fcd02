//! Inputs, results and children of wrong types; the parents say nothing.

use kiln::prelude::*;

axes! { B: "batch", D: "model", F: "hidden" }

/// It returns an optional tensor.
#[layer]
//~ K0206 Option<Tensor<B, F>>
pub fn up(x: Tensor<B, D>, #[param(init = xavier)] w: Tensor<D, F>) -> Option<Tensor<B, F>> {
    x.matmul(w)
}

/// It takes a slice.
#[layer]
pub fn down(
    //~ K0205 &[Tensor<B, F>]
    h: &[Tensor<B, F>],
    //~ K0213 [f64; 2]
    #[config] range: [f64; 2],
    #[param(init = xavier)] w: Tensor<F, D>,
) -> Tensor<B, D> {
    h.matmul(w)
}

/// Feed-forward network.
#[layer]
pub fn mlp(x: Tensor<B, D>, #[sub] up: Up, #[sub] down: Down) -> Tensor<B, D> {
    let h: Tensor<B, F> = up.forward(x);
    x + down.forward(h.gelu()) + h.matmul(down.w)
}
