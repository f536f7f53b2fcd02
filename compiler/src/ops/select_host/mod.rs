//! `select_host`: one of two bodies over the captured values, chosen by a `#[config]` value when the model is linked.

use super::{Class, EvalCx, EvalNode, OpDef, TypeError, Vjp, rules};
use crate::interp::{self, Array};
use crate::ir::{Attr, Attrs, Type};

/// Results of `bodies[0]` if `cond` holds, of `bodies[1]` otherwise; their types are `out0`, `out1`, .. with `dtype`.
pub static DEF: OpDef = OpDef {
    name: "select_host",
    class: Class::Structural,
    infer,
    vjp: Vjp::Structural,
    eval,
    expand: None,
    scalar: None,
    flops: rules::free,
};

fn infer(attrs: &Attrs, _: &[&Type]) -> Result<Vec<Type>, TypeError> {
    match attrs.get("cond") {
        Some(Attr::Config(_) | Attr::Bool(_)) => rules::declared_outputs("select_host", attrs),
        _ => Err(TypeError::new("K0117", "`if` on the host needs a `#[config]` value of type `bool`")),
    }
}

fn eval(cx: &EvalCx<'_>, n: &EvalNode<'_>) -> Vec<Array> {
    let branch = match n.attrs().get("cond") {
        Some(Attr::Bool(true)) => 0,
        Some(Attr::Bool(false)) => 1,
        other => panic!("linking replaces the condition {other:?} before anything is evaluated"),
    };
    let inputs: Vec<Array> = n.args.iter().map(|&a| a.clone()).collect();
    interp::run(cx, &n.node.bodies[branch], &inputs)
}
