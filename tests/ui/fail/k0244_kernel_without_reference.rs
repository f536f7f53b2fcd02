//! A kernel without a value on the host, and a host function with two.

use kiln::prelude::*;

/// x² on the host.
pub fn square_ref(x: &HostArray) -> HostArray {
    HostArray::new(x.dims.clone(), x.data.iter().map(|x| x * x).collect())
}

/// y = x², one unit for each element.
#[op(sig = "b d -> b d")]
#[cube]
//~ K0244 square
pub fn square(x: &Array<f32>, y: &mut Array<f32>, b: usize, d: usize) {
    if ABSOLUTE_POS < b * d {
        y[ABSOLUTE_POS] = x[ABSOLUTE_POS] * x[ABSOLUTE_POS];
    }
}

/// y = x².
//~ K0244 square_ref
#[op(sig = "b d -> b d", reference = square_ref)]
pub fn power(x: &HostArray) -> HostArray {
    square_ref(x)
}
