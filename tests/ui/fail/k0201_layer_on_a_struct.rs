//! A layer is written as a struct.

use kiln::prelude::*;

axes! { B: "batch", D: "model", F: "hidden" }

/// One projection.
#[layer]
//~ K0201 struct
pub struct Project {
    /// Its weight.
    pub w: Vec<f32>,
}
