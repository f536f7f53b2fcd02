//! `cross_entropy`: unreduced loss of logits over the last axis V against target ids: (Σᵢ −ln p\[i, tᵢ\], number of targets).
//!
//! p = softmax(logits). Negative targets are ignored and not counted. With the cotangent s̄ of the sum,
//! the cotangent of the logits is (p − onehot(t))·s̄ at counted positions, 0 elsewhere; the count has none.

use super::{Class, EvalCx, EvalNode, OpDef, TypeError, Vjp, VjpNode, rules, softmax};
use crate::interp::Array;
use crate::ir::{Attrs, Axis, Builder, Node, Type, ValueId};

/// (sum, count) of (logits, targets).
pub static DEF: OpDef = OpDef {
    name: "cross_entropy",
    class: Class::Composite,
    infer,
    vjp: Vjp::Rule(vjp),
    eval,
    expand: Some(expand),
    scalar: None,
    flops: |sizes, n, args, outs| 5 * rules::per_operand(sizes, n, args, outs),
};

/// Targets (operand `t`) are ids over `positions`, the axes of operand 0 without its last.
pub(super) fn check_targets(op: &str, t: usize, targets: &Type, positions: &[Axis]) -> Result<(), TypeError> {
    rules::ids(op, t, targets)?;
    if targets.shape == positions {
        return Ok(());
    }
    let message = format!(
        "`{op}` needs one target per position: `{{0}}` has positions {}, `{{{t}}}` has {}",
        rules::list(positions),
        rules::list(&targets.shape)
    );
    Err(TypeError::at(t, "K0112", message))
}

fn infer(_: &Attrs, xs: &[&Type]) -> Result<Vec<Type>, TypeError> {
    let op = "cross_entropy";
    let [logits, targets] = rules::operands(op, xs)?;
    rules::float(op, 0, logits)?;
    rules::last_axis(op, 0, logits)?;
    check_targets(op, 1, targets, &logits.shape[..logits.rank() - 1])?;
    Ok(vec![Type::f32([]), Type::f32([])])
}

/// Mask of the counted positions, and the mask of the target among the logits.
fn masks(b: &mut Builder, logits: ValueId, targets: ValueId) -> (ValueId, ValueId) {
    let shape = b.shape(logits);
    let zero = b.constant_like(0.0, targets);
    let counted = b.binary("ge", targets, zero);
    let last = shape[shape.len() - 1];
    let index = b.op("iota", Attrs::new().with("axis", last).with("shape", shape.clone()), &[]);
    let target = b.broadcast(targets, &shape);
    (counted, b.binary("eq", index, target))
}

fn expand(b: &mut Builder, n: &Node) -> Vec<ValueId> {
    let (logits, targets) = (n.inputs[0], n.inputs[1]);
    let shape = b.shape(logits);
    let (rows, last) = shape.split_at(shape.len() - 1);
    let s = softmax::shifted(b, logits, last[0]);
    let (counted, hit) = masks(b, logits, targets);
    let nothing = b.constant(0.0, &shape);
    let picked = b.op("select", Attrs::new(), &[hit, s.z, nothing]);
    let picked = b.sum(picked, last);
    let log = b.unary("log", s.sum);
    let nll = b.sub(log, picked);
    let (one, zero) = (b.constant(1.0, rows), b.constant(0.0, rows));
    let nll = b.op("select", Attrs::new(), &[counted, nll, zero]);
    let ones = b.op("select", Attrs::new(), &[counted, one, zero]);
    vec![b.sum(nll, rows), b.sum(ones, rows)]
}

fn vjp(b: &mut Builder, n: &VjpNode<'_>) -> Vec<Option<ValueId>> {
    let Some(dsum) = n.cotangents[0] else { return vec![None, None] };
    let (logits, targets) = (n.x(0), n.x(1));
    let shape = b.shape(logits);
    let s = softmax::shifted(b, logits, shape[shape.len() - 1]);
    let p = s.probabilities(b);
    let (counted, hit) = masks(b, logits, targets);
    let (one, zero) = (b.constant(1.0, &shape), b.constant(0.0, &shape));
    let onehot = b.op("select", Attrs::new(), &[hit, one, zero]);
    let error = b.sub(p, onehot);
    let dsum = b.broadcast(dsum, &shape);
    let scaled = b.mul(error, dsum);
    let counted = b.broadcast(counted, &shape);
    vec![Some(b.op("select", Attrs::new(), &[counted, scaled, zero])), None]
}

fn eval(_: &EvalCx<'_>, n: &EvalNode<'_>) -> Vec<Array> {
    let (logits, targets) = (n.args[0], n.args[1]);
    let vocab = logits.dims[logits.dims.len() - 1];
    let lse: Vec<f64> = logits.data.chunks(vocab).map(log_sum_exp).collect();
    let counted = (0..lse.len()).filter(|&i| targets.data[i] >= 0.0);
    let nll = |i: usize| {
        let t = targets.data[i] as usize;
        assert!(t < vocab, "`cross_entropy`: target {t} of {vocab} classes");
        lse[i] - logits.data[i * vocab + t]
    };
    let sum = counted.clone().map(nll).sum();
    vec![Array::scalar(sum), Array::scalar(counted.count() as f64)]
}

/// ln Σ eˣ without overflow.
pub(super) fn log_sum_exp(row: &[f64]) -> f64 {
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + row.iter().map(|x| (x - max).exp()).sum::<f64>().ln()
}
