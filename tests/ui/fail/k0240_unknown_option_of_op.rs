//! Options that `#[op]` does not have.

use kiln::prelude::*;

/// y = x², element by element.
//~ K0240 signature
#[op(signature = "b d -> b d")]
pub fn square(x: &HostArray) -> HostArray {
    HostArray::new(x.dims.clone(), x.data.iter().map(|x| x * x).collect())
}

/// y = −x.
#[op]
//~ K0240 minus
pub fn minus(x: &HostArray) -> HostArray {
    HostArray::new(x.dims.clone(), x.data.iter().map(|x| -x).collect())
}

/// y = 2·x.
//~ K0240 "twice_vjp"
#[op(sig = "b -> b", vjp = "twice_vjp")]
pub fn twice(x: &HostArray) -> HostArray {
    HostArray::new(x.dims.clone(), x.data.iter().map(|x| 2.0 * x).collect())
}
