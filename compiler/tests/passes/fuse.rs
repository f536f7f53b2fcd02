//! Fusion: running the launches of a layer one by one gives what the interpreter gives for the unfused function.

use crate::models::{self, Model, agree, uniform};
use crate::programs::{self, COMPUTE};
use kiln_compiler::compile::{CompiledLayer, compile_forward, compile_layer};
use kiln_compiler::fuse::kernel::Kernel;
use kiln_compiler::fuse::reference::{self, Bindings};
use kiln_compiler::fuse::{Index, Instr, Launch, LaunchKind, Region, ScalarArg, Template};
use kiln_compiler::interp::{self, Array};
use kiln_compiler::ir::text::print_func;
use kiln_compiler::ir::{Attr, DType, Func, Sizes, Type, ValueId, verify};
use kiln_compiler::ops::{EvalCx, EvalNode};
use std::collections::{BTreeMap, HashSet};

/// Random programs per test.
const SEEDS: u64 = 400;
/// The same f64 operations, sums in another order.
const SAME: f64 = 1e-11;

/// Constants as kernels get them.
fn with_f32_constants(func: &Func) -> Func {
    let mut f = func.clone();
    for n in f.nodes.iter_mut().filter(|n| n.op.name == "const") {
        if let Some(Attr::Float(x)) = n.attrs.get("value") {
            let x = f64::from(*x as f32);
            n.attrs.set("value", x);
        }
    }
    f
}

fn compiled(model: &Model, compute: DType) -> CompiledLayer {
    let func = with_f32_constants(&kiln_compiler::simplify::run(&model.rounded(compute)));
    let mut layer = compile_layer(&func, &model.activity, &vec![true; func.outputs.len()]).unwrap();
    verify::func(layer.func.clone()).unwrap();
    layer.func = with_f32_constants(&layer.func);
    layer
}

/// Values in memory.
type Memory = BTreeMap<ValueId, Array>;

/// Runs launches over `memory`; each result is compared with `truth` as it is stored.
fn execute(
    layer: &CompiledLayer,
    launches: &[Launch],
    sizes: &Sizes,
    memory: &mut Memory,
    truth: &[Option<Array>],
) -> Result<(), String> {
    for (i, launch) in launches.iter().enumerate() {
        let read =
            |v: &ValueId| memory.get(v).cloned().ok_or(format!("launch {i} reads %{}, which is not stored", v.0));
        let inputs: Vec<Array> = launch.inputs.iter().map(read).collect::<Result<_, _>>()?;
        let results = run(&layer.func, launch, sizes, inputs);
        assert_eq!(results.len(), launch.outputs.len());
        for (&v, result) in launch.outputs.iter().zip(results) {
            let expected = truth[v.index()].as_ref().unwrap();
            if result.dims != expected.dims {
                return Err(format!("launch {i}, %{}: sizes {:?} instead of {:?}", v.0, result.dims, expected.dims));
            }
            agree(std::slice::from_ref(&result), std::slice::from_ref(expected), SAME)
                .map_err(|e| format!("launch {i}, %{}: {e}", v.0))?;
            if memory.insert(v, result).is_some() {
                return Err(format!("launch {i} stores %{} again", v.0));
            }
        }
    }
    Ok(())
}

fn run(func: &Func, launch: &Launch, sizes: &Sizes, inputs: Vec<Array>) -> Vec<Array> {
    match &launch.kind {
        LaunchKind::Region(region) => {
            check_region(func, launch, region);
            let scalars: Vec<f32> = region.scalars.iter().map(|s| scalar(s, sizes)).collect();
            let random = |s: usize, i: u64| uniform(region.streams[s].site, i);
            reference::run(
                region,
                sizes,
                &Bindings { dtypes: &region.dtypes, scalars: &scalars, uniform: &random },
                &inputs,
            )
        }
        LaunchKind::Library { node, rounds } => {
            let args: Vec<&Array> = inputs.iter().collect();
            let arg_types: Vec<&Type> = launch.inputs.iter().map(|&v| func.ty(v)).collect();
            let result_types: Vec<&Type> = node.outputs.iter().map(|&v| func.ty(v)).collect();
            let at = EvalNode { node, args: &args, arg_types: &arg_types, result_types: &result_types };
            let mut results = (node.op.eval)(&EvalCx { sizes, uniform: &uniform }, &at);
            for (result, rounds) in results.iter_mut().zip(rounds) {
                for &dtype in rounds {
                    result.data.iter_mut().for_each(|x| *x = interp::round(dtype, *x));
                }
            }
            results
        }
        // The same bytes, read along the output's axes.
        LaunchKind::Alias => vec![Array::new(sizes.shape(&func.ty(launch.outputs[0]).shape), inputs[0].data.clone())],
        LaunchKind::Collective(_) => inputs,
        LaunchKind::Structural(node) => panic!("`{}` is not linked", node.op.name),
    }
}

fn scalar(arg: &ScalarArg, sizes: &Sizes) -> f32 {
    match arg {
        ScalarArg::Literal(Attr::Float(x)) => *x as f32,
        ScalarArg::Literal(Attr::Int(i)) => *i as f32,
        ScalarArg::Literal(other) => panic!("{other:?} is not bound"),
        ScalarArg::Size { axes, recip: true } => 1.0 / sizes.elements(axes) as f32,
        ScalarArg::Size { axes, recip: false } => sizes.elements(axes) as f32,
    }
}

/// What executors and kernels rely on.
fn check_region(func: &Func, launch: &Launch, r: &Region) {
    assert_eq!((r.inputs.len(), r.outputs.len()), (launch.inputs.len(), launch.outputs.len()));
    assert_eq!((r.spans.len(), r.names.len()), (r.code.len(), r.inputs.len() + r.outputs.len()));
    assert!(r.rows <= r.domain.len());
    let distinct: HashSet<_> = r.domain.iter().collect();
    assert_eq!(distinct.len(), r.domain.len(), "an axis stands twice in the domain");
    for (layout, &v) in r.layouts().zip(launch.inputs.iter().chain(&launch.outputs)) {
        assert_eq!(r.dtypes[layout.dtype], func.ty(v).dtype, "%{} has its value's element type", v.0);
    }
    for (i, instr) in r.code.iter().enumerate() {
        let operands: Vec<usize> = match *instr {
            Instr::Unary(_, a) | Instr::Round(_, a) | Instr::RowSum(a) | Instr::RowMax(a) | Instr::ColumnSum(a) => {
                vec![a]
            }
            Instr::Binary(_, a, b) => vec![a, b],
            Instr::Select(m, a, b) => vec![m, a, b],
            Instr::Load(k) => {
                let by_value = |index: &Index| if let Index::Value(r) = index { Some(*r) } else { None };
                r.inputs[k].axes.iter().filter_map(by_value).collect()
            }
            _ => Vec::new(),
        };
        let column = |a: &usize| matches!(r.code[*a], Instr::ColumnSum(_));
        assert!(operands.iter().all(|&a| a < i), "instruction {i} reads a later one");
        assert!(!operands.iter().any(column), "instruction {i} reads a sum over rows");
    }
    let column = r.outputs.iter().any(|(reg, _)| matches!(r.code[*reg], Instr::ColumnSum(_)));
    assert_eq!(column, r.template == Template::RowColumn);
    Kernel::of(r).unwrap_or_else(|e| panic!("no kernel: {e}\n{r:#?}"));
}

/// Forward, backward from residuals, and replay of forward.
fn check(model: &Model, compute: DType) -> Result<(), String> {
    let layer = compiled(model, compute);
    let arguments = model.arguments(&layer.func, 21);
    let cx = EvalCx { sizes: &model.sizes, uniform: &uniform };
    let truth = interp::run_all(&cx, &layer.func, &arguments);
    let given: Memory = layer.func.inputs.iter().copied().zip(arguments).collect();
    let primal: Memory = layer.inputs.iter().map(|v| (*v, given[v].clone())).collect();
    let stored = |memory: &Memory, what: &str, wanted: &[ValueId]| match wanted.iter().find(|v| !memory.contains_key(v))
    {
        Some(v) => Err(format!("{what} does not store %{}", v.0)),
        None => Ok(()),
    };

    let mut forward = primal.clone();
    let in_forward = |e: String| format!("forward: {e}");
    execute(&layer, &layer.forward, &model.sizes, &mut forward, &truth).map_err(in_forward)?;
    stored(&forward, "forward", &layer.outputs)?;
    stored(&forward, "forward", &layer.residuals)?;

    let again: Vec<Launch> = layer.replay().iter().map(|&i| layer.forward[i].clone()).collect();
    let mut replayed = primal;
    execute(&layer, &again, &model.sizes, &mut replayed, &truth).map_err(|e| format!("replay: {e}"))?;
    stored(&replayed, "replay", &layer.residuals)?;
    for v in &layer.residuals {
        assert_eq!(replayed[v], forward[v], "replay gives the same bits");
    }

    let mut backward = given;
    backward.extend(layer.residuals.iter().map(|v| (*v, forward[v].clone())));
    execute(&layer, &layer.backward, &model.sizes, &mut backward, &truth).map_err(|e| format!("backward: {e}"))?;
    let gradients: Vec<ValueId> = layer.d_inputs.iter().flatten().copied().collect();
    stored(&backward, "backward", &gradients)
}

fn models_of_exact_sizes() -> Vec<Model> {
    let mut all = models::all();
    for model in &mut all {
        for (axis, n) in [("B", 2), ("S", 4), ("D", 8), ("G", 2), ("R", 4), ("K", 2), ("F", 16), ("V", 32)] {
            model.sizes.bind(models::ax(axis)[0], n);
        }
    }
    all
}

#[test]
fn launches_of_models_compute_the_unfused_function() {
    for model in models_of_exact_sizes() {
        for compute in COMPUTE {
            check(&model, compute).unwrap_or_else(|e| panic!("{} in {compute}: {e}", model.name));
        }
    }
}

#[test]
fn launches_of_random_programs_compute_the_unfused_function() {
    for seed in 0..SEEDS {
        let model = programs::program(seed, programs::plain);
        for compute in COMPUTE {
            if let Err(e) = check(&model, compute) {
                let func = compiled(&model, compute).func;
                panic!("seed {seed} in {compute}: {e}\n{}", print_func(&func));
            }
        }
    }
}

#[test]
fn forward_alone_computes_the_same() {
    for seed in 0..SEEDS {
        let model = programs::program(seed, programs::plain);
        let mut layer = compile_forward(&model.rounded(DType::F32));
        layer.func = with_f32_constants(&layer.func);
        let arguments = model.arguments(&layer.func, 4);
        let truth = interp::run_all(&EvalCx { sizes: &model.sizes, uniform: &uniform }, &layer.func, &arguments);
        let mut memory: Memory = layer.func.inputs.iter().copied().zip(arguments).collect();
        execute(&layer, &layer.forward, &model.sizes, &mut memory, &truth)
            .unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        assert!(layer.outputs.iter().all(|v| memory.contains_key(v)), "seed {seed}");
    }
}

fn hashes(layer: &CompiledLayer) -> Vec<u64> {
    layer.regions().map(|r| r.hash()).collect()
}

#[test]
fn hashes_do_not_depend_on_names_constants_and_types() {
    for seed in 0..SEEDS {
        let compile = |model: &Model, func: &Func| {
            hashes(&compile_layer(func, &model.activity, &vec![true; func.outputs.len()]).unwrap())
        };
        let model = programs::program(seed, programs::plain);
        let func = model.rounded(DType::Compute);
        let expected = compile(&model, &func);
        let renamed = programs::program(seed, programs::renamed);
        assert_eq!(compile(&renamed, &renamed.rounded(DType::Compute)), expected, "seed {seed}: names of axes");
        let mut nameless = func.clone();
        nameless.values.iter_mut().for_each(|v| v.name = None);
        assert_eq!(compile(&model, &nameless), expected, "seed {seed}: names of values");
        let mut other = func.clone();
        for n in &mut other.nodes {
            if let Some(eps) = n.attrs.get("eps").cloned() {
                n.attrs.set("eps", if eps == Attr::Float(0.0625) { 0.03125 } else { 0.0 });
            }
            if n.op.name == "dropout" {
                n.attrs.set("rate", 0.125);
            }
        }
        assert_eq!(compile(&model, &other), expected, "seed {seed}: constants");
    }
}
