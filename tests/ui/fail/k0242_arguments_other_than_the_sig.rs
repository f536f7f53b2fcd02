//! The function takes and returns something else than its `sig` says.

use kiln::prelude::*;

/// Σ w·x along the second axis, and the number of its terms.
#[op(sig = "b d, d -> b, b")]
pub fn weigh(
    //~ K0242 Vec<f32>
    x: Vec<f32>,
    w: &HostArray,
    //~ K0242 scale
    scale: f32,
    //~ K0242 HostArray
) -> HostArray {
    HostArray::zeros([w.dims.len()])
}
