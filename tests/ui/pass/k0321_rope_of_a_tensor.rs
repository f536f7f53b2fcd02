//! The base is a number.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", K: "head" }

/// Turns by position.
#[layer]
pub fn turn(x: Tensor<B, S, K>) -> Tensor<B, S, K> {
    let rope = Rope::new(10_000.0);
    x.rope(rope)
}
