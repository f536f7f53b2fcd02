//! An axis is declared like a variable.

use kiln::prelude::*;

//~ K0223 =
axes! { B = "batch", D: "model" }
