//! Maps of two operands with equal axes: y = f(a, b), element by element, computed in f32. ā = ȳ ∂f/∂a, b̄ = ȳ ∂f/∂b.

use super::{Class, EvalNode, OpDef, Scalar, TypeError, Vjp, VjpNode, rules};
use crate::interp::Array;
use crate::ir::{Builder, Type, ValueId};

macro_rules! binary {
    ($($(#[$doc:meta])* $def:ident $name:literal $shown:literal $scalar:ident, $vjp:expr, $eval:expr;)*) => {$(
        $(#[$doc])*
        pub static $def: OpDef = OpDef {
            name: $name,
            class: Class::Map,
            infer: |_, xs| infer($shown, xs),
            vjp: Vjp::Rule($vjp),
            eval: |_, n| vec![map(n, $eval)],
            expand: None,
            scalar: Some(Scalar::$scalar),
            flops: rules::per_result,
        };
    )*};
}

binary! {
    /// y = a + b; ā = ȳ, b̄ = ȳ.
    ADD "add" "+" Add, |_, n| vec![Some(n.dy()), Some(n.dy())], |a, b| a + b;
    /// y = a − b; ā = ȳ, b̄ = −ȳ.
    SUB "sub" "-" Sub, |b, n| { let minus = b.unary("neg", n.dy()); vec![Some(n.dy()), Some(minus)] }, |a, b| a - b;
    /// y = a·b; ā = ȳb, b̄ = ȳa.
    MUL "mul" "*" Mul, |b, n| vec![Some(b.mul(n.dy(), n.x(1))), Some(b.mul(n.dy(), n.x(0)))], |a, b| a * b;
    /// y = a/b; ā = ȳ/b, b̄ = −(ȳ/b)·y.
    DIV "div" "/" Div, vjp_div, |a, b| a / b;
    /// y = max(a, b), NaN if either is; the larger operand gets ȳ, equal ones half each.
    MAX "max" "max" Max, |b, n| vjp_extreme(b, n, "gt"), |a, b| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) };
    /// y = min(a, b), NaN if either is; the smaller operand gets ȳ, equal ones half each.
    MIN "min" "min" Min, |b, n| vjp_extreme(b, n, "lt"), |a, b| if a.is_nan() || b.is_nan() { f64::NAN } else { a.min(b) };
}

fn infer(op: &str, xs: &[&Type]) -> Result<Vec<Type>, TypeError> {
    let [a, b] = rules::operands(op, xs)?;
    rules::float(op, 0, a)?;
    rules::float(op, 1, b)?;
    rules::same_axes(op, xs, 0)?;
    Ok(vec![Type::f32(a.shape.clone())])
}

/// `f` of each pair of elements.
pub(super) fn map(n: &EvalNode<'_>, f: impl Fn(f64, f64) -> f64) -> Array {
    let (a, b) = (n.args[0], n.args[1]);
    Array { dims: a.dims.clone(), data: a.data.iter().zip(&b.data).map(|(&a, &b)| f(a, b)).collect() }
}

fn vjp_div(b: &mut Builder, n: &VjpNode<'_>) -> Vec<Option<ValueId>> {
    let da = b.div(n.dy(), n.x(1));
    let pull = b.mul(da, n.y(0));
    vec![Some(da), Some(b.unary("neg", pull))]
}

/// Weights are 1 where the operand wins by `wins`, ½ where both are equal, 0 elsewhere.
fn vjp_extreme(b: &mut Builder, n: &VjpNode<'_>, wins: &str) -> Vec<Option<ValueId>> {
    let dy = n.dy();
    let half = b.scale(dy, 0.5);
    let zero = b.constant_like(0.0, dy);
    let tie = b.binary("eq", n.x(0), n.x(1));
    let shared = b.op("select", Default::default(), &[tie, half, zero]);
    let mut pull = |x, other| {
        let m = b.binary(wins, x, other);
        Some(b.op("select", Default::default(), &[m, dy, shared]))
    };
    vec![pull(n.x(0), n.x(1)), pull(n.x(1), n.x(0))]
}
