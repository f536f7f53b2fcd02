//! The axes are those of the `sig`.

use kiln::prelude::*;

axes! { B: "batch", S: "sequence", D: "model" }

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

/// Squares of the mean over the positions.
#[layer]
pub fn energy(x: Tensor<B, S, D>) -> Tensor<B, D> {
    let y: Tensor<B, D> = square(x.mean(S));
    y
}
