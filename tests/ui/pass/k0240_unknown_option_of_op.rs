//! The options are `sig`, `vjp` and `reference`.

use kiln::prelude::*;

/// y = x², element by element.
#[op(sig = "b d -> b d")]
pub fn square(x: &HostArray) -> HostArray {
    HostArray::new(x.dims.clone(), x.data.iter().map(|x| x * x).collect())
}

/// y = −x.
#[op(sig = "b d -> b d")]
pub fn minus(x: &HostArray) -> HostArray {
    HostArray::new(x.dims.clone(), x.data.iter().map(|x| -x).collect())
}

/// y = 2·x.
#[op(sig = "b -> b")]
pub fn twice(x: &HostArray) -> HostArray {
    HostArray::new(x.dims.clone(), x.data.iter().map(|x| 2.0 * x).collect())
}
