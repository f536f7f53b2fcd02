//! `rename`: the same elements, one axis under another name of the same size. x̄ = ȳ under the old name.

use super::{Argument, Class, OpDef, TypeError, Vjp, rules};
use crate::interp::Array;
use crate::ir::{Attrs, Axis, Builder, Type, ValueId};

/// y = x with axis `from` called `to`.
pub static DEF: OpDef = OpDef {
    name: "rename",
    class: Class::View,
    infer,
    vjp: Vjp::Rule(|b, n| {
        let (from, to) = (n.node.attrs.axis("from"), n.node.attrs.axis("to"));
        vec![Some(axis(b, n.dy(), to, from))]
    }),
    eval: |cx, n| {
        let (from, to) = (n.attrs().axis("from"), n.attrs().axis("to"));
        let sizes = (cx.sizes.of(from), cx.sizes.of(to));
        assert_eq!(sizes.0, sizes.1, "`rename`: `{from}` has {} elements, `{to}` has {}", sizes.0, sizes.1);
        vec![Array::new(n.args[0].dims.clone(), n.args[0].data.clone())]
    },
    expand: None,
    scalar: None,
    flops: rules::free,
};

fn axis(b: &mut Builder, x: ValueId, from: Axis, to: Axis) -> ValueId {
    b.op("rename", Attrs::new().with("from", from).with("to", to), &[x])
}

fn infer(attrs: &Attrs, xs: &[&Type]) -> Result<Vec<Type>, TypeError> {
    let [x] = rules::operands("rename", xs)?;
    let (from, to) = (rules::axis("rename", attrs, "from")?, rules::axis("rename", attrs, "to")?);
    let at = rules::has("rename", 0, x, from)?;
    let mut shape = x.shape.clone();
    shape[at] = to;
    match x.position(to) {
        Some(p) if p != at => {
            let message =
                format!("`rename`: `{{0}}` already has an axis `{to}`; its axes are {}", rules::list(&x.shape));
            Err(TypeError::at(0, "K0104", message).argument(Argument::Axis(to)))
        }
        _ => Ok(vec![Type::new(x.dtype, shape)]),
    }
}
