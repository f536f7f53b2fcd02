//! `select`: y = a where the mask m holds, b elsewhere; ā = ȳ where m holds, b̄ = ȳ elsewhere, 0 otherwise.

use super::{Class, EvalCx, EvalNode, OpDef, Scalar, TypeError, Vjp, VjpNode, rules};
use crate::interp::Array;
use crate::ir::{Attrs, Builder, DType, Type, ValueId};

/// y = m ? a : b.
pub static DEF: OpDef = OpDef {
    name: "select",
    class: Class::Map,
    infer,
    vjp: Vjp::Rule(vjp),
    eval,
    expand: None,
    scalar: Some(Scalar::Select),
    flops: rules::per_result,
};

fn infer(_: &Attrs, xs: &[&Type]) -> Result<Vec<Type>, TypeError> {
    let [m, a, b] = rules::operands("select", xs)?;
    if m.dtype != DType::Bool {
        let message = format!("`select` chooses by a mask, but `{{0}}` is {m}");
        return Err(TypeError::at(0, "K0105", message).help("compare it first, such as `.ge(0.0)`"));
    }
    rules::float("select", 1, a)?;
    rules::float("select", 2, b)?;
    rules::same_axes("select", xs, 0)?;
    Ok(vec![Type::f32(a.shape.clone())])
}

fn vjp(b: &mut Builder, n: &VjpNode<'_>) -> Vec<Option<ValueId>> {
    let (m, dy) = (n.x(0), n.dy());
    let zero = b.constant_like(0.0, dy);
    let da = b.op("select", Attrs::new(), &[m, dy, zero]);
    let db = b.op("select", Attrs::new(), &[m, zero, dy]);
    vec![None, Some(da), Some(db)]
}

fn eval(_: &EvalCx<'_>, n: &EvalNode<'_>) -> Vec<Array> {
    let (m, a, b) = (n.args[0], n.args[1], n.args[2]);
    let data = (0..m.data.len()).map(|i| if m.data[i] != 0.0 { a.data[i] } else { b.data[i] }).collect();
    vec![Array::new(m.dims.clone(), data)]
}
