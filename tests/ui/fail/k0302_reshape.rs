//! Methods of other libraries.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", D: "model", H: "heads", K: "head" }

/// Takes the heads apart.
#[layer]
pub fn heads(x: Tensor<B, S, D>) -> Tensor<B, H, S, K> {
    //~ K0302 clone
    let y = x.clone();
    //~ K0302 sliu
    let z = x.sliu();
    //~ K0302 reshape
    (x + y + z).reshape((8, 16, 4, 32)).permute((B, H, S, K))
}
