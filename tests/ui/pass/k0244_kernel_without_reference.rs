//! A kernel names its host reference.

use kiln::prelude::*;

/// x² on the host.
pub fn square_ref(x: &HostArray) -> HostArray {
    HostArray::new(x.dims.clone(), x.data.iter().map(|x| x * x).collect())
}

/// y = x², one unit for each element.
#[op(sig = "b d -> b d", reference = square_ref)]
#[cube]
pub fn square(x: &Array<f32>, y: &mut Array<f32>, b: usize, d: usize) {
    if ABSOLUTE_POS < b * d {
        y[ABSOLUTE_POS] = x[ABSOLUTE_POS] * x[ABSOLUTE_POS];
    }
}

/// y = x².
#[op(sig = "b d -> b d")]
pub fn power(x: &HostArray) -> HostArray {
    square_ref(x)
}
