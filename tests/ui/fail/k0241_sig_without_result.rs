//! A `sig` without results, and one with a label from nowhere.

use kiln::prelude::*;

/// y = x², element by element.
//~ K0241 "b d"
#[op(sig = "b d")]
pub fn square(x: &HostArray) -> HostArray {
    HostArray::new(x.dims.clone(), x.data.iter().map(|x| x * x).collect())
}

/// y = −x.
//~ K0241 "b d -> b k"
#[op(sig = "b d -> b k")]
pub fn minus(x: &HostArray) -> HostArray {
    HostArray::new(x.dims.clone(), x.data.iter().map(|x| -x).collect())
}
