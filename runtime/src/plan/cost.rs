//! What a step must move and compute, whatever the device.

use super::{Plan, Step, Work};
use crate::link::Model;

/// Bytes and operations of one step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Bytes of all operands and results, each counted once; a table that is gathered from counts whole.
    pub bytes: usize,
    /// Floating-point operations of products: two for a multiplication and an addition.
    pub flops: f64,
}

/// Bytes and operations of a step of a plan.
pub fn cost(plan: &Plan, step: &Step) -> Cost {
    Cost { bytes: bytes(plan, step), flops: flops(step) }
}

/// What a step of a model runs: the kernel that a macro wrote, or an operation with the axes of its operands, so that each shape has a name
/// of its own.
pub fn name(model: &Model, step: &Step) -> String {
    let word = step.work.name();
    match &step.work {
        Work::Region { region, .. } => model.kernel(region.hash()).map_or(word, |k| k.name.to_owned()),
        Work::Library { inputs, .. } => {
            let shapes = inputs.iter().map(|t| t.shape.iter().map(ToString::to_string).collect::<String>());
            format!("{word} {}", shapes.collect::<Vec<_>>().join(","))
        }
        Work::Accumulate(_) | Work::AllReduce { .. } => word,
    }
}

fn bytes(plan: &Plan, step: &Step) -> usize {
    let mut inputs = step.inputs.clone();
    inputs.sort_unstable();
    inputs.dedup();
    inputs.iter().chain(&step.outputs).map(|&b| plan.buffers[b].bytes()).sum()
}

/// Products of an operation: two operations for each multiplication, under the causal mask for half of the pairs, as the compiler counts.
fn flops(step: &Step) -> f64 {
    let Work::Library { op, attrs, inputs, .. } = &step.work else { return 0.0 };
    let [a, b, ..] = inputs.as_slice() else { return 0.0 };
    let elements = |axes: &[_]| 2.0 * step.sizes.elements(axes) as f64;
    // Every point of the joint index space is one multiplication.
    let joint = || {
        let mut all = a.shape.clone();
        all.extend(b.shape.iter().filter(|axis| !a.shape.contains(axis)));
        elements(&all)
    };
    // Keys lie along the last axis but one, whose name may be that of the queries' axis.
    let scores = || {
        let keys = b.shape.len().checked_sub(2).map_or(1, |i| step.sizes.of(b.shape[i])) as f64;
        elements(&a.shape) * if attrs.flag("causal") { keys / 2.0 } else { keys }
    };
    match op.name {
        "dot_general" => joint(),
        // Scores, and their product with the values.
        "attention" => 2.0 * scores(),
        // Scores again, and the cotangents of probabilities, queries, keys and values.
        "attention_vjp" => 5.0 * scores(),
        "linear_cross_entropy" => joint(),
        // Logits again, and the cotangents of both operands.
        "linear_cross_entropy_vjp" => 3.0 * joint(),
        _ => 0.0,
    }
}
