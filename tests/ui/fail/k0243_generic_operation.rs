//! Operations that are no plain functions.

use kiln::prelude::*;

/// y = c·x.
#[op(sig = "b d -> b d")]
//~ K0243 const C: usize
pub fn times<const C: usize>(x: &HostArray) -> HostArray {
    HostArray::new(x.dims.clone(), x.data.iter().map(|x| C as f32 * x).collect())
}

/// y = x².
#[op(sig = "b d -> b d")]
//~ K0243 struct
pub struct Square;
