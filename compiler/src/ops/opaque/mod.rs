//! `opaque`: the user's own operation (`#[op]`), known by its name and result types only; its reference and derivative are the user's.
//!
//! Its attribute `vjp` names the operation from operands and cotangents of the results to cotangents of the float operands.

use super::{Class, EvalCx, EvalNode, OpDef, TypeError, Vjp, VjpNode, rules};
use crate::interp::Array;
use crate::ir::{Attrs, Builder, DType, Type, ValueId};
use std::sync::OnceLock;

/// Runs the user's reference: name of the operation, operands with their types, sizes of the results.
pub type Reference = fn(&str, &[(&Type, &Array)], &[Vec<usize>]) -> Vec<Array>;

static REFERENCE: OnceLock<Reference> = OnceLock::new();

/// Lets the interpreter run the references of operations, which belong to the crates that declare them. The first call counts.
pub fn set_reference(run: Reference) {
    REFERENCE.get_or_init(|| run);
}

/// Results of type `dtype` over `out0`, `out1`, ..; executed by the kernel registered under `name`.
pub static DEF: OpDef = OpDef {
    name: "opaque",
    class: Class::Library,
    infer,
    vjp: Vjp::Declared(vjp),
    eval,
    expand: None,
    scalar: None,
    flops: rules::free,
};

fn eval(cx: &EvalCx<'_>, n: &EvalNode<'_>) -> Vec<Array> {
    let name = n.attrs().str("name");
    let Some(run) = REFERENCE.get() else { panic!("the reference of `{name}` belongs to the user's crate") };
    let operands: Vec<(&Type, &Array)> = n.arg_types.iter().copied().zip(n.args.iter().copied()).collect();
    let dims: Vec<Vec<usize>> = n.result_types.iter().map(|t| cx.sizes.shape(&t.shape)).collect();
    run(name, &operands, &dims)
}

fn infer(attrs: &Attrs, _: &[&Type]) -> Result<Vec<Type>, TypeError> {
    rules::word("opaque", attrs, "name")?;
    if attrs.get("vjp").is_some() {
        rules::word("opaque", attrs, "vjp")?;
    }
    rules::declared_outputs("opaque", attrs)
}

/// (x̄₀, ..) = vjp(x₀, .., ȳ₀, ..), in f32; ids and masks have no cotangent.
fn vjp(b: &mut Builder, n: &VjpNode<'_>) -> Vec<Option<ValueId>> {
    let mut operands = n.node.inputs.clone();
    for (cotangent, &y) in n.cotangents.iter().zip(&n.node.outputs) {
        let d = cotangent.unwrap_or_else(|| b.constant_like(0.0, y));
        operands.push(d);
    }
    let floats: Vec<bool> = n.node.inputs.iter().map(|&x| b.ty(x).dtype.is_float()).collect();
    let shapes = n.node.inputs.iter().zip(&floats).filter(|(_, f)| **f).map(|(&x, _)| b.shape(x)).collect::<Vec<_>>();
    let attrs = Attrs::new().with("name", n.node.attrs.str("vjp")).with("dtype", DType::F32);
    let attrs = shapes
        .iter()
        .enumerate()
        .fold(attrs.with("outs", shapes.len() as i64), |a, (i, s)| a.with(&format!("out{i}"), s.as_slice()));
    let mut cotangents = b.ops("opaque", attrs, &operands).into_iter();
    floats.into_iter().map(|float| if float { cotangents.next() } else { None }).collect()
}

#[cfg(test)]
mod tests {
    use crate::diff::{self, Activity};
    use crate::ir::text::parse_func;

    const SCAN: &str = "fn(%0 x: f32[B, S], %1 ids: i32[B], %2 w: f32[S]) {
        %3: f32[B, S] = opaque(%0, %1, %2) {dtype=:f32, name=\"m::scan\", out0=[B, S], outs=1VJP} @7:3
        return %3
    }";

    fn joint(vjp: &str) -> Result<diff::Joint, diff::DiffError> {
        let func = parse_func(&SCAN.replace("VJP", vjp)).expect("the text is IR");
        diff::run(&func, &[Activity::Activation, Activity::Inactive, Activity::Parameter], &[true])
    }

    #[test]
    fn the_users_derivative_takes_operands_and_cotangents() {
        let joint = joint(", vjp=\"m::scan_vjp\"").expect("the derivative is declared");
        let node = &joint.func.nodes[1];
        assert_eq!((node.op.name, node.attrs.str("name")), ("opaque", "m::scan_vjp"));
        assert_eq!(node.inputs.len(), 4);
        let shapes: Vec<String> = node.outputs.iter().map(|&v| joint.func.ty(v).to_string()).collect();
        assert_eq!(shapes, ["f32[B, S]", "f32[S]"]);
    }

    #[test]
    fn without_a_derivative_the_path_is_an_error_that_names_the_operation() {
        let error = joint("").expect_err("there is no derivative");
        assert_eq!(error.diagnostic.code, "K0601");
        assert!(error.diagnostic.message.contains("`m::scan`"), "{}", error.diagnostic);
    }
}
