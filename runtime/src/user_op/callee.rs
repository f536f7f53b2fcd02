//! Which operation a path in a body calls, found by rustc: an operation's function takes every [`Operand`] of its marker type, so that
//! the type of a function leads to its record – and a function without one to [`NoOperation`], by one more reference in method lookup.

use super::UserOp;
use crate::tensor::{ArgValue, Handle, Ids, Returns, Tensor};
use std::marker::PhantomData;

/// The marker type that `#[op]` makes beside a function.
pub trait Operation {
    /// Its record.
    const OP: &'static UserOp;
}

/// What an operation with the marker type `O` takes: tensors and ids.
pub trait Operand<O>: ArgValue {}

impl<O> Operand<O> for Tensor {}
impl<O> Operand<O> for Ids {}

/// An operand of one operation only; never made.
#[derive(Debug)]
pub struct Probe<O>(PhantomData<O>);

impl<O> ArgValue for Probe<O> {
    fn handle(&self) -> Handle {
        unreachable!("a probe stands in checks, which never run")
    }
}

impl<O: Operation> Operand<O> for Probe<O> {}

/// A function that may be an operation's.
#[derive(Debug)]
pub struct Callee<F>(pub F);

/// Functions that take probes are those of operations. Never called: the type of the result is what counts.
pub trait IsOperation<O, Signature> {
    /// The marker type.
    fn operation(&self) -> O;
}

/// Any other function.
#[derive(Debug)]
pub struct NoOperation;

impl Operation for NoOperation {
    const OP: &'static UserOp = &UserOp::NONE;
}

/// As [`IsOperation`], for what method lookup tries last.
pub trait IsNoOperation {
    /// Nothing.
    fn operation(&self) -> NoOperation;
}

impl<F> IsNoOperation for &Callee<F> {
    fn operation(&self) -> NoOperation {
        unreachable!("stands in checks, which never run")
    }
}

/// The record behind `|| (&Callee(path)).operation()`.
pub const fn operation<F: Fn() -> O, O: Operation>(_: &F) -> &'static UserOp {
    O::OP
}

macro_rules! arity {
    ($n:literal: $($probe:ident)+) => {
        impl<F, O: Operation, R: Returns> IsOperation<O, [R; $n]> for Callee<F>
        where
            F: Fn($($probe<O>),+) -> R,
        {
            fn operation(&self) -> O {
                unreachable!("stands in checks, which never run")
            }
        }
    };
}
arity!(1: Probe);
arity!(2: Probe Probe);
arity!(3: Probe Probe Probe);
arity!(4: Probe Probe Probe Probe);
arity!(5: Probe Probe Probe Probe Probe);
arity!(6: Probe Probe Probe Probe Probe Probe);
arity!(7: Probe Probe Probe Probe Probe Probe Probe);
arity!(8: Probe Probe Probe Probe Probe Probe Probe Probe);
arity!(9: Probe Probe Probe Probe Probe Probe Probe Probe Probe);
arity!(10: Probe Probe Probe Probe Probe Probe Probe Probe Probe Probe);
arity!(11: Probe Probe Probe Probe Probe Probe Probe Probe Probe Probe Probe);
arity!(12: Probe Probe Probe Probe Probe Probe Probe Probe Probe Probe Probe Probe);
