//! Children are given tensors and positions over other axes than they take.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", D: "model", K: "head", H: "other head" }

/// Turns by position.
#[layer]
pub fn turn(x: Tensor<B, S, D>, rope: Rope<S, K>, #[param(init = xavier)] w: Tensor<D, K>) -> Tensor<B, S, K> {
    x.matmul(w).rope(rope)
}

/// Calls it with a mean over the positions, and with another head.
#[layer]
pub fn block(
    x: Tensor<B, S, D>,
    rope: Rope<S, H>,
    #[param(init = ones)] norm: Tensor<D>,
    #[sub] first: Turn,
    #[sub] second: Turn,
) -> Tensor<B, S, K> {
    //~ K0501 x.mean(S).rms_norm(norm, 1e-5)
    let y: Tensor<B, S, K> = first.forward(x.mean(S).rms_norm(norm, 1e-5), Rope::new(10_000.0));
    //~ K0501 rope
    let z: Tensor<B, S, K> = second.forward(x, rope);
    y + z
}
