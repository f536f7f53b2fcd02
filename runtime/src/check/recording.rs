//! What the parser makes of a body and what recording makes of it are one function, up to names, positions and unknown axes.

use super::{Failure, instance_name};
use crate::layer::LayerDef;
use crate::tensor::{make_concrete, record};
use crate::user_op;
use kiln_compiler::ir::text::{parse_layer, print_layer};
use kiln_compiler::ir::{
    ArgKind, Attr, Axis, ConfigType, ConfigValue, Func, Layer, Span, ValueId, rename_axes, verify,
};
use kiln_compiler::simplify::{bind_config, inline_select};
use std::collections::{BTreeMap, HashMap};

/// With n flags there are 2ⁿ bodies; beyond this many flags the first ones only are switched.
const MOST_FLAGS: usize = 6;

/// Values of `#[config]` arguments without a default.
const SOME_FLOAT: f64 = 0.25;
const SOME_INT: i64 = 2;

/// Compares the two functions of a layer for every choice of its flags; false if its body is recorded only.
///
/// # Errors
/// The first difference, or what the recording refuses.
pub fn recorded_is_parsed(def: &'static LayerDef) -> Result<bool, Failure> {
    let fail = |message: String| Failure { layer: instance_name(def), message };
    let mut parsed = parse_layer(def.ir).map_err(|e| fail(format!("its IR cannot be read: {e}")))?;
    let body = def.record.ok_or_else(|| fail("it cannot be recorded".to_owned()))?;
    make_concrete(&mut parsed, def.sig);
    user_op::resolve(&mut parsed.body, def.ops).map_err(|e| fail(e.to_string()))?;
    for config in choices(&parsed) {
        let recorded = record(def, body, &config).map_err(|e| fail(e.to_string()))?;
        let recorded = verify::layer(recorded).map_err(|e| fail(format!("recorded: {e}")))?.into_inner();
        if !parsed.annotations.trace {
            compare(&parsed, &recorded, &config).map_err(&fail)?;
        }
    }
    Ok(!parsed.annotations.trace)
}

fn compare(parsed: &Layer, recorded: &Layer, config: &BTreeMap<String, ConfigValue>) -> Result<(), String> {
    let mut parsed = parsed.clone();
    bind_config(&mut parsed.body, &|name| config.get(name).map(|v| attr(*v)));
    parsed.body = inline_select(&parsed.body);
    let recorded = comparable(recorded.clone());
    let mut parsed = comparable(parsed);
    name_unknown_axes(&mut parsed, &recorded);
    let (parsed, recorded) = (print_layer(&parsed), print_layer(&recorded));
    if parsed == recorded {
        return Ok(());
    }
    let line = parsed.lines().zip(recorded.lines()).find(|(a, b)| a != b);
    let (a, b) = line.unwrap_or(("(its end)", "(its end)"));
    Err(format!("parsed:   {}\nrecorded: {}\nwith {config:?}\n{parsed}\n{recorded}", a.trim(), b.trim()))
}

/// Every choice of the flags, with the default or some value of the other `#[config]` arguments.
fn choices(layer: &Layer) -> Vec<BTreeMap<String, ConfigValue>> {
    let mut first = BTreeMap::new();
    let mut flags = Vec::new();
    for arg in &layer.args {
        let ArgKind::Config { ty, default } = &arg.kind else { continue };
        let value = default.unwrap_or(match ty {
            ConfigType::Bool => ConfigValue::Bool(false),
            ConfigType::Int => ConfigValue::Int(SOME_INT),
            ConfigType::Float => ConfigValue::Float(SOME_FLOAT),
        });
        first.insert(arg.name.clone(), value);
        if *ty == ConfigType::Bool {
            flags.push(arg.name.clone());
        }
    }
    flags.truncate(MOST_FLAGS);
    let choice = |bits: usize| {
        let mut config = first.clone();
        config.extend(flags.iter().enumerate().map(|(i, f)| (f.clone(), ConfigValue::Bool(bits >> i & 1 == 1))));
        config
    };
    (0..1 << flags.len()).map(choice).collect()
}

fn attr(value: ConfigValue) -> Attr {
    match value {
        ConfigValue::Bool(b) => Attr::Bool(b),
        ConfigValue::Int(i) => Attr::Int(i),
        ConfigValue::Float(x) => Attr::Float(x),
    }
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
    collect_unknown(&layer.body, &like.body, &mut known);
    rename_axes(layer, &|a| known.get(&a).copied().unwrap_or(a));
}

fn collect_unknown(func: &Func, like: &Func, known: &mut HashMap<Axis, Axis>) {
    for (a, b) in func.values.iter().zip(&like.values) {
        known.extend(a.ty.shape.iter().copied().zip(b.ty.shape.iter().copied()).filter(|(a, _)| a.is_wildcard()));
    }
    let bodies = |f: &Func| f.nodes.iter().flat_map(|n| n.bodies.clone()).collect::<Vec<_>>();
    bodies(func).iter().zip(&bodies(like)).for_each(|(a, b)| collect_unknown(a, b, known));
}
