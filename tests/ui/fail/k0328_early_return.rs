//! A body returns in its middle.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// An activation, or none.
#[layer]
pub fn activation(x: Tensor<B, D>, #[config] linear: bool) -> Tensor<B, D> {
    if linear {
        //~ K0328 return
        return x;
    }
    x.silu()
}
