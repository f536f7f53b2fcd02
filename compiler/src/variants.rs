//! The canonical variants of a layer, whose kernels the macro emits: mesh off, and the annotated axis on; every choice of its host flags.
//!
//! In: a primal layer. Out: each distinct fused region once, in the order of the forward and backward launches. It runs the same
//! passes as linking, so that linking finds every kernel that it asks for.

use crate::compile::{self, CompiledLayer, Structural};
use crate::diff::{self, Activity, DiffError};
use crate::fuse::{LaunchKind, Region};
use crate::ir::{ArgKind, Attr, ConfigType, DType, Func, Layer, Node, Output, Span, Type};
use crate::{place, precision, simplify};
use std::collections::HashSet;
use std::sync::Arc;

/// With n flags there are 2ⁿ bodies; beyond this many flags only the body with all flags off is compiled ahead of time.
const MOST_FLAGS: usize = 3;

/// A region with the name of its kernel.
pub struct Named {
    /// Such as `block_bwd_3`.
    pub name: String,
    /// The region.
    pub region: Arc<Region>,
}

/// What each input of a layer's body is to differentiation.
pub fn activity(layer: &Layer) -> Vec<Activity> {
    let of = |kind: &ArgKind| match kind {
        ArgKind::Input(ty) if ty.dtype.is_float() => Activity::Activation,
        ArgKind::Param { frozen: false, .. } | ArgKind::Tied { .. } => Activity::Parameter,
        _ => Activity::Inactive,
    };
    layer.body_args().map(|(_, arg)| of(&arg.kind)).collect()
}

/// Which outputs of a layer have a cotangent: the count of a loss has none.
pub fn differentiated(layer: &Layer) -> Vec<bool> {
    match layer.output {
        Output::Loss => vec![true, false],
        Output::Tensors => vec![true; layer.body.outputs.len()],
    }
}

/// What a value is to the differentiation of a loop's body: scalars are rotary bases.
pub fn carried_activity(ty: &Type) -> Activity {
    if ty.dtype.is_float() && ty.rank() > 0 { Activity::Activation } else { Activity::Inactive }
}

/// Positions of the nodes that differentiation adds to a layer and that satisfy `is`; a backward node keeps that of its operation.
pub fn backward_nodes(layer: &Layer, is: impl Fn(&Node) -> bool + Copy) -> Result<Vec<Span>, DiffError> {
    let mut found = Vec::new();
    for body in chosen(layer) {
        collect(&body, &activity(layer), &differentiated(layer), is, &mut found)?;
    }
    Ok(found)
}

fn collect(
    body: &Func,
    activity: &[Activity],
    differentiated: &[bool],
    is: impl Fn(&Node) -> bool + Copy,
    found: &mut Vec<Span>,
) -> Result<(), DiffError> {
    let joint = diff::run(body, activity, differentiated)?;
    found.extend(joint.func.nodes[body.nodes.len()..].iter().filter(|n| is(n)).map(|n| n.span));
    for inner in body.nodes.iter().flat_map(|n| &n.bodies) {
        let active: Vec<Activity> = inner.inputs.iter().map(|&v| carried_activity(inner.ty(v))).collect();
        collect(inner, &active, &vec![true; inner.outputs.len()], is, found)?;
    }
    Ok(())
}

/// The distinct regions of all canonical variants.
pub fn regions(layer: &Layer) -> Result<Vec<Named>, DiffError> {
    let mut seen = HashSet::new();
    let mut out = Vec::new();
    for (i, body) in bodies(layer).iter().enumerate() {
        // The variants are told apart in names only: a region that two of them share is emitted once.
        let variant = if i == 0 { String::new() } else { format!("_v{i}") };
        let train = compile::compile_layer(body, &activity(layer), &differentiated(layer))?;
        let mut compiled = vec![(String::new(), train), ("eval_".to_owned(), compile::compile_forward(body))];
        for body in repeats(&compiled[0].1) {
            let active: Vec<Activity> = body.inputs.iter().map(|&v| carried_activity(body.ty(v))).collect();
            compiled.push(("loop_".to_owned(), compile::compile_layer(&body, &active, &[true])?));
            compiled.push(("loop_eval_".to_owned(), compile::compile_forward(&body)));
        }
        for (part, c) in &compiled {
            let launches = [("fwd", &c.forward), ("bwd", &c.backward)];
            for (direction, launch) in launches.iter().flat_map(|(d, list)| list.iter().map(move |l| (d, l))) {
                let LaunchKind::Region(region) = &launch.kind else { continue };
                if seen.insert(region.hash()) {
                    let name = format!("{}_{part}{direction}_{}{variant}", layer.name, out.len());
                    out.push(Named { name, region: region.clone() });
                }
            }
        }
    }
    Ok(out)
}

/// The bodies of loops over copies, each compiled as a layer of its own.
fn repeats(c: &CompiledLayer) -> Vec<Func> {
    let loops = c.forward.iter().filter_map(|l| match compile::structural(l) {
        Structural::Repeat { body, .. } => Some(body.clone()),
        Structural::Call { .. } | Structural::None => None,
    });
    loops.collect()
}

/// The body for each choice of flags, whole and with the annotated axis split.
fn bodies(layer: &Layer) -> Vec<Func> {
    let mut out = Vec::new();
    for primal in chosen(layer) {
        let whole = precision::run(&primal, DType::Compute);
        let axis = layer.annotations.shard.as_ref().filter(|(s, _)| s.mesh == "tensor").and_then(|(s, _)| s.axis);
        // An axis that cannot be split is reported by the check of the annotation.
        let split = axis.and_then(|axis| place::run(&whole, axis, "tensor").ok());
        out.push(whole);
        out.extend(split);
    }
    out
}

/// The body with its host flags bound, one for each choice.
fn chosen(layer: &Layer) -> Vec<Func> {
    let flags: Vec<&str> = layer
        .args
        .iter()
        .filter(|a| matches!(a.kind, ArgKind::Config { ty: ConfigType::Bool, .. }))
        .map(|a| a.name.as_str())
        .collect();
    let choices = if flags.len() > MOST_FLAGS { 1 } else { 1 << flags.len() };
    let bound = (0..choices).map(|choice: usize| {
        let mut body = layer.body.clone();
        simplify::bind_config(&mut body, &|name| {
            flags.iter().position(|f| *f == name).map(|i| Attr::Bool(choice >> i & 1 == 1))
        });
        simplify::inline_select(&body)
    });
    bound.collect()
}
