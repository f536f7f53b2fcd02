//! An axis is its name.

use kiln::prelude::*;

/// The axes of the crate.
pub mod names {
    use kiln::prelude::*;

    axes! { B: "batch", D: "model" }
}

use names::{B, D};

/// Scales.
#[layer]
pub fn scale(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, D> {
    x * w
}
