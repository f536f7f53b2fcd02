//! It stands on the operation whose result is stored.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// Two activations.
#[layer]
pub fn activations(x: Tensor<B, D>) -> Tensor<B, D> {
    #[no_fuse]
    let a = x.silu();
    let b = x.gelu();
    a * b
}
