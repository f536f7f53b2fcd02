//! Two axes of one name.

use kiln::prelude::*;

//~ K0224 D
axes! { B: "batch", D: "model", D: "hidden" }
