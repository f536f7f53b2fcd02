//! Every argument has the axes of the child.

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
    rope: Rope<S, K>,
    #[param(init = ones)] norm: Tensor<D>,
    #[sub] first: Turn,
    #[sub] second: Turn,
) -> Tensor<B, S, K> {
    let y: Tensor<B, S, K> = first.forward(x.rms_norm(norm, 1e-5), Rope::new(10_000.0));
    let z: Tensor<B, S, K> = second.forward(x, rope);
    y + z
}
