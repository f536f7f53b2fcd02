//! The same computation from the operations of the language.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// Powers of the input.
#[layer]
pub fn powers(x: Tensor<B, D>) -> Tensor<B, D> {
    let mut y = x * x;
    y = y * y;
    y = y * y;
    y * y
}
