//! Derivatives that are no operations, or take something else.

use kiln::prelude::*;

/// y = x², element by element.
//~ K0245 square_vjp
#[op(sig = "b d -> b d", vjp = square_vjp)]
pub fn square(x: &HostArray) -> HostArray {
    HostArray::new(x.dims.clone(), x.data.iter().map(|x| x * x).collect())
}

/// It forgets the cotangent.
#[op(sig = "b d -> b d")]
pub fn square_vjp(x: &HostArray) -> HostArray {
    HostArray::new(x.dims.clone(), x.data.iter().map(|x| 2.0 * x).collect())
}

/// y = −x.
//~ K0245 minus_vjp
#[op(sig = "b d -> b d", vjp = minus_vjp)]
pub fn minus(x: &HostArray) -> HostArray {
    HostArray::new(x.dims.clone(), x.data.iter().map(|x| -x).collect())
}

/// It is a plain function.
pub fn minus_vjp(_: &HostArray, dy: &HostArray) -> HostArray {
    minus_of(dy)
}

fn minus_of(x: &HostArray) -> HostArray {
    HostArray::new(x.dims.clone(), x.data.iter().map(|x| -x).collect())
}
