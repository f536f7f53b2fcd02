//! Operations are plain functions.

use kiln::prelude::*;

/// y = 2·x.
#[op(sig = "b d -> b d")]
pub fn twice(x: &HostArray) -> HostArray {
    HostArray::new(x.dims.clone(), x.data.iter().map(|x| 2.0 * x).collect())
}

/// y = x².
#[op(sig = "b d -> b d")]
pub fn square(x: &HostArray) -> HostArray {
    HostArray::new(x.dims.clone(), x.data.iter().map(|x| x * x).collect())
}
