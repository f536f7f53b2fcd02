//! What the parser makes of a body and what recording makes of it are one IR, up to names, positions and unknown axes.

use super::model::{Methods, methods, numbers, tensor};
use crate::layer::{Layer as _, LayerDef};
use crate::prelude::*;
use crate::tensor::eager::uniform;
use crate::tensor::{Frame, record};
use kiln_compiler::interp::{self, Array};
use kiln_compiler::ir::text::{parse_layer, print_layer};
use kiln_compiler::ir::{ArgKind, Attr, Axis, ConfigValue, Func, Layer, Sizes, Span, ValueId, rename_axes};
use kiln_compiler::ops::EvalCx;
use kiln_compiler::simplify::bind_config;
use std::collections::{BTreeMap, HashMap};

/// The parser's layer with the default of every `#[config]` argument.
fn parsed(def: &LayerDef) -> Layer {
    let mut layer = parse_layer(def.ir).expect("the macro's text is IR");
    let defaults: BTreeMap<String, Attr> = layer
        .args
        .iter()
        .filter_map(|a| match a.kind {
            ArgKind::Config { default: Some(ConfigValue::Float(x)), .. } => Some((a.name.clone(), Attr::Float(x))),
            _ => None,
        })
        .collect();
    bind_config(&mut layer.body, &|name| defaults.get(name).cloned());
    layer
}

/// Values numbered by their definitions, without names and positions.
fn plain(func: &Func) -> Func {
    let mut out = Func::default();
    let mut new: HashMap<ValueId, ValueId> = HashMap::new();
    let mut define = |out: &mut Func, v: ValueId| {
        let id = out.add_value(func.ty(v).clone(), None);
        new.insert(v, id);
        id
    };
    out.inputs = func.inputs.iter().map(|&v| define(&mut out, v)).collect();
    for node in &func.nodes {
        let mut node = node.clone();
        node.span = Span::default();
        node.outputs.iter_mut().for_each(|v| *v = define(&mut out, *v));
        node.bodies = node.bodies.iter().map(plain).collect();
        out.nodes.push(node);
    }
    out.nodes.iter_mut().flat_map(|n| &mut n.inputs).for_each(|v| *v = new[v]);
    out.outputs = func.outputs.iter().map(|v| new[v]).collect();
    out
}

fn comparable(mut layer: Layer) -> Layer {
    layer.body = plain(&layer.body);
    layer.args.iter_mut().for_each(|a| a.span = Span::default());
    layer
}

/// The axes that the recording knows in place of those that the parser could not name.
fn name_unknown_axes(layer: &mut Layer, like: &Layer) {
    let mut known: HashMap<Axis, Axis> = HashMap::new();
    for (a, b) in layer.body.values.iter().zip(&like.body.values) {
        known.extend(a.ty.shape.iter().copied().zip(b.ty.shape.iter().copied()).filter(|(a, _)| a.is_wildcard()));
    }
    rename_axes(layer, &|a| known.get(&a).copied().unwrap_or(a));
}

#[test]
fn parser_and_recording_agree_on_every_layer() {
    let mut compared = Vec::new();
    // The parser has read the arguments of a traced layer only.
    for def in crate::layers().filter(|def| !parsed(def).annotations.trace) {
        let body = def.record.expect("every sound layer can be recorded");
        let recorded = comparable(record(def, body, &BTreeMap::new()).unwrap_or_else(|e| panic!("{e}")));
        let mut parsed = comparable(parsed(def));
        name_unknown_axes(&mut parsed, &recorded);
        assert_eq!(print_layer(&parsed), print_layer(&recorded), "`{}`: parsed, then recorded", def.name);
        compared.push(def.name);
    }
    compared.sort();
    let model = ["attention", "block", "gpt", "gpt_logits", "methods", "perceptron", "swiglu", "trunk", "two_losses"];
    assert!(model.iter().all(|name| compared.contains(name)), "{compared:?}");
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
