//! One label of an operation stands for two axes.

use kiln::prelude::*;

axes! { B: "batch", D: "model", F: "hidden" }

/// x·y, element by element.
#[op(sig = "b d, b d -> b d")]
pub fn times(x: &HostArray, y: &HostArray) -> HostArray {
    HostArray::new(x.dims.clone(), x.data.iter().zip(&y.data).map(|(x, y)| x * y).collect())
}

/// A product through which no gradient flows.
#[layer]
pub fn product(x: Tensor<B, D>, y: Tensor<B, F>) -> Tensor<B, D> {
    //~ K0107 stop_gradient(y)
    let z: Tensor<B, D> = times(stop_gradient(x), stop_gradient(y));
    x + z
}
