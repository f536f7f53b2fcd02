//! `layer_norm` over the last axis (Ba et al. 2016): x̂ = (x − μ)·r with μ = mean x, r = 1/√(mean((x − μ)²) + ε), y = x̂·w + b.
//!
//! With g = ȳw: x̄ = r·(g − mean(g) − x̂·mean(g·x̂)), w̄ = Σ ȳ·x̂ and b̄ = Σ ȳ over all other axes.

use super::{Class, EvalCx, EvalNode, OpDef, TypeError, Vjp, VjpNode, mean, rms_norm, rules};
use crate::interp::{self, Array};
use crate::ir::{Attrs, Builder, Node, Type, ValueId};

/// y = (x − μ)·r·w + b.
pub static DEF: OpDef = OpDef {
    name: "layer_norm",
    class: Class::Composite,
    infer,
    vjp: Vjp::Rule(vjp),
    eval,
    expand: Some(expand),
    scalar: None,
    flops: |sizes, n, args, outs| 7 * rules::per_result(sizes, n, args, outs),
};

/// r, over the axes of `x`, and x̂.
fn normalised(b: &mut Builder, x: ValueId, attrs: &Attrs) -> (ValueId, ValueId) {
    let shape = b.shape(x);
    let last = &shape[shape.len() - 1..];
    let mu = mean::over(b, x, last);
    let mu = b.broadcast(mu, &shape);
    let centred = b.sub(x, mu);
    let square = b.mul(centred, centred);
    let variance = mean::over(b, square, last);
    let r = rms_norm::rsqrt_eps(b, variance, attrs);
    let r = b.broadcast(r, &shape);
    (r, b.mul(centred, r))
}

fn infer(attrs: &Attrs, xs: &[&Type]) -> Result<Vec<Type>, TypeError> {
    let [x, w, bias] = rules::operands("layer_norm", xs)?;
    rms_norm::infer_weights("layer_norm", x, &[w, bias])?;
    rules::number("layer_norm", attrs, "eps", |e| e >= 0.0, "0 or more")?;
    Ok(vec![Type::f32(x.shape.clone())])
}

fn expand(b: &mut Builder, n: &Node) -> Vec<ValueId> {
    let (_, hat) = normalised(b, n.inputs[0], &n.attrs);
    let shape = b.shape(hat);
    let w = b.broadcast(n.inputs[1], &shape);
    let bias = b.broadcast(n.inputs[2], &shape);
    let scaled = b.mul(hat, w);
    vec![b.add(scaled, bias)]
}

fn vjp(b: &mut Builder, n: &VjpNode<'_>) -> Vec<Option<ValueId>> {
    let (x, dy) = (n.x(0), n.dy());
    let shape = b.shape(x);
    let (rows, last) = shape.split_at(shape.len() - 1);
    let (r, hat) = normalised(b, x, &n.node.attrs);
    let w = b.broadcast(n.x(1), &shape);
    let g = b.mul(dy, w);
    let level = mean::over(b, g, last);
    let level = b.broadcast(level, &shape);
    let product = b.mul(g, hat);
    let dot = mean::over(b, product, last);
    let dot = b.broadcast(dot, &shape);
    let along = b.mul(hat, dot);
    let centred = b.sub(g, level);
    let across = b.sub(centred, along);
    let dx = b.mul(r, across);
    let column = b.mul(dy, hat);
    vec![Some(dx), Some(b.sum(column, rows)), Some(b.sum(dy, rows))]
}

fn eval(cx: &EvalCx<'_>, n: &EvalNode<'_>) -> Vec<Array> {
    let (x, w, bias, eps) = (n.args[0], n.args[1], n.args[2], n.attrs().float("eps"));
    let d = w.data.len();
    let moments = |row: &[f64]| {
        let mu = row.iter().sum::<f64>() / d as f64;
        let variance = row.iter().map(|x| (x - mu) * (x - mu)).sum::<f64>() / d as f64;
        (mu, 1.0 / (variance + eps).sqrt())
    };
    let rows: Vec<(f64, f64)> = x.data.chunks(d).map(moments).collect();
    let y = |i: usize| (x.data[i] - rows[i / d].0) * rows[i / d].1 * w.data[i % d] + bias.data[i % d];
    vec![interp::build(cx.sizes, n.axes(0), y)]
}
