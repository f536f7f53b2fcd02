//! A size is written like a description.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// Sizes of a session.
pub fn session() -> kiln::Sizes {
    //~ K0225 :
    sizes! { B: 8, D = 256 }
}
