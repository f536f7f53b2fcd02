//! The one function behind every method: evaluates it on host values, or appends it to the layer being recorded.

use super::session::{self, Handle};
use super::{eager, record};
use kiln_compiler::ir::{Attr, Axis, Builder, Span, ValueId};
use kiln_compiler::methods::{self, Mask};
use kiln_compiler::ops::TypeError;
use std::panic::Location;

/// An argument of a method, the receiver included.
#[derive(Clone, Debug, PartialEq)]
pub enum In {
    /// A tensor, ids or a rope's base.
    Value(Handle),
    /// A tensor marked by `.over(..)`.
    Over(Handle, Vec<Axis>),
    /// A number.
    Number(f64),
    /// A number of elements.
    Count(i64),
    /// One axis.
    Axis(Axis),
    /// Several axes.
    Axes(Vec<Axis>),
    /// The text of an einsum.
    Spec(String),
    /// Which keys a query sees.
    Mask(Mask),
}

impl In {
    /// As the method table takes it, with operands replaced by `value`.
    pub fn lower(&self, mut value: impl FnMut(Handle) -> kiln_compiler::ir::ValueId) -> methods::Arg {
        match self {
            In::Value(h) => methods::Arg::Value(value(*h)),
            In::Over(h, axes) => methods::Arg::Over(value(*h), axes.clone()),
            In::Number(x) => methods::Arg::Number(Attr::Float(*x)),
            In::Count(n) => methods::Arg::Number(Attr::Int(*n)),
            In::Axis(a) => methods::Arg::Axis(*a),
            In::Axes(a) => methods::Arg::Axes(a.clone()),
            In::Spec(s) => methods::Arg::Spec(s.clone()),
            In::Mask(m) => methods::Arg::Mask(*m),
        }
    }

    /// The operand, if it is one.
    pub fn handle(&self) -> Option<Handle> {
        match self {
            In::Value(h) | In::Over(h, _) => Some(*h),
            In::Number(_) | In::Count(_) | In::Axis(_) | In::Axes(_) | In::Spec(_) | In::Mask(_) => None,
        }
    }
}

/// Position of the user's call.
#[track_caller]
pub fn here() -> Span {
    let at = Location::caller();
    Span { line: at.line(), column: at.column() }
}

/// Applies the method called `name`.
///
/// # Panics
/// Eagerly, if the operands do not fit: a body returns no `Result`.
#[track_caller]
pub fn apply(name: &str, args: &[In]) -> Vec<Handle> {
    let method = methods::find(name).unwrap_or_else(|| panic!("no method `{name}`: a bug of Kiln's method table"));
    match session::with(|s| s.recording.is_some()) {
        true => record::apply(method, args, here()),
        false => eager::apply(method, args),
    }
}

/// A rule of the method table that is no method.
#[derive(Clone, Copy, Debug)]
pub enum Rule {
    /// A number as a tensor without axes.
    Scalar(f64),
    /// `loss * c` over the sum.
    ScaleLoss(f64),
    /// `loss / c` over the sum.
    DivideLoss(f64),
    /// `a + b` over both sums and counts.
    AddLosses,
}

impl Rule {
    /// Appends its nodes.
    pub fn lower(self, b: &mut Builder, values: &[ValueId]) -> Result<ValueId, TypeError> {
        match (self, values) {
            (Rule::Scalar(x), []) => methods::scalar(b, x.into()),
            (Rule::ScaleLoss(c), [sum]) => methods::scale_loss(b, "mul", *sum, c.into()),
            (Rule::DivideLoss(c), [sum]) => methods::scale_loss(b, "div", *sum, c.into()),
            (Rule::AddLosses, &[a, n, b_sum, m]) => methods::add_losses(b, [a, n], [b_sum, m]),
            _ => panic!("{self:?} does not take {} values: a bug of Kiln", values.len()),
        }
    }
}

/// Applies a rule.
#[track_caller]
pub fn apply_rule(rule: Rule, operands: &[Handle]) -> Handle {
    match session::with(|s| s.recording.is_some()) {
        true => record::apply_rule(rule, operands, here()),
        false => eager::apply_rule(rule, operands),
    }
}
