//! The methods name the axes.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", D: "model", H: "heads", K: "head" }

/// Takes the heads apart.
#[layer]
pub fn heads(x: Tensor<B, S, D>) -> Tensor<B, H, S, K> {
    let y = x;
    let z = x.silu();
    (x + y + z).split(D, (H, K)).permute((B, H, S, K))
}
