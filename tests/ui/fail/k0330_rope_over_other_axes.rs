//! Positions stand before the heads where the rotation needs them after.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", H: "heads", K: "head" }

/// Turns by position.
#[layer]
pub fn turn(x: Tensor<B, S, H, K>, positions: Rope<S, K>) -> Tensor<B, H, S, K> {
    //~ K0330 positions
    x.rope(positions).permute((B, H, S, K))
}
