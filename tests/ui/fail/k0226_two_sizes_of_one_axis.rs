//! One axis has two sizes.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// Sizes of a session.
pub fn session() -> kiln::Sizes {
    //~ K0226 B
    sizes! { B = 8, D = 256, B = 16 }
}
