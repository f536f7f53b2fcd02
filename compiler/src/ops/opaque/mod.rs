//! `opaque`: the user's own operation (`#[op]`), known by its name and result types only; its reference and derivative are the user's.

use super::{Class, OpDef, TypeError, Vjp, rules};
use crate::ir::{Attrs, Type};

/// Results of type `dtype` over `out0`, `out1`, ..; executed by the kernel registered under `name`.
pub static DEF: OpDef = OpDef {
    name: "opaque",
    class: Class::Library,
    infer,
    vjp: Vjp::Missing,
    eval: |_, n| panic!("the reference of `{}` belongs to the user's crate", n.attrs().str("name")),
    expand: None,
    scalar: None,
    flops: rules::free,
};

fn infer(attrs: &Attrs, _: &[&Type]) -> Result<Vec<Type>, TypeError> {
    rules::word("opaque", attrs, "name")?;
    rules::declared_outputs("opaque", attrs)
}
