//! Every axis has its own name.

use kiln::prelude::*;

axes! { B: "batch", D: "model", F: "hidden" }
