//! Statements that the macro cannot read.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// The square of a tensor.
pub fn square(x: Tensor) -> Tensor {
    x * x
}

/// Powers of the input.
#[layer]
pub fn powers(x: Tensor<B, D>) -> Tensor<B, D> {
    //~ K0301 println
    println!("powers");
    //~ K0301 const
    const HALF: f64 = 0.5;
    //~ K0301 |t: Tensor| t * t
    let double = |t: Tensor| t * t;
    //~ K0301 square
    let mut y: Tensor<B, D> = square(x);
    //~ K0301 0..3
    for _ in 0..3 {
        y = double(y) * HALF;
    }
    double(y) * HALF
}
