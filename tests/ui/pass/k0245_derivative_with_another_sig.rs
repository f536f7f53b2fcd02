//! A derivative takes operands and cotangents.

use kiln::prelude::*;

/// y = x², element by element.
#[op(sig = "b d -> b d", vjp = square_vjp)]
pub fn square(x: &HostArray) -> HostArray {
    HostArray::new(x.dims.clone(), x.data.iter().map(|x| x * x).collect())
}

/// x̄ = 2·x·ȳ.
#[op(sig = "b d, b d -> b d")]
pub fn square_vjp(x: &HostArray, dy: &HostArray) -> HostArray {
    HostArray::new(x.dims.clone(), x.data.iter().zip(&dy.data).map(|(x, dy)| 2.0 * x * dy).collect())
}

/// y = −x.
#[op(sig = "b d -> b d", vjp = minus_vjp)]
pub fn minus(x: &HostArray) -> HostArray {
    HostArray::new(x.dims.clone(), x.data.iter().map(|x| -x).collect())
}

/// x̄ = −ȳ.
#[op(sig = "b d, b d -> b d")]
pub fn minus_vjp(_x: &HostArray, dy: &HostArray) -> HostArray {
    minus_of(dy)
}

fn minus_of(x: &HostArray) -> HostArray {
    HostArray::new(x.dims.clone(), x.data.iter().map(|x| -x).collect())
}
