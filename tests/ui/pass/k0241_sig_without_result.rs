//! A `sig` names operands and results.

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
