//! Prefix and sequence have one width.

use kiln::prelude::*;

axes! { B: "batch", P: "prefix", S: "sequence", L: "both", D: "model", F: "hidden" }

/// A learned prefix before the sequence.
#[layer]
pub fn prefixed(x: Tensor<B, S, D>, prefix: Tensor<B, P, D>) -> Tensor<B, L, D> {
    x.concat(prefix, S, P, L)
}
