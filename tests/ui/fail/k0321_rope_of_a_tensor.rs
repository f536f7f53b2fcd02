//! The base of rotary positions is a tensor.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", K: "head" }

/// Turns by position.
#[layer]
pub fn turn(x: Tensor<B, S, K>) -> Tensor<B, S, K> {
    //~ K0321 x
    let rope = Rope::new(x);
    x.rope(rope)
}
