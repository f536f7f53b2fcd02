//! `.over(S)` says that the mean repeats over the positions.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", D: "model" }

/// Every position without the mean of its sequence.
#[layer]
pub fn centre(x: Tensor<B, S, D>) -> Tensor<B, S, D> {
    let m = x.mean(S);
    x - m.over(S)
}
