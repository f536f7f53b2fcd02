//! Placement: ranks that run a split function in lock step get the values and gradients of the whole function.

use crate::models::{self, Model, agree, checked, simplified, uniform};
use kiln_compiler::interp::{self, Array};
use kiln_compiler::ir::text::{parse_func, parse_layer};
use kiln_compiler::ir::{Axis, DType, Func, Node, Sizes, Type};
use kiln_compiler::ops::{EvalCx, EvalNode};
use kiln_compiler::place::{self, Candidates};

/// Sums of a few hundred f64 terms in another order.
const SAME: f64 = 1e-11;
const MESH: &str = "tensor";

/// The part of rank `rank` of `n` along `axis`; all of a value that lacks it.
fn part(array: &Array, shape: &[Axis], axis: Axis, rank: usize, n: usize) -> Array {
    let Some(p) = shape.iter().position(|&a| a == axis) else { return array.clone() };
    let inner: usize = array.dims[p + 1..].iter().product();
    let mut dims = array.dims.clone();
    let whole = dims[p];
    dims[p] = whole / n;
    let mine = rank * dims[p]..(rank + 1) * dims[p];
    let data = array.data.iter().enumerate().filter(|(i, _)| mine.contains(&(i / inner % whole))).map(|(_, &x)| x);
    Array::new(dims.clone(), data.collect())
}

/// Ranks of a mesh axis over which `axis` is split.
struct Ranks<'a> {
    axis: Axis,
    n: usize,
    global: &'a Sizes,
    local: Sizes,
}

impl<'a> Ranks<'a> {
    fn new(global: &'a Sizes, axis: Axis, n: usize) -> Self {
        let mut local = global.clone();
        local.bind(axis, global.of(axis) / n);
        Ranks { axis, n, global, local }
    }

    /// Results of all ranks, each of which gets its part of the arguments.
    fn run(&self, func: &Func, arguments: &[Array]) -> Vec<Vec<Array>> {
        let mut env: Vec<Vec<Option<Array>>> = vec![vec![None; func.values.len()]; self.n];
        for (rank, values) in env.iter_mut().enumerate() {
            for (&v, a) in func.inputs.iter().zip(arguments) {
                values[v.index()] = Some(part(a, &func.ty(v).shape, self.axis, rank, self.n));
            }
        }
        for node in &func.nodes {
            let results: Vec<Vec<Array>> = env.iter().enumerate().map(|(r, e)| self.node(func, node, e, r)).collect();
            let results = if node.op.name == "all_reduce" { vec![vec![summed(&results)]; self.n] } else { results };
            for (values, results) in env.iter_mut().zip(results) {
                for (&v, a) in node.outputs.iter().zip(results) {
                    values[v.index()] = Some(a);
                }
            }
        }
        let output =
            |values: &Vec<Option<Array>>| func.outputs.iter().map(|v| values[v.index()].clone().unwrap()).collect();
        env.iter().map(output).collect()
    }

    fn node(&self, func: &Func, node: &Node, env: &[Option<Array>], rank: usize) -> Vec<Array> {
        let args: Vec<&Array> = node.inputs.iter().map(|v| env[v.index()].as_ref().unwrap()).collect();
        let arg_types: Vec<&Type> = node.inputs.iter().map(|&v| func.ty(v)).collect();
        let result_types: Vec<&Type> = node.outputs.iter().map(|&v| func.ty(v)).collect();
        // What has no operands means the whole tensor: sizes, positions, random numbers.
        let sizes = if node.inputs.is_empty() { self.global } else { &self.local };
        let at = EvalNode { node, args: &args, arg_types: &arg_types, result_types: &result_types };
        let results = (node.op.eval)(&EvalCx { sizes, uniform: &uniform }, &at);
        if !node.inputs.is_empty() {
            return results;
        }
        let cut = |(a, t): (&Array, &&Type)| part(a, &t.shape, self.axis, rank, self.n);
        results.iter().zip(&result_types).map(cut).collect()
    }
}

fn summed(results: &[Vec<Array>]) -> Array {
    let mut sum = results[0][0].clone();
    for r in &results[1..] {
        sum.data.iter_mut().zip(&r[0].data).for_each(|(s, x)| *s += x);
    }
    sum
}

fn cases() -> Vec<(Model, &'static str)> {
    vec![(models::swiglu(), "F"), (models::attention(), "G"), (models::attention(), "R"), (models::wide(), "F")]
}

fn split(model: &Model, axis: Axis, compute: DType) -> Func {
    let placed = place::run(&model.rounded(compute), axis, MESH).unwrap_or_else(|e| panic!("{}", e.diagnostic));
    checked(placed)
}

/// Whether ranks that run `joint` get what one gets that runs the whole function.
fn ranks_agree(model: &Model, joint: &Func, axis: Axis, n: usize, compute: DType) -> Result<(), String> {
    let whole = simplified(&model.joint(&model.rounded(compute)));
    let arguments = model.arguments(&whole, 7);
    let truth = model.run(&whole, &arguments);
    let ranks = Ranks::new(&model.sizes, axis, n);
    for (rank, results) in ranks.run(joint, &arguments).iter().enumerate() {
        let expected: Vec<Array> =
            whole.outputs.iter().zip(&truth).map(|(&v, a)| part(a, &whole.ty(v).shape, axis, rank, n)).collect();
        agree(results, &expected, SAME).map_err(|e| format!("rank {rank} of {n}: {e}"))?;
    }
    Ok(())
}

#[test]
fn ranks_compute_what_one_computes() {
    for (model, axis) in cases() {
        let axis = Axis::new(axis);
        for compute in [DType::F32, DType::Bf16] {
            let joint = simplified(&model.joint(&split(&model, axis, compute)));
            for n in [1, 2, 4] {
                let same = ranks_agree(&model, &joint, axis, n, compute);
                same.unwrap_or_else(|e| panic!("{} split along {axis}, {compute}: {e}", model.name));
            }
        }
    }
}

/// The function in which node `i` hands on its operand.
fn without(func: &Func, i: usize) -> Func {
    let mut f = func.clone();
    let node = f.nodes.remove(i);
    let (from, to) = (node.outputs[0], node.inputs[0]);
    for v in f.nodes.iter_mut().flat_map(|n| &mut n.inputs).chain(&mut f.outputs) {
        if *v == from {
            *v = to;
        }
    }
    checked(f)
}

fn named(func: &Func, names: &[&str]) -> Vec<usize> {
    (0..func.nodes.len()).filter(|&i| names.contains(&func.nodes[i].op.name)).collect()
}

#[test]
fn every_collective_is_needed() {
    for (model, axis) in cases() {
        let axis = Axis::new(axis);
        let placed = split(&model, axis, DType::F32);
        for i in named(&placed, &["all_reduce", "pbroadcast"]) {
            let joint = simplified(&model.joint(&without(&placed, i)));
            let same = ranks_agree(&model, &joint, axis, 2, DType::F32);
            assert!(same.is_err(), "{} split along {axis}: forward collective {i} changes nothing", model.name);
        }
        let joint = simplified(&model.joint(&placed));
        for i in named(&joint, &["all_reduce"]) {
            let same = ranks_agree(&model, &without(&joint, i), axis, 2, DType::F32);
            assert!(same.is_err(), "{} split along {axis}: the sum {i} changes nothing", model.name);
        }
    }
}

#[test]
fn a_value_is_shared_by_the_ranks_once() {
    let counts = |model: Model, axis: &str| {
        let placed = split(&model, Axis::new(axis), DType::Bf16);
        let joint = simplified(&model.joint(&placed));
        (
            named(&placed, &["pbroadcast"]).len(),
            named(&placed, &["all_reduce"]).len(),
            named(&joint, &["all_reduce"]).len(),
        )
    };
    // One sum forward for the result, one backward for x, as in Shoeybi et al. 2019.
    assert_eq!(counts(models::swiglu(), "F"), (1, 1, 2));
    assert_eq!(counts(models::attention(), "G"), (1, 1, 2));
    // Keys and values are whole on each rank, which sees a part of their queries.
    assert_eq!(counts(models::attention(), "R"), (3, 1, 4));
}

#[test]
fn sums_over_ranks_come_before_rounding() {
    let placed = split(&models::swiglu(), Axis::new("F"), DType::Bf16);
    let joint = models::swiglu().joint(&placed).func;
    for i in named(&joint, &["all_reduce"]) {
        assert_eq!(joint.ty(joint.nodes[i].inputs[0]).dtype, DType::F32);
    }
}

#[test]
fn an_axis_that_a_function_lacks_changes_nothing() {
    let model = models::swiglu();
    assert_eq!(place::run(&model.func, Axis::new("Q"), MESH), Ok(model.func));
}

fn layer(arguments: &str, body: &str) -> kiln_compiler::ir::Layer {
    let arguments: Vec<String> =
        arguments.lines().map(str::trim).filter(|l| !l.is_empty()).map(|l| format!("  arg {l}\n")).collect();
    let text = format!("layer net \"src/model.rs\" {{\n{}{body}\n}}\n", arguments.concat());
    parse_layer(&text).unwrap_or_else(|e| panic!("{e} in\n{text}"))
}

const SWIGLU: (&str, &str) = (
    "x @1:1 input f32[B, S, D]
     gate @2:1 param f32[D, F] ones
     up @3:1 param f32[D, F] ones
     down @4:1 param f32[F, D] ones",
    "fn(%0 x: f32[B, S, D], %1 gate: f32[D, F], %2 up: f32[D, F], %3 down: f32[F, D]) {
       %4: f32[B, S, F] = dot_general(%0, %1) {out=[B, S, F]} @6:1
       %5: f32[B, S, F] = silu(%4) @6:2
       %6: f32[B, S, F] = dot_general(%0, %2) {out=[B, S, F]} @7:1
       %7: f32[B, S, F] = mul(%5, %6) @7:2
       %8: f32[B, S, D] = dot_general(%7, %3) {out=[B, S, D]} @8:1
       return %8
     }",
);

const ATTENTION: (&str, &str) = (
    "x @1:1 input f32[B, S, D]
     rope @2:1 rope S K
     wq @3:1 param f32[D, G, R, K] ones
     wk @4:1 param f32[D, G, K] ones
     wo @5:1 param f32[G, R, K, D] ones",
    "fn(%0 x: f32[B, S, D], %1 rope: f32[], %2 wq: f32[D, G, R, K], %3 wk: f32[D, G, K], %4 wo: f32[G, R, K, D]) {
       %5: f32[B, G, R, S, K] = dot_general(%0, %2) {out=[B, G, R, S, K]} @6:1
       %6: f32[B, G, R, S, K] = rope(%5, %1) {head='K, seq='S} @6:2
       %7: f32[B, G, S, K] = dot_general(%0, %3) {out=[B, G, S, K]} @7:1
       %8: f32[B, G, R, S, K], %9: f32[B, G, R, S] = attention(%6, %7, %7) {causal=true} @8:1
       %10: f32[B, S, D] = dot_general(%8, %4) {out=[B, S, D]} @9:1
       return %10
     }",
);

#[test]
fn the_private_contracted_axis_is_found() {
    assert_eq!(place::infer_axis(&layer(SWIGLU.0, SWIGLU.1)), Ok(Axis::new("F")));
    // Without groups the heads are the only choice: the head's own axis is rotated.
    let plain = |text: &str| text.replace("G, R, ", "H, ").replace("G, ", "H, ");
    assert_eq!(place::infer_axis(&layer(&plain(ATTENTION.0), &plain(ATTENTION.1))), Ok(Axis::new("H")));
}

fn refused(arguments: &str, body: &str) -> Candidates {
    place::infer_axis(&layer(arguments, body)).expect_err("no unique axis")
}

#[test]
fn several_axes_are_listed_with_what_each_means() {
    let diagnostic = refused(ATTENTION.0, ATTENTION.1).diagnostic();
    assert_eq!(diagnostic.code, "K0411");
    assert_eq!(diagnostic.message, "`#[shard(tensor)]` on `net` could split `G` or `R`");
    assert_eq!(
        diagnostic.help.unwrap(),
        "`#[shard(tensor = G)]`: each rank holds a part of `wq`, `wk` and `wo`; \
         `#[shard(tensor = R)]`: each rank holds a part of `wq` and `wo`, and `wk` whole"
    );
}

#[test]
fn without_a_candidate_each_axis_says_why() {
    let why = |arguments: &str, body: &str| {
        let candidates = refused(arguments, body);
        assert!(candidates.found.is_empty());
        candidates.refused.into_iter().map(|(axis, why)| format!("{axis}: {why}")).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(
        why(
            "x @1:1 input f32[B, D]\nw @2:1 param f32[D, E] ones\nv @3:1 param f32[D, F] ones\ns @3:1 param f32[F, H] ones\nt @3:2 param f32[B, H] ones",
            "fn(%0 x: f32[B, D], %1 w: f32[D, E], %2 v: f32[D, F], %3 s: f32[F, H], %4 t: f32[B, H]) {
               %5: f32[B, E] = dot_general(%0, %1) {out=[B, E]} @4:1
               %6: f32[B, F] = dot_general(%0, %2) {out=[B, F]} @5:1
               %7: f32[B, F] = softmax(%6) {axis='F} @6:1
               %8: f32[B, H] = dot_general(%7, %3) {out=[B, H]} @7:1
               %9: f32[B, H] = mul(%8, %4) @7:2
               %10: f32[B] = reduce_max(%9) {axes=[H]} @7:3
               return %5, %10
             }"
        ),
        "D: the input `x` has `D`\n\
         E: the result has `E`\n\
         F: `softmax` needs `F` whole, so `F` cannot be split\n\
         H: `reduce_max` needs `H` whole, so `H` cannot be split\n\
         B: the input `x` has `B`"
    );
    assert_eq!(
        why(
            "x @1:1 input f32[B]\nw @2:1 param f32[F] ones\nv @3:1 param f32[E] ones\nu @3:1 param f32[E] ones",
            "fn(%0 x: f32[B], %1 w: f32[F], %2 v: f32[E], %3 u: f32[E]) {
               %4: f32[] = reduce_sum(%1) {axes=[F]} @4:1
               %5: f32[] = reduce_sum(%2) {axes=[E]} @4:2
               %6: f32[] = reduce_sum(%3) {axes=[E]} @4:3
               return %4, %5, %6
             }"
        ),
        "F: only `w` has `F`\n\
         E: no operation contracts `E` of one parameter with `E` of another"
    );
}

#[test]
fn a_named_axis_is_checked() {
    let check =
        |(arguments, body): (&str, &str), axis: &str| place::check_axis(&layer(arguments, body), Axis::new(axis));
    let error = |model, axis: &str| check(model, axis).expect_err(axis);
    assert_eq!(check(ATTENTION, "G"), Ok(()));
    assert_eq!(check(ATTENTION, "R"), Ok(()));
    let e = error(ATTENTION, "K");
    assert_eq!((e.diagnostic.code, e.span.line, e.span.column), ("K0417", 6, 2));
    assert_eq!(e.diagnostic.message, "`rope` needs `K` whole, so `K` cannot be split");
    let e = error(ATTENTION, "D");
    assert_eq!(e.diagnostic.code, "K0418");
    assert_eq!(e.diagnostic.help.as_deref(), Some("`G` or `R` can be split"));
    let e = error(SWIGLU, "Q");
    assert_eq!(e.diagnostic.code, "K0419");
    assert_eq!(e.diagnostic.message, "no parameter of `net` has axis `Q`");
}

#[test]
fn operations_that_need_the_axis_whole_are_refused_where_they_stand() {
    let whole = [
        ("softmax(%0) {axis='F}", "f32[B, F]"),
        ("log_softmax(%0) {axis='F}", "f32[B, F]"),
        ("rms_norm(%0, %1) {eps=1e-5}", "f32[B, F]"),
        ("layer_norm(%0, %1, %1) {eps=1e-5}", "f32[B, F]"),
        ("reduce_max(%0) {axes=[F]}", "f32[B]"),
        ("rename(%0) {from='F, to='E}", "f32[B, E]"),
        ("rename(%0) {from='B, to='E}", "f32[E, F]"),
        ("split(%0) {axis='F, into=[G, K]}", "f32[B, G, K]"),
        ("merge(%0) {axes=[B, F], into='E}", "f32[E]"),
        ("slice(%0) {axis='F, start=0, to='E}", "f32[B, E]"),
        ("pad(%0) {axis='B, before='F, to='E}", "f32[E, F]"),
        ("concat(%0, %0) {axis='F, other='F, to='E}", "f32[B, E]"),
        ("rotate_half(%0) {axis='F}", "f32[B, F]"),
        ("half_sign() {axis='F, shape=[B, F]}", "f32[B, F]"),
        ("rope(%0, %2) {head='F, seq='B}", "f32[B, F]"),
        ("cross_entropy(%0, %3)", "f32[], %5: f32[]"),
        ("opaque(%0) {dtype=:f32, name=\"scan\", out0=[B], outs=1}", "f32[B]"),
    ];
    let fits = ["rename(%0) {from='B, to='E}"];
    for (node, ty) in whole {
        let text = format!(
            "fn(%0 x: f32[B, F], %1 w: f32[F], %2 base: f32[], %3 ids: i32[B]) {{\n  %4: {ty} = {node} @9:7\n  return %2\n}}\n"
        );
        let func = checked(parse_func(&text).unwrap_or_else(|e| panic!("{e} in\n{text}")));
        let result = place::run(&func, Axis::new("F"), MESH);
        if fits.contains(&node) {
            assert!(result.is_ok(), "{node}");
            continue;
        }
        let e = result.expect_err(node);
        assert_eq!((e.diagnostic.code, e.span.line, e.span.column), ("K0417", 9, 7), "{node}");
    }
}

#[test]
fn a_split_axis_stays_in_its_layer() {
    for node in [
        "%2: f32[B] = call(%0) {dtype=:f32, out0=[B], outs=1, sub=0} @3:4",
        "%2: f32[B, F] = call(%1) {dtype=:f32, out0=[B, F], outs=1, sub=0} @3:4",
    ] {
        let text = format!("fn(%0 x: f32[B, F], %1 y: f32[B]) {{\n  {node}\n  return %1\n}}\n");
        let func = checked(parse_func(&text).unwrap_or_else(|e| panic!("{e} in\n{text}")));
        let e = place::run(&func, Axis::new("F"), MESH).expect_err(node);
        assert_eq!((e.diagnostic.code, e.span.line, e.span.column), ("K0418", 3, 4), "{node}");
    }
    let text = "fn(%0 x: f32[B, F]) {\n  %1: f32[B, F] = exp(%0) @5:6\n  return %1\n}\n";
    let e = place::run(&parse_func(text).unwrap(), Axis::new("F"), MESH).expect_err("the result has the axis");
    assert_eq!((e.diagnostic.code, e.span.line, e.span.column), ("K0418", 5, 6));
}

#[test]
fn bodies_are_placed_or_refused() {
    let text = "fn(%0 x: f32[B, D], %1 w: f32[D, F], %2 v: f32[F, D]) {
  %3: f32[B, D] = select_host(%0, %1, %2) {cond=true, dtype=:f32, out0=[B, D], outs=1} @1:1 fn(%0 x: f32[B, D], %1 w: f32[D, F], %2 v: f32[F, D]) {
    %3: f32[B, F] = dot_general(%0, %1) {out=[B, F]} @2:1
    %4: f32[B, D] = dot_general(%3, %2) {out=[B, D]} @2:2
    return %4
  } fn(%0 x: f32[B, D], %1 w: f32[D, F], %2 v: f32[F, D]) {
    return %0
  }
  return %3
}
";
    let func = parse_func(text).unwrap_or_else(|e| panic!("{e} in\n{text}"));
    let placed = checked(place::run(&func, Axis::new("F"), MESH).unwrap());
    let chosen: Vec<&str> = placed.nodes[0].bodies[0].nodes.iter().map(|n| n.op.name).collect();
    assert_eq!(placed.nodes.len(), 1, "the choice's operands stay as they are");
    assert_eq!(chosen, ["pbroadcast", "dot_general", "dot_general", "all_reduce"]);

    let mut repeat = func.clone();
    repeat.nodes[0].op = kiln_compiler::ops::find("repeat").unwrap();
    repeat.nodes[0].bodies.truncate(1);
    let e = place::run(&repeat, Axis::new("F"), MESH).expect_err("a loop's body belongs to another layer");
    assert_eq!((e.diagnostic.code, e.span.line, e.span.column), ("K0418", 1, 1));
}

#[test]
fn parts_side_by_side_are_the_whole() {
    let shape = models::ax("B F D");
    let sizes: Sizes = shape.iter().copied().zip([2, 4, 3]).collect();
    let whole = interp::build(&sizes, &shape, |i| i as f64);
    let parts: Vec<Array> = (0..2).map(|r| part(&whole, &shape, Axis::new("F"), r, 2)).collect();
    assert_eq!(parts[1].dims, [2, 2, 3]);
    assert_eq!(parts[0].data[..6], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(parts[1].data[..6], [6.0, 7.0, 8.0, 9.0, 10.0, 11.0]);
}
