//! An axis is imported under another name.

use kiln::prelude::*;

/// The axes of the crate.
pub mod names {
    use kiln::prelude::*;

    axes! { B: "batch", D: "model" }
}

use names::{B, D as Width};

/// Scales.
#[layer]
//~ K0506 Width
pub fn scale(x: Tensor<B, Width>, #[param(init = ones)] w: Tensor<Width>) -> Tensor<B, Width> {
    x * w
}
