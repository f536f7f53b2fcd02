//! An axis is split into no axes.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", D: "model", H: "heads", K: "head" }

/// Takes the heads apart.
#[layer]
pub fn heads(x: Tensor<B, S, D>) -> Tensor<B, S, H, K> {
    //~ K0117 ()
    x.split(D, ())
}
