//! Rules about a whole layer, after its body is known: one function each, run in order.

mod axes;
mod save;
mod shard;

use crate::body::Body;
use crate::diagnostics::Errors;
use crate::signature::Signature;

type Check = fn(&mut Signature, &Body, &Errors);

const CHECKS: &[Check] = &[
    axes::check_type_name_is_free,
    axes::check_repeat_axis_is_only_counted,
    save::check_saved_names_are_bound,
    save::check_weight_only_types_have_frozen_params,
    shard::check_shard_axis_exists,
    shard::check_mesh_axis_stands_on_layers,
    shard::check_split_axis,
];

/// Runs every check.
pub fn run(signature: &mut Signature, body: &Body, errors: &Errors) {
    for check in CHECKS {
        check(signature, body, errors);
    }
}
