//! An operation that Kiln does not have, with its derivative.

use forge::prelude::*;

/// yₙₕ = xₙₕ·aₕ + bₕ.
#[op(sig = "n h, h, h -> n h", vjp = affine_vjp)]
pub fn affine(x: &HostArray, a: &HostArray, b: &HostArray) -> HostArray {
    let h = a.dims[0];
    let y = x.data.iter().enumerate().map(|(i, x)| x * a.data[i % h] + b.data[i % h]).collect();
    HostArray::new(x.dims.clone(), y)
}

/// x̄ₙₕ = ȳₙₕ·aₕ; āₕ = Σₙ ȳₙₕ·xₙₕ; b̄ₕ = Σₙ ȳₙₕ.
#[op(sig = "n h, h, h, n h -> n h, h, h")]
pub fn affine_vjp(x: &HostArray, a: &HostArray, b: &HostArray, dy: &HostArray) -> (HostArray, HostArray, HostArray) {
    let h = a.dims[0];
    let (mut dx, mut da, mut db) = (dy.clone(), HostArray::zeros(a.dims.clone()), HostArray::zeros(b.dims.clone()));
    for (i, dy) in dy.data.iter().enumerate() {
        dx.data[i] = dy * a.data[i % h];
        da.data[i % h] += dy * x.data[i];
        db.data[i % h] += dy;
    }
    (dx, da, db)
}
