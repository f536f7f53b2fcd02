//! Collectives on a named mesh axis. Sizes of axes are those of one rank, so no type changes; each derivative is the transpose.
//!
//! The interpreter is one rank, where all of them are the identity.

use super::{Class, OpDef, TypeError, Vjp, VjpNode, rules};
use crate::ir::{Attrs, Builder, Type, ValueId};

macro_rules! collective {
    ($($(#[$doc:meta])* $def:ident $name:literal $transpose:literal $infer:ident;)*) => {$(
        $(#[$doc])*
        pub static $def: OpDef = OpDef {
            name: $name,
            class: Class::Collective,
            infer: |attrs, xs| $infer($name, attrs, xs),
            vjp: Vjp::Rule(|b, n| transpose($transpose, b, n)),
            eval: |_, n| vec![n.args[0].clone()],
            expand: None,
            scalar: None,
            flops: rules::free,
        };
    )*};
}

collective! {
    /// y = Σ over ranks of x, the same on all (partial → invariant); x̄ = pbroadcast ȳ.
    ALL_REDUCE "all_reduce" "pbroadcast" whole;
    /// y = x, seen as one value per rank (invariant → varying); x̄ = all_reduce ȳ.
    PBROADCAST "pbroadcast" "all_reduce" whole;
    /// y = the parts of x along `axis` from all ranks (split → varying); x̄ = reduce_scatter ȳ.
    ALL_GATHER "all_gather" "reduce_scatter" along;
    /// y = this rank's part along `axis` of Σ over ranks of x (partial → split); x̄ = all_gather ȳ.
    REDUCE_SCATTER "reduce_scatter" "all_gather" along;
    /// y = this rank's part of x along `axis` (invariant → split); x̄ = all_gather ȳ.
    PSLICE "pslice" "all_gather" along;
}

fn whole(op: &str, attrs: &Attrs, xs: &[&Type]) -> Result<Vec<Type>, TypeError> {
    let [x] = rules::operands(op, xs)?;
    rules::float(op, 0, x)?;
    rules::word(op, attrs, "mesh")?;
    Ok(vec![x.clone()])
}

fn along(op: &str, attrs: &Attrs, xs: &[&Type]) -> Result<Vec<Type>, TypeError> {
    let ty = whole(op, attrs, xs)?;
    rules::has(op, 0, xs[0], rules::axis(op, attrs, "axis")?)?;
    Ok(ty)
}

fn transpose(op: &str, b: &mut Builder, n: &VjpNode<'_>) -> Vec<Option<ValueId>> {
    vec![Some(b.op(op, n.node.attrs.clone(), &[n.dy()]))]
}
