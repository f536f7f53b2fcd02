//! `+ - * /` and negation: tensors line up from the right, numbers stand for every element.
//!
//! Numbers are `f64`: with `f32` beside it rustc could not tell the type of a literal in `(x * 2.0).exp()`.

use super::apply::{In, apply_scale_loss};
use super::methods::tensor;
use super::{Loss, Operand, Over, Tensor};
use std::ops::{Add, Div, Mul, Neg, Sub};

macro_rules! operator {
    ($($trait:ident $method:ident),+) => {
        $(
            operator!(@impl $trait $method: Tensor, Tensor);
            operator!(@impl $trait $method: Tensor, Over);
            operator!(@impl $trait $method: Over, Tensor);
            operator!(@impl $trait $method: Tensor, f64);
            operator!(@impl $trait $method: f64, Tensor);
        )+
    };
    (@impl $trait:ident $method:ident: $left:ty, $right:ty) => {
        impl $trait<$right> for $left {
            type Output = Tensor;

            #[track_caller]
            fn $method(self, right: $right) -> Tensor {
                tensor(stringify!($method), &[Operand::from(self).0, Operand::from(right).0])
            }
        }
    };
}
operator!(Add add, Sub sub, Mul mul, Div div);

impl Neg for Tensor {
    type Output = Tensor;

    #[track_caller]
    fn neg(self) -> Tensor {
        tensor("neg", &[In::Value(self.0)])
    }
}

impl Mul<f64> for Loss {
    type Output = Loss;

    #[track_caller]
    fn mul(self, factor: f64) -> Loss {
        Loss { sum: Tensor(apply_scale_loss(self.sum.0, factor)), count: self.count }
    }
}

impl Mul<Loss> for f64 {
    type Output = Loss;

    #[track_caller]
    fn mul(self, loss: Loss) -> Loss {
        loss * self
    }
}
