//! The random tier: passes keep the meaning of random programs, and derivatives of random programs are right.
//!
//! A failing seed prints its program; its smallest form becomes a golden file.

use kiln_compiler::compile::compile_layer;
use kiln_compiler::diff::{self, Activity};
use kiln_compiler::fuse::{Launch, LaunchKind, ScalarArg, reference};
use kiln_compiler::interp::{self, Array};
use kiln_compiler::ir::text::{parse_func, print_func};
use kiln_compiler::ir::{Attr, DType, Func, Sizes, verify};
use kiln_compiler::ops::{EvalCx, EvalNode};
use kiln_compiler::{precision, simplify};
use kiln_tests::programs::{self, Program, Random, program, run};
use std::collections::HashSet;

/// Programs per test.
const SEEDS: u64 = 300;
/// Two orders of the same f64 operations, fourteen deep.
const SAME: f64 = 1e-11;
/// Step of the five-point stencil: its error is of order h⁴ = 1e-12, that of rounding 1e-16/h = 1e-13.
const H: f64 = 1e-3;
/// PyTorch's gradcheck in f64.
const RTOL: f64 = 1e-6;
const ATOL: f64 = 1e-8;

fn same(what: &str, seed: u64, func: &Func, a: &[Array], b: &[Array]) {
    assert_eq!(a.len(), b.len(), "seed {seed}, {what}: number of results");
    for (a, b) in a.iter().zip(b) {
        assert_eq!(a.dims, b.dims, "seed {seed}, {what}: sizes");
        let scale = b.data.iter().fold(1.0f64, |m, x| m.max(x.abs()));
        let off =
            a.data.iter().zip(&b.data).position(|(a, b)| (a - b).abs() > SAME * scale || a.is_nan() != b.is_nan());
        if let Some(i) = off {
            panic!("seed {seed}, {what}: {} is not {} in\n{}", a.data[i], b.data[i], print_func(func));
        }
    }
}

fn verified(what: &str, seed: u64, func: Func) -> Func {
    verify::func(func).unwrap_or_else(|e| panic!("seed {seed}: {what}: {e}")).into_inner()
}

#[test]
fn every_pass_preserves_meaning() {
    for seed in 0..SEEDS {
        let Program { func, sizes, arguments } = program(seed);
        let func = verified("the program", seed, func);
        let truth = run(&func, &sizes, &arguments);
        let passes: [(&str, Func); 5] = [
            ("expand", simplify::expand(&func)),
            ("cse", simplify::cse(&func)),
            ("dce", simplify::dce(&func)),
            ("simplify", simplify::run(&func)),
            ("precision", precision::run(&func, DType::F32)),
        ];
        for (what, after) in passes {
            let after = verified(what, seed, after);
            assert_eq!(parse_func(&print_func(&after)).as_ref(), Ok(&after), "seed {seed}, {what}: text");
            same(what, seed, &func, &run(&after, &sizes, &arguments), &truth);
        }
    }
}

#[test]
fn derivatives_of_programs_match_differences() {
    let mut compared = 0;
    for seed in 0..SEEDS {
        let Program { func, sizes, arguments } = program(seed);
        let activity: Vec<Activity> = func
            .inputs
            .iter()
            .map(|&v| if func.ty(v).dtype.is_float() { Activity::Parameter } else { Activity::Inactive })
            .collect();
        let joint = diff::run(&func, &activity, &vec![true; func.outputs.len()])
            .unwrap_or_else(|e| panic!("seed {seed}: {}", e.diagnostic));
        let joint_func = verified("diff", seed, simplify::run(&joint.func));
        let mut random = Random(seed ^ 0xABCD);
        let mut noise =
            |like: &Array| Array::new(like.dims.clone(), like.data.iter().map(|_| random.between(-1.0, 1.0)).collect());
        let truth = run(&func, &sizes, &arguments);
        let u: Vec<Array> = truth.iter().map(&mut noise).collect();
        let v: Vec<Array> = arguments.iter().map(&mut noise).collect();
        let moves: Vec<bool> = activity.iter().map(|a| *a == Activity::Parameter).collect();

        let mut inputs = arguments.clone();
        inputs.extend(u.iter().cloned());
        let results = run(&joint_func, &sizes, &inputs);
        same("the outputs of diff", seed, &func, &results[..truth.len()], &truth);
        let mut pulled = results[truth.len()..].iter();
        let dot = |a: &Array, b: &Array| a.data.iter().zip(&b.data).map(|(a, b)| a * b).sum::<f64>();
        let magnitude = |a: &Array, b: &Array| a.data.iter().zip(&b.data).map(|(a, b)| (a * b).abs()).sum::<f64>();
        let (mut vjtu, mut total) = (0.0, 1.0);
        for (i, returned) in joint.input_cotangents.iter().enumerate() {
            if *returned {
                let d = pulled.next().expect("one cotangent per returned flag");
                vjtu += dot(&v[i], d);
                total += magnitude(&v[i], d);
            }
        }
        let at = |t: f64| {
            let moved: Vec<Array> = arguments
                .iter()
                .zip(&v)
                .zip(&moves)
                .map(|((x, v), &moves)| {
                    let data = x.data.iter().zip(&v.data).map(|(x, v)| if moves { x + t * v } else { *x }).collect();
                    Array::new(x.dims.clone(), data)
                })
                .collect();
            run(&func, &sizes, &moved).iter().zip(&u).map(|(y, u)| dot(y, u)).sum::<f64>()
        };
        let jvu = (at(-2.0 * H) - 8.0 * at(-H) + 8.0 * at(H) - at(2.0 * H)) / (12.0 * H);
        assert!(
            (jvu - vjtu).abs() <= ATOL + RTOL * total,
            "seed {seed}: ⟨Jv,u⟩ = {jvu}, ⟨v,Jᵀu⟩ = {vjtu} in\n{}",
            print_func(&func)
        );
        compared += 1;
    }
    assert_eq!(compared, SEEDS);
}

/// A region's constants are passed as f32, whose rounding fourteen operations carry on.
const CONSTANTS: f64 = 1e-5;

/// Runs one launch in f64.
fn launch(func: &Func, l: &Launch, sizes: &Sizes, values: &mut [Option<Array>]) {
    let args: Vec<Array> =
        l.inputs.iter().map(|v| values[v.index()].clone().expect("launches come in order")).collect();
    let results = match &l.kind {
        LaunchKind::Region(region) => {
            let scalars: Vec<f32> = region.scalars.iter().map(|s| scalar(s, sizes)).collect();
            let draw = |stream: usize, index: u64| programs::uniform(region.streams[stream].site, index);
            let bindings = reference::Bindings { dtypes: &region.dtypes, scalars: &scalars, uniform: &draw };
            reference::run(region, sizes, &bindings, &args)
        }
        LaunchKind::Library { node, .. } => {
            let refs: Vec<&Array> = args.iter().collect();
            let arg_types: Vec<_> = l.inputs.iter().map(|&v| func.ty(v)).collect();
            let result_types: Vec<_> = l.outputs.iter().map(|&v| func.ty(v)).collect();
            let node = EvalNode { node, args: &refs, arg_types: &arg_types, result_types: &result_types };
            (node.node.op.eval)(&EvalCx { sizes, uniform: &programs::uniform }, &node)
        }
        LaunchKind::Alias => vec![Array::new(sizes.shape(&func.ty(l.outputs[0]).shape), args[0].data.clone())],
        LaunchKind::Structural(n) | LaunchKind::Collective(n) => panic!("a random program has no `{}`", n.op.name),
    };
    for (&v, r) in l.outputs.iter().zip(results) {
        // A row reduction is stored over all axes of its row; the value's own sizes count here.
        values[v.index()] = Some(Array::new(sizes.shape(&func.ty(v).shape), r.data));
    }
}

fn scalar(arg: &ScalarArg, sizes: &Sizes) -> f32 {
    match arg {
        ScalarArg::Literal(Attr::Float(x)) => *x as f32,
        ScalarArg::Literal(Attr::Int(i)) => *i as f32,
        ScalarArg::Literal(other) => panic!("{other:?} is no number"),
        ScalarArg::Size { axes, recip } => {
            let n = sizes.elements(axes) as f32;
            if *recip { 1.0 / n } else { n }
        }
    }
}

#[test]
fn fused_programs_compute_what_unfused_ones_do() {
    let mut regions = 0;
    for seed in 0..SEEDS {
        let Program { func, sizes, arguments } = program(seed);
        let func = precision::run(&func, DType::F32);
        let activity: Vec<Activity> = func
            .inputs
            .iter()
            .map(|&v| if func.ty(v).dtype.is_float() { Activity::Parameter } else { Activity::Inactive })
            .collect();
        let flags = vec![true; func.outputs.len()];
        let joint = diff::run(&func, &activity, &flags).unwrap_or_else(|e| panic!("seed {seed}: {}", e.diagnostic));
        let mut random = Random(seed ^ 0xFACE);
        let mut inputs = arguments.clone();
        for &v in &joint.func.inputs[joint.n_inputs..] {
            inputs.push(interp::build(&sizes, &joint.func.ty(v).shape, |_| random.between(-1.0, 1.0)));
        }
        let truth = run(&joint.func, &sizes, &inputs);

        let c = compile_layer(&func, &activity, &flags).unwrap_or_else(|e| panic!("seed {seed}: {}", e.diagnostic));
        let mut values: Vec<Option<Array>> = vec![None; c.func.values.len()];
        for (&v, a) in c.func.inputs.iter().zip(&inputs) {
            values[v.index()] = Some(a.clone());
        }
        for l in c.forward.iter() {
            launch(&c.func, l, &sizes, &mut values);
        }
        // Backward reads what the plan keeps, and nothing else.
        let kept: HashSet<_> = c.func.inputs.iter().chain(&c.outputs).chain(&c.residuals).map(|v| v.index()).collect();
        values.iter_mut().enumerate().filter(|(i, _)| !kept.contains(i)).for_each(|(_, value)| *value = None);
        for l in c.backward.iter() {
            launch(&c.func, l, &sizes, &mut values);
        }
        regions += c.regions().count();
        let ids = c.outputs.iter().chain(c.d_inputs.iter().flatten());
        let results: Vec<Array> = ids.map(|v| values[v.index()].clone().expect("every result is computed")).collect();
        for (k, (a, b)) in results.iter().zip(&truth).enumerate() {
            let scale = b.data.iter().fold(1.0f64, |m, x| m.max(x.abs()));
            let far = a
                .data
                .iter()
                .zip(&b.data)
                .position(|(a, b)| (a - b).abs() > CONSTANTS * scale || a.is_nan() != b.is_nan());
            if let Some(i) = far {
                panic!("seed {seed}, result {k}: {} is not {} in\n{}", a.data[i], b.data[i], print_func(&func));
            }
        }
    }
    assert!(regions as u64 > 2 * SEEDS, "only {regions} regions were run");
}
