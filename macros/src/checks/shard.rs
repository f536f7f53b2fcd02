//! `#[shard(..)]` against the layer: the axis that is split, as placement sees it.

use crate::body::Body;
use crate::diagnostics::Errors;
use crate::ir_layer::ir_layer;
use crate::layer::token_at;
use crate::signature::Signature;
use kiln_compiler::ir::Span;
use kiln_compiler::place;

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

/// `#[shard(tensor)]` asks for the one private axis that parameters contract; `#[shard(tensor = F)]` for one that can be split.
pub fn check_split_axis(signature: &mut Signature, body: &Body, errors: &Errors) {
    let Some(shard) = signature.annotations.shard.as_ref().filter(|s| s.value.mesh == "tensor") else { return };
    // A traced body is checked when it has been recorded.
    if signature.trace || !errors.is_empty() || body.is_refused() {
        return;
    }
    let layer = ir_layer(signature, body);
    let Some(axis) = shard.value.axis else {
        match place::infer_axis(&layer) {
            Ok(axis) => {
                if let Some(shard) = signature.annotations.shard.as_mut() {
                    shard.value.axis = Some(axis);
                }
            }
            Err(candidates) => errors.report(&shard.mesh, candidates.diagnostic()),
        }
        return;
    };
    if let Err(e) = place::check_axis(&layer, axis) {
        match e.span == Span::default() {
            true => errors.report(&shard.axis, e.diagnostic),
            false => errors.report(token_at(signature, e.span), e.diagnostic),
        }
    }
}
