//! Sizes of a session.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// Sizes of a session.
pub fn session() -> kiln::Sizes {
    sizes! { B = 8, D = 256 }
}
