//! `concat`: b after a along one axis. ā and b̄ are the two slices of ȳ.

use super::{Class, EvalCx, EvalNode, OpDef, TypeError, Vjp, VjpNode, rules};
use crate::interp::Array;
use crate::ir::{Attr, Attrs, Builder, DType, Type, ValueId};

/// y = a for the first elements of `to`, b for the others: `axis` of a and `other` of b, in the same place, become `to`.
pub static DEF: OpDef = OpDef {
    name: "concat",
    class: Class::View,
    infer,
    vjp: Vjp::Rule(vjp),
    eval,
    expand: None,
    scalar: None,
    flops: rules::free,
};

fn infer(attrs: &Attrs, xs: &[&Type]) -> Result<Vec<Type>, TypeError> {
    let op = "concat";
    let [a, b] = rules::operands(op, xs)?;
    rules::float(op, 0, a)?;
    rules::float(op, 1, b)?;
    let (axis, other) = (rules::axis(op, attrs, "axis")?, rules::axis(op, attrs, "other")?);
    let (at, bt) = (rules::has(op, 0, a, axis)?, rules::has(op, 1, b, other)?);
    let mut expected = a.shape.clone();
    expected[at] = other;
    if at != bt || expected != b.shape {
        let message = format!(
            "`concat` along `{axis}` needs {} as the axes of `{{1}}`, which are {}",
            rules::list(&expected),
            rules::list(&b.shape)
        );
        return Err(TypeError::at(1, "K0119", message));
    }
    let mut shape = a.shape.clone();
    shape[at] = rules::axis(op, attrs, "to")?;
    rules::distinct(op, &shape)?;
    Ok(vec![Type::new(if a.dtype == b.dtype { a.dtype } else { DType::F32 }, shape)])
}

fn vjp(b: &mut Builder, n: &VjpNode<'_>) -> Vec<Option<ValueId>> {
    let attrs = &n.node.attrs;
    let (axis, other, to) = (attrs.axis("axis"), attrs.axis("other"), attrs.axis("to"));
    let mut part = |start: Attr, into| {
        let attrs = Attrs::new().with("axis", to).with("to", into).with("start", start);
        Some(b.op("slice", attrs, &[n.dy()]))
    };
    vec![part(Attr::Int(0), axis), part(Attr::Axis(axis), other)]
}

fn eval(cx: &EvalCx<'_>, n: &EvalNode<'_>) -> Vec<Array> {
    let axis = n.attrs().axis("axis");
    let at = n.arg_types[0].position(axis).unwrap_or_else(|| panic!("axis `{axis}` passed the type rule"));
    let dims = cx.sizes.shape(n.out_axes(0));
    let (na, nb) = (n.args[0].dims[at], n.args[1].dims[at]);
    assert_eq!(na + nb, dims[at], "`concat`: {na} and {nb} elements make no {} of `{}`", dims[at], n.out_axes(0)[at]);
    let inner: usize = dims[at + 1..].iter().product();
    let outer: usize = dims[..at].iter().product();
    let mut data = Vec::with_capacity(outer * (na + nb) * inner);
    for o in 0..outer {
        data.extend_from_slice(&n.args[0].data[o * na * inner..(o + 1) * na * inner]);
        data.extend_from_slice(&n.args[1].data[o * nb * inner..(o + 1) * nb * inner]);
    }
    vec![Array::new(dims, data)]
}
