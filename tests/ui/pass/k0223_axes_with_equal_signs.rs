//! An axis has a name and a description.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }
