//! Parsed, recorded, interpreted and eager bodies agree.

use super::model::{Methods, Swiglu, methods, numbers, tensor};
use crate::layer::{Layer as _, LayerDef};
use crate::prelude::*;
use crate::tensor::eager::uniform;
use crate::tensor::{Frame, record};
use kiln_compiler::interp::{self, Array};
use kiln_compiler::ir::{Axis, Sizes};
use kiln_compiler::ops::EvalCx;
use std::collections::BTreeMap;

#[test]
fn parser_and_recording_agree_on_every_layer() {
    let report = crate::check::recordings().unwrap_or_else(|e| panic!("{e}"));
    let model = [
        "attention",
        "block",
        "gpt",
        "gpt_logits",
        "methods",
        "perceptron",
        "swiglu",
        "trunk",
        "two_losses",
        "switched",
    ];
    let compared = |name: &str| report.compared.iter().any(|n| n == name);
    assert!(model.iter().all(|name| compared(name)), "{report:?}");
    assert!(compared("linear over [B, D], [D, F]") && compared("linear over [B, F], [F, D]"), "{report:?}");
    assert!(report.recorded_only.iter().any(|n| n == "powers"), "{report:?}");
}

#[test]
fn a_difference_between_parser_and_recording_is_found() {
    let ir: &'static str = Box::leak(Swiglu::DEF.ir.replace("silu", "gelu").into_boxed_str());
    let def = LayerDef { ir, ..copy(Swiglu::DEF) };
    let failure = crate::check::recorded_is_parsed(Box::leak(Box::new(def))).expect_err("the operations differ");
    assert!(failure.message.contains("gelu(%4)") && failure.message.contains("silu(%4)"), "{failure}");
}

fn copy(def: &LayerDef) -> LayerDef {
    let LayerDef { name, type_name, module, ir, sig, subs, ops, kernels, record } = *def;
    LayerDef { name, type_name, module, ir, sig, subs, ops, kernels, record }
}

/// Rounding after each of at most this many methods, each of which amplifies an error by less than 8 on these numbers.
const METHODS: f64 = 32.0 * 8.0;

#[test]
fn the_eager_run_is_the_interpreted_ir() {
    let sizes: Sizes = [("B", 2), ("S", 3), ("D", 4), ("G", 2), ("K", 2), ("T", 3)]
        .map(|(a, n)| (Axis::of(a), n))
        .into_iter()
        .collect();
    let def = Methods::DEF;
    let layer =
        record(def, def.record.expect("it can be recorded"), &BTreeMap::new()).unwrap_or_else(|e| panic!("{e}"));
    let numbers = |dims: &[usize], seed| numbers(dims.iter().product(), seed).into_iter().map(f64::from).collect();
    let array = |dims: &[usize], seed| Array::new(dims, numbers(dims, seed));
    let inputs = [array(&[2, 3, 4], 1), Array::scalar(100.0), array(&[4], 2), array(&[4], 3)];
    let uniform = |site: i64, index: u64| uniform(0, "methods", site, index);
    let expected = interp::run(&EvalCx { sizes: &sizes, uniform: &uniform }, &layer.body, &inputs);

    let frame = Frame::enter("outer");
    frame.argument(Tensor::zeros(&[2, 2]), "sizes of the heads", &["G", "K"]);
    let y = methods(tensor(&[2, 3, 4], 1), Rope::new(100.0), 0.5, 0.1, tensor(&[4], 2), tensor(&[4], 3));
    for (found, &expected) in y.to_vec().into_iter().zip(&expected[0].data) {
        let error = (f64::from(found) - expected).abs();
        assert!(error <= METHODS * f64::from(f32::EPSILON) * expected.abs().max(1.0), "{found} is not {expected}");
    }
}
