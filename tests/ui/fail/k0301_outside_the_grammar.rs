//! Statements that the macro cannot read.

use kiln::prelude::*;

axes! { B: "batch", D: "model" }

/// Powers of the input.
#[layer]
pub fn powers(x: Tensor<B, D>) -> Tensor<B, D> {
    //~ K0301 println
    println!("powers");
    //~ K0301 fn
    fn square(x: Tensor) -> Tensor {
        x * x
    }
    //~ K0301 |t: Tensor| t * t
    let double = |t: Tensor| t * t;
    //~ K0301 square
    let mut y = square(x);
    //~ K0301 0..3
    for _ in 0..3 {
        y = double(y);
    }
    y
}
