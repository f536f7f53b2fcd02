//! `+ - * /` and negation: tensors line up from the right, numbers stand for every element.
//!
//! Numbers are `f64`: with `f32` beside it rustc could not tell the type of a literal in `(x * 2.0).exp()`.

use super::apply::{In, Rule, apply_rule};
use super::methods::tensor;
use super::{Loss, Operand, Over, Tensor};
use std::ops::{Add, AddAssign, Div, DivAssign, Mul, MulAssign, Neg, Sub, SubAssign};

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

macro_rules! assign {
    ($($trait:ident $method:ident = $operator:tt),+) => {
        $(
            assign!(@impl $trait $method $operator: Tensor);
            assign!(@impl $trait $method $operator: Over);
            assign!(@impl $trait $method $operator: f64);
        )+
    };
    (@impl $trait:ident $method:ident $operator:tt: $right:ty) => {
        impl $trait<$right> for Tensor {
            #[track_caller]
            fn $method(&mut self, right: $right) {
                *self = *self $operator right;
            }
        }
    };
}
assign!(AddAssign add_assign = +, SubAssign sub_assign = -, MulAssign mul_assign = *, DivAssign div_assign = /);

impl Add for Loss {
    type Output = Loss;

    #[track_caller]
    fn add(self, other: Loss) -> Loss {
        let parts = [self.sum, self.count, other.sum, other.count].map(|t| t.0);
        Loss { sum: Tensor(apply_rule(Rule::AddLosses, &parts)), count: self.count }
    }
}

impl Mul<f64> for Loss {
    type Output = Loss;

    #[track_caller]
    fn mul(self, factor: f64) -> Loss {
        Loss { sum: Tensor(apply_rule(Rule::ScaleLoss(factor), &[self.sum.0])), count: self.count }
    }
}

impl Mul<Loss> for f64 {
    type Output = Loss;

    #[track_caller]
    fn mul(self, loss: Loss) -> Loss {
        loss * self
    }
}

impl Div<f64> for Loss {
    type Output = Loss;

    #[track_caller]
    fn div(self, factor: f64) -> Loss {
        Loss { sum: Tensor(apply_rule(Rule::DivideLoss(factor), &[self.sum.0])), count: self.count }
    }
}

impl AddAssign for Loss {
    #[track_caller]
    fn add_assign(&mut self, other: Loss) {
        *self = *self + other;
    }
}
