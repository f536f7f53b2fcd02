//! `#[no_fuse]` stands on a `let` that computes nothing.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// Two activations.
#[layer]
pub fn activations(x: Tensor<B, D>) -> Tensor<B, D> {
    //~ K0324 no_fuse
    #[no_fuse]
    let (a, b) = (x.silu(), x.gelu());
    a * b
}
