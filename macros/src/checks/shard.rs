//! `#[shard(..)]` against the layer: which axis is split, and whether the answer is unique.

use crate::body::Body;
use crate::diagnostics::{Errors, listed};
use crate::signature::{Kind, OutputDecl, Signature, axis_of};
use kiln_compiler::ir::{Attr, Axis, Func, Node, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// `#[shard(tensor = Q)]` names an axis of the layer.
pub fn check_shard_axis_exists(signature: &mut Signature, _: &Body, errors: &Errors) {
    let Some(axis) = signature.annotations.shard.as_ref().and_then(|s| s.axis.as_ref()) else { return };
    if !signature.axes.contains_key(&axis.to_string()) {
        let names = signature.axes.keys().cloned().collect::<Vec<_>>().join(", ");
        let message = format!("`{axis}` is not an axis of `{}`; its axes are {names}", signature.name());
        errors.push(axis, "K0203", message, "name the axis that is split over the ranks");
    }
}

/// `data` and `pipeline` stand on arguments.
pub fn check_mesh_axis_stands_on_layers(signature: &mut Signature, _: &Body, errors: &Errors) {
    let Some(shard) = &signature.annotations.shard else { return };
    let help = match shard.value.mesh.as_str() {
        "data" => {
            "write it on a parameter: it is then stored in parts; `mesh![data = ..]` splits the batch of the whole model"
        }
        "pipeline" => "write it on the `Repeat` whose copies are dealt out",
        _ => return,
    };
    let message = format!("`#[shard({})]` does not stand on a layer", shard.value.mesh);
    errors.push(&shard.mesh, "K0414", message, help);
}

/// `#[shard(tensor)]` asks for the one private axis that parameters contract with each other.
pub fn infer_private_axis(signature: &mut Signature, body: &Body, errors: &Errors) {
    let Some(shard) = signature.annotations.shard.as_ref() else { return };
    if shard.value.mesh != "tensor" || shard.axis.is_some() || !errors.is_empty() {
        return;
    }
    let candidates = candidates(signature, &body.func);
    let name = signature.name();
    match candidates.as_slice() {
        [axis] => {
            let axis = *axis;
            if let Some(shard) = signature.annotations.shard.as_mut() {
                shard.value.axis = Some(axis);
            }
        }
        [] => {
            let message = format!("`#[shard(tensor)]` finds no axis to split in `{name}`");
            let help = "it looks for an axis of two parameters, contracted between them, in no input or output, that no operation needs whole; `#[shard(tensor = F)]` names one";
            errors.push(&shard.mesh, "K0411", message, help);
        }
        several => {
            let message = format!("`#[shard(tensor)]` can split {} in `{name}`", listed(several));
            let help = several
                .iter()
                .map(|a| {
                    format!("`#[shard(tensor = {a})]`: each rank holds a part of {}", parameters_with(signature, *a))
                })
                .collect::<Vec<_>>()
                .join("; ");
            errors.push(&shard.mesh, "K0411", message, help);
        }
    }
}

fn parameters_with(signature: &Signature, axis: Axis) -> String {
    listed(signature.args.iter().filter_map(|a| match &a.kind {
        Kind::Param { ty, .. } if ty.to_ir().position(axis).is_some() => Some(format!("`{}`", a.name)),
        _ => None,
    }))
}

/// Axes in two parameters or more, in no activation of the signature, that a contraction sums and no operation needs whole.
fn candidates(signature: &Signature, func: &Func) -> Vec<Axis> {
    let mut public: BTreeSet<Axis> = BTreeSet::new();
    let mut in_params: BTreeMap<Axis, usize> = BTreeMap::new();
    for arg in &signature.args {
        match &arg.kind {
            Kind::Input(t) => public.extend(t.to_ir().shape),
            Kind::Rope { seq, head } => public.extend([axis_of(seq), axis_of(head)]),
            Kind::Param { ty, .. } => ty.to_ir().shape.into_iter().for_each(|a| *in_params.entry(a).or_default() += 1),
            Kind::Sub(_) | Kind::Config { .. } | Kind::Wrong => {}
        }
    }
    match &signature.output {
        OutputDecl::Tensor(t) => public.extend(t.to_ir().shape),
        OutputDecl::Tuple(ts) => ts.iter().for_each(|t| public.extend(t.to_ir().shape)),
        OutputDecl::Loss | OutputDecl::Wrong => {}
    }
    let mut contracted = BTreeSet::new();
    let mut whole = BTreeSet::new();
    for node in &func.nodes {
        match node.op.name {
            "dot_general" => {
                let out = node.attrs.axes("out");
                let both =
                    func.ty(node.inputs[0]).shape.iter().filter(|a| func.ty(node.inputs[1]).position(**a).is_some());
                contracted.extend(both.filter(|a| !out.contains(a)).copied());
            }
            _ => whole.extend(needed_whole(func, node)),
        }
    }
    in_params
        .into_iter()
        .filter(|(a, n)| *n >= 2 && !public.contains(a) && contracted.contains(a) && !whole.contains(a))
        .map(|(a, _)| a)
        .collect()
}

/// Axes along which an operation mixes elements, other than by a sum of products.
fn needed_whole(func: &Func, node: &Node) -> Vec<Axis> {
    let last = |v: ValueId| func.ty(v).shape.last().copied();
    match node.op.name {
        "attention" => {
            let head = last(node.inputs[0]).into_iter();
            head.chain(func.ty(node.inputs[1]).shape.iter().rev().take(2).copied()).collect()
        }
        "rms_norm" | "layer_norm" => last(node.inputs[0]).into_iter().collect(),
        "rope" => vec![node.attrs.axis("head"), node.attrs.axis("seq")],
        "call" | "repeat" | "select_host" => node.inputs.iter().flat_map(|v| func.ty(*v).shape.clone()).collect(),
        _ => node
            .attrs
            .iter()
            .filter(|(name, _)| matches!(*name, "axis" | "axes" | "into" | "to" | "from"))
            .filter(|_| !matches!(node.op.name, "broadcast" | "permute"))
            .flat_map(|(_, a)| match a {
                Attr::Axis(a) => vec![*a],
                Attr::Axes(a) => a.clone(),
                _ => Vec::new(),
            })
            .collect(),
    }
}
