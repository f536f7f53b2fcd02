//! `rms_norm` over the last axis (Zhang & Sennrich 2019): x̂ = x·r with r = 1/√(mean(x²) + ε), y = x̂·w.
//!
//! With g = ȳw: x̄ = r·(g − x̂·mean(g·x̂)), w̄ = Σ ȳ·x̂ over all other axes.

use super::{Class, EvalCx, EvalNode, OpDef, TypeError, Vjp, VjpNode, mean, rules};
use crate::interp::{self, Array};
use crate::ir::{Attrs, Axis, Builder, Node, Type, ValueId};

/// y = x·r·w.
pub static DEF: OpDef = OpDef {
    name: "rms_norm",
    class: Class::Composite,
    infer,
    vjp: Vjp::Rule(vjp),
    eval,
    expand: Some(expand),
    scalar: None,
    flops: |sizes, n, args, outs| 4 * rules::per_result(sizes, n, args, outs),
};

/// The weights (operands from 1 on) of a norm of `x` lie along its last axis.
pub(super) fn infer_weights(op: &str, x: &Type, weights: &[&Type]) -> Result<Axis, TypeError> {
    rules::float(op, 0, x)?;
    let axis = rules::last_axis(op, 0, x)?;
    for (i, w) in weights.iter().enumerate().map(|(i, w)| (i + 1, w)) {
        rules::float(op, i, w)?;
        if w.shape != [axis] {
            let message = format!(
                "`{op}` works along `{axis}`, the last axis of `{{0}}`; `{{{i}}}` must be [{axis}], is {}",
                rules::list(&w.shape)
            );
            return Err(TypeError::at(i, "K0111", message));
        }
    }
    Ok(axis)
}

/// 1/√(v + ε).
pub(super) fn rsqrt_eps(b: &mut Builder, v: ValueId, attrs: &Attrs) -> ValueId {
    let shape = b.shape(v);
    let mut constant = Attrs::new().with("shape", shape);
    if let Some(eps) = attrs.get("eps") {
        constant.set("value", eps.clone());
    }
    let eps = b.op("const", constant, &[]);
    let sum = b.add(v, eps);
    b.unary("rsqrt", sum)
}

/// r, over the axes of `x`, and x̂.
fn normalised(b: &mut Builder, x: ValueId, attrs: &Attrs) -> (ValueId, ValueId) {
    let shape = b.shape(x);
    let square = b.mul(x, x);
    let mean = mean::over(b, square, &shape[shape.len() - 1..]);
    let r = rsqrt_eps(b, mean, attrs);
    let r = b.broadcast(r, &shape);
    (r, b.mul(x, r))
}

fn infer(attrs: &Attrs, xs: &[&Type]) -> Result<Vec<Type>, TypeError> {
    let [x, w] = rules::operands("rms_norm", xs)?;
    infer_weights("rms_norm", x, &[w])?;
    rules::number("rms_norm", attrs, "eps", |e| e >= 0.0, "0 or more")?;
    Ok(vec![Type::f32(x.shape.clone())])
}

fn expand(b: &mut Builder, n: &Node) -> Vec<ValueId> {
    let (_, hat) = normalised(b, n.inputs[0], &n.attrs);
    let shape = b.shape(hat);
    let w = b.broadcast(n.inputs[1], &shape);
    vec![b.mul(hat, w)]
}

fn vjp(b: &mut Builder, n: &VjpNode<'_>) -> Vec<Option<ValueId>> {
    let (x, dy) = (n.x(0), n.dy());
    let shape = b.shape(x);
    let (rows, last) = shape.split_at(shape.len() - 1);
    let (r, hat) = normalised(b, x, &n.node.attrs);
    let w = b.broadcast(n.x(1), &shape);
    let g = b.mul(dy, w);
    let product = b.mul(g, hat);
    let dot = mean::over(b, product, last);
    let dot = b.broadcast(dot, &shape);
    let along = b.mul(hat, dot);
    let across = b.sub(g, along);
    let dx = b.mul(r, across);
    let column = b.mul(dy, hat);
    vec![Some(dx), Some(b.sum(column, rows))]
}

fn eval(cx: &EvalCx<'_>, n: &EvalNode<'_>) -> Vec<Array> {
    let (x, w, eps) = (n.args[0], n.args[1], n.attrs().float("eps"));
    let d = w.data.len();
    let r: Vec<f64> =
        x.data.chunks(d).map(|row| 1.0 / (row.iter().map(|x| x * x).sum::<f64>() / d as f64 + eps).sqrt()).collect();
    vec![interp::build(cx.sizes, n.axes(0), |i| x.data[i] * r[i / d] * w.data[i % d])]
}
