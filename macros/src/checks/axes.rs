//! Names and axes of the signature.

use crate::body::Body;
use crate::diagnostics::Errors;
use crate::signature::{Kind, Signature};
use quote::format_ident;

/// The struct's name must not be that of an axis: both would be types of this module.
pub fn check_type_name_is_free(signature: &mut Signature, _: &Body, errors: &Errors) {
    let name = &signature.type_name;
    if signature.axes.contains_key(&name.to_string()) {
        let message = format!("the struct of layer `{}` would be `{name}`, which is an axis", signature.name());
        errors.push(&signature.item.sig.ident, "K0214", message, "give the layer a longer name");
        // Rustc would refuse the second type of that name.
        signature.type_name = format_ident!("{name}Layer");
    }
}

/// The axis that counts the copies of a `Repeat` is no dimension of a tensor in the same layer.
pub fn check_repeat_axis_is_only_counted(signature: &mut Signature, _: &Body, errors: &Errors) {
    for (arg, sub) in signature.subs() {
        let Some(axis) = &sub.repeat else { continue };
        let used = signature.args.iter().find(|a| match &a.kind {
            Kind::Input(t) | Kind::Param { ty: t, .. } => t.axes.contains(axis),
            Kind::Rope { .. } | Kind::Sub(_) | Kind::Config { .. } | Kind::Wrong(_) => false,
        });
        if let Some(used) = used {
            let message =
                format!("`{axis}` counts the copies of `{}` and is also an axis of `{}`", arg.name, used.name);
            errors.push(axis, "K0220", message, "declare an axis of its own for the copies, such as `L`");
        }
    }
}
