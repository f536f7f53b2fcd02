//! `call` and `call_vjp`: a child layer's forward and backward, as one node each. Linking replaces them by the child's functions.

use super::{Class, OpDef, TypeError, Vjp, rules};
use crate::ir::{Attr, Attrs, Type};

/// `call(args..)` of child number `sub`: results of type `dtype` over `out0`, `out1`, ..; with `loss`, the pair (sum, count).
pub static CALL: OpDef = OpDef {
    name: "call",
    class: Class::Structural,
    infer,
    vjp: Vjp::Structural,
    eval: |_, n| panic!("linking replaces `{}` by the child's function before anything is evaluated", n.node.op.name),
    expand: None,
    scalar: None,
    flops: rules::free,
};

/// `call_vjp(args.., cotangents of the results..)`: with `n_inputs` arguments of the call first, and `mask` of one `0` or `1` for
/// each of them, the cotangents of those marked `1`, each of its argument's type. The other attributes are those of the call.
pub static CALL_VJP: OpDef = OpDef {
    name: "call_vjp",
    class: Class::Structural,
    infer: |attrs, xs| {
        infer(attrs, xs)?;
        infer_cotangents("call_vjp", attrs, xs)
    },
    vjp: Vjp::Missing,
    eval: |_, n| panic!("linking replaces `{}` by the child's function before anything is evaluated", n.node.op.name),
    expand: None,
    scalar: None,
    flops: rules::free,
};

fn infer(attrs: &Attrs, _: &[&Type]) -> Result<Vec<Type>, TypeError> {
    rules::count("call", attrs, "sub")?;
    match attrs.get("loss") {
        Some(Attr::Bool(true)) => Ok(vec![Type::f32([]), Type::f32([])]),
        _ => rules::declared_outputs("call", attrs),
    }
}

/// Results of a structural backward node: the types of the arguments that `mask` marks.
pub(super) fn infer_cotangents(op: &str, attrs: &Attrs, xs: &[&Type]) -> Result<Vec<Type>, TypeError> {
    let n_inputs = rules::count(op, attrs, "n_inputs")?;
    rules::at_least(op, xs, n_inputs)?;
    let mask = rules::word(op, attrs, "mask")?;
    if mask.len() != n_inputs || !mask.bytes().all(|m| matches!(m, b'0' | b'1')) {
        let message = format!("`{op}` needs a `0` or `1` for each of {n_inputs} arguments as `mask`; it is {mask:?}");
        return Err(TypeError::new("K0117", message));
    }
    let marked = (0..n_inputs).filter(|&i| mask.as_bytes()[i] == b'1');
    marked.map(|i| rules::float(op, i, xs[i]).map(|()| xs[i].clone())).collect()
}
