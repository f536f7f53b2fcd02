//! Maps of one operand: y = f(x), element by element, computed in f32. Derivative: x̄ = ȳ · f′(x), written with y where that is shorter.

mod erf;

use super::{Class, EvalNode, OpDef, Scalar, TypeError, Vjp, VjpNode, rules};
use crate::interp::Array;
use crate::ir::{Builder, Type, ValueId};
use std::f64::consts::PI;

macro_rules! unary {
    ($($(#[$doc:meta])* $def:ident $name:literal $scalar:ident, $vjp:expr, $eval:expr;)*) => {$(
        $(#[$doc])*
        pub static $def: OpDef = OpDef {
            name: $name,
            class: Class::Map,
            infer: |_, xs| infer($name, xs),
            vjp: $vjp,
            eval: |_, n| vec![map(n, $eval)],
            expand: None,
            scalar: Some(Scalar::$scalar),
            flops: rules::per_result,
        };
    )*};
}

unary! {
    /// y = −x; f′ = −1.
    NEG "neg" Neg, Vjp::Rule(|b, n| { let dy = n.dy(); vec![Some(b.unary("neg", dy))] }), |x| -x;
    /// y = eˣ; f′ = y.
    EXP "exp" Exp, Vjp::Rule(|b, n| vec![Some(b.mul(n.dy(), n.y(0)))]), f64::exp;
    /// y = ln x; f′ = 1/x.
    LOG "log" Log, Vjp::Rule(|b, n| vec![Some(b.div(n.dy(), n.x(0)))]), f64::ln;
    /// y = √x; f′ = 1/(2y).
    SQRT "sqrt" Sqrt, Vjp::Rule(vjp_sqrt), f64::sqrt;
    /// y = 1/√x; f′ = −y³/2.
    RSQRT "rsqrt" Rsqrt, Vjp::Rule(vjp_rsqrt), |x| 1.0 / x.sqrt();
    /// y = 1/x; f′ = −y².
    RECIP "recip" Recip, Vjp::Rule(vjp_recip), |x| 1.0 / x;
    /// y = sin x; f′ = cos x.
    SIN "sin" Sin, Vjp::Rule(|b, n| { let c = b.unary("cos", n.x(0)); vec![Some(b.mul(n.dy(), c))] }), f64::sin;
    /// y = cos x; f′ = −sin x.
    COS "cos" Cos, Vjp::Rule(vjp_cos), f64::cos;
    /// y = tanh x; f′ = 1 − y².
    TANH "tanh" Tanh, Vjp::Rule(vjp_tanh), f64::tanh;
    /// y = erf x = 2/√π ∫₀ˣ e^(−t²) dt; f′ = 2/√π e^(−x²).
    ERF "erf" Erf, Vjp::Rule(vjp_erf), erf::erf;
    /// y = σ(x) = 1/(1+e⁻ˣ); f′ = y(1−y).
    LOGISTIC "logistic" Logistic, Vjp::Rule(vjp_logistic), logistic;
    /// y = |x|; f′ = sign x, 0 at 0.
    ABS "abs" Abs, Vjp::Rule(|b, n| { let s = b.unary("sign", n.x(0)); vec![Some(b.mul(n.dy(), s))] }), f64::abs;
    /// y = −1, 0, 1 as x is negative, zero, positive; f′ = 0.
    SIGN "sign" Sign, Vjp::Zero, |x| if x > 0.0 { 1.0 } else if x < 0.0 { -1.0 } else { x * 0.0 };
}

/// σ(x) without overflow for large |x|.
pub(super) fn logistic(x: f64) -> f64 {
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

pub(super) use erf::erf;

/// The type rule of maps of one operand.
pub(super) fn infer(op: &str, xs: &[&Type]) -> Result<Vec<Type>, TypeError> {
    let [x] = rules::operands(op, xs)?;
    rules::float(op, 0, x)?;
    Ok(vec![Type::f32(x.shape.clone())])
}

/// `f` of each element of the first operand.
pub(super) fn map(n: &EvalNode<'_>, f: impl Fn(f64) -> f64) -> Array {
    let x = n.args[0];
    Array { dims: x.dims.clone(), data: x.data.iter().map(|&x| f(x)).collect() }
}

fn vjp_sqrt(b: &mut Builder, n: &VjpNode<'_>) -> Vec<Option<ValueId>> {
    let half = b.scale(n.dy(), 0.5);
    vec![Some(b.div(half, n.y(0)))]
}

fn vjp_rsqrt(b: &mut Builder, n: &VjpNode<'_>) -> Vec<Option<ValueId>> {
    let y2 = b.mul(n.y(0), n.y(0));
    let y3 = b.mul(y2, n.y(0));
    let slope = b.scale(y3, -0.5);
    vec![Some(b.mul(n.dy(), slope))]
}

fn vjp_recip(b: &mut Builder, n: &VjpNode<'_>) -> Vec<Option<ValueId>> {
    let y2 = b.mul(n.y(0), n.y(0));
    let dy = b.mul(n.dy(), y2);
    vec![Some(b.unary("neg", dy))]
}

fn vjp_cos(b: &mut Builder, n: &VjpNode<'_>) -> Vec<Option<ValueId>> {
    let s = b.unary("sin", n.x(0));
    let dy = b.mul(n.dy(), s);
    vec![Some(b.unary("neg", dy))]
}

fn vjp_tanh(b: &mut Builder, n: &VjpNode<'_>) -> Vec<Option<ValueId>> {
    let one = b.constant_like(1.0, n.y(0));
    let y2 = b.mul(n.y(0), n.y(0));
    let slope = b.sub(one, y2);
    vec![Some(b.mul(n.dy(), slope))]
}

fn vjp_erf(b: &mut Builder, n: &VjpNode<'_>) -> Vec<Option<ValueId>> {
    let x2 = b.mul(n.x(0), n.x(0));
    let minus = b.unary("neg", x2);
    let e = b.unary("exp", minus);
    let slope = b.scale(e, 2.0 / PI.sqrt());
    vec![Some(b.mul(n.dy(), slope))]
}

fn vjp_logistic(b: &mut Builder, n: &VjpNode<'_>) -> Vec<Option<ValueId>> {
    let one = b.constant_like(1.0, n.y(0));
    let rest = b.sub(one, n.y(0));
    let slope = b.mul(n.y(0), rest);
    vec![Some(b.mul(n.dy(), slope))]
}
