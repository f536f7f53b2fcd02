//! Types without their axes.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", K: "head" }

/// Turns by position.
#[layer]
pub fn turn(
    //~ K0219 Tensor
    x: Tensor,
    //~ K0219 Rope<K>
    rope: Rope<K>,
) -> Tensor<B, S, K> {
    x.rope(rope)
}
