//! A prefix of another width is put before the sequence.

use kiln::prelude::*;

axes! { B: "batch", P: "prefix", S: "sequence", L: "both", D: "model", F: "hidden" }

/// A learned prefix before the sequence.
#[layer]
pub fn prefixed(x: Tensor<B, S, D>, prefix: Tensor<B, P, F>) -> Tensor<B, L, D> {
    //~ K0119 prefix
    x.concat(prefix, S, P, L)
}
