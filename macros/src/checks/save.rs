//! `#[checkpoint(save = ..)]` and `#[precision(int8)]` against the layer that they stand on.

use crate::body::Body;
use crate::diagnostics::{Errors, closest, listed};
use crate::signature::{Kind, Signature};

/// `save = [q, h]` names `let` bindings of the body.
pub fn check_saved_names_are_bound(signature: &mut Signature, body: &Body, errors: &Errors) {
    let Some(checkpoint) = &signature.annotations.checkpoint else { return };
    if signature.trace {
        return;
    }
    for name in &checkpoint.saved {
        let word = name.to_string();
        if body.bindings.contains(&word) {
            continue;
        }
        let help = match closest(&word, body.bindings.iter().map(String::as_str)) {
            Some(near) => format!("did you mean `{near}`?"),
            None if body.bindings.is_empty() => "bind the value first: `let h = ..;`".to_owned(),
            None => format!("the bindings of this body are {}", listed(&body.bindings)),
        };
        errors.push(name, "K0403", format!("`{}` binds no `{word}`", signature.name()), help);
    }
}

/// `int8` and `int4` are weight-only: their parameters cannot be trained.
pub fn check_weight_only_types_have_frozen_params(signature: &mut Signature, _: &Body, errors: &Errors) {
    let Some(precision) = &signature.annotations.precision else { return };
    let compute = precision.value.compute.as_str();
    if !matches!(compute, "int8" | "int4") {
        return;
    }
    let trained = signature.args.iter().find(|a| matches!(a.kind, Kind::Param { frozen: false, .. }));
    if let Some(arg) = trained {
        let message = format!("`{compute}` is weight-only, but parameter `{}` is trained", arg.name);
        errors.push(&precision.word, "K0415", message, "add `#[frozen]` to its parameters, or compute in `bf16`");
    }
}
