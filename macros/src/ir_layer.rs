//! Header and body joined into the compiler's [`ir::Layer`], with the private contracted axis that `#[shard(tensor)]` asks for.

use crate::annotations::position;
use crate::body::Body;
use crate::signature::{Kind, OutputDecl, Signature, axis_of};
use kiln_compiler::ir::{self, Arg, ArgKind, Func};

/// The layer as the compiler wants it.
pub fn ir_layer(signature: &Signature, body: &Body) -> ir::Layer {
    let mut args: Vec<Arg> = signature
        .args
        .iter()
        .filter_map(|a| {
            let kind = arg_kind(&a.kind)?;
            Some(Arg { name: a.name.to_string(), kind, span: position(&a.name) })
        })
        .collect();
    args.extend(body.tied.iter().map(|(_, path, id)| {
        let kind = ArgKind::Tied { path: path.clone(), ty: body.func.ty(*id).clone() };
        Arg { name: path.clone(), kind, span: position(&signature.item.sig.ident) }
    }));
    let output = match signature.output {
        OutputDecl::Loss => ir::Output::Loss,
        OutputDecl::Tensor(_) | OutputDecl::Tuple(_) | OutputDecl::Wrong => ir::Output::Tensors,
    };
    ir::Layer {
        name: signature.name(),
        file: signature.item.sig.ident.span().file(),
        generics: signature.generics.iter().map(axis_of).collect(),
        args,
        output,
        annotations: signature.annotations.to_ir(signature.trace),
        body: dense(&body.func),
    }
}

fn arg_kind(kind: &Kind) -> Option<ArgKind> {
    Some(match kind {
        Kind::Input(t) => ArgKind::Input(t.to_ir()),
        Kind::Rope { seq, head } => ArgKind::Rope { seq: axis_of(seq), head: axis_of(head) },
        Kind::Param { ty, init, frozen, shard } => ArgKind::Param {
            ty: ty.to_ir(),
            init: *init,
            frozen: *frozen,
            shard: shard.as_ref().map(|s| s.value.clone()),
        },
        Kind::Sub(s) => ArgKind::Sub(ir::SubLayer {
            layer: s.layer.to_string(),
            generics: s.generics.iter().map(axis_of).collect(),
            repeat: s.repeat.as_ref().map(axis_of),
            shard: s.shard.as_ref().map(|s| s.value.clone()),
        }),
        Kind::Config { ty, default } => ArgKind::Config { ty: *ty, default: *default },
        Kind::Wrong(_) => return None,
    })
}

/// The same function with values numbered in the order of their definitions: the text form is then stable under edits that add
/// nothing.
fn dense(func: &Func) -> Func {
    use kiln_compiler::ir::ValueId;
    let mut order: Vec<ValueId> = func.inputs.clone();
    for n in &func.nodes {
        order.extend(&n.outputs);
    }
    let mut place = vec![ValueId(u32::MAX); func.values.len()];
    for (i, v) in order.iter().enumerate() {
        place[v.index()] = ValueId(i as u32);
    }
    let at = |v: &ValueId| place[v.index()];
    let mut out = Func { values: order.iter().map(|v| func.values[v.index()].clone()).collect(), ..Func::default() };
    out.inputs = func.inputs.iter().map(at).collect();
    out.outputs = func.outputs.iter().map(at).collect();
    out.nodes = func.nodes.clone();
    for n in &mut out.nodes {
        n.inputs = n.inputs.iter().map(at).collect();
        n.outputs = n.outputs.iter().map(at).collect();
        n.bodies = n.bodies.iter().map(dense).collect();
    }
    out
}
