//! The new order forgets an axis, then names one that is not there.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", H: "heads", K: "head", D: "model" }

/// Heads before positions, and back.
#[layer]
pub fn turn(x: Tensor<B, S, H, K>) -> Tensor<B, S, H, K> {
    //~ K0113 (B, H, S)
    let y = x.permute((B, H, S));
    //~ K0113 D
    let z = x.permute((B, H, S, D));
    (y + z).permute((B, S, H, K))
}
