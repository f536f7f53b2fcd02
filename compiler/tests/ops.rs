//! Every operation against central differences in f64, composites against their expansions, and every function built here
//! through the text form and the verifier.

use kiln_compiler::interp::{self, Array};
use kiln_compiler::ir::text::{parse_func, print_func};
use kiln_compiler::ir::{Attr, Attrs, Axis, Builder, DType, Func, Sizes, Type, ValueId, verify};
use kiln_compiler::ops::{self, EvalCx, Op, Vjp, VjpNode};
use std::collections::BTreeSet;

/// Shapes drawn for each case.
const SHAPES: u64 = 24;
/// Sizes drawn for an axis: one, odd, prime, even.
const EXTENTS: [usize; 6] = [1, 2, 3, 4, 5, 7];
/// Step of the five-point stencil: its error is of order h⁴ = 1e-12, that of rounding 1e-16/h = 1e-13.
const H: f64 = 1e-3;
/// PyTorch's gradcheck in f64.
const RTOL: f64 = 1e-6;
const ATOL: f64 = 1e-8;
/// Two ways to the same f64 value, each with fewer than a thousand roundings of 1e-16.
const SAME: f64 = 1e-12;
/// Elements of an operand whose derivatives are checked one by one; all of them count in the check along a direction.
const SAMPLED: usize = 12;

/// What an operand holds.
#[derive(Clone, Copy)]
enum Arg {
    /// Real numbers in (−2, 2).
    Real(&'static str),
    /// Real numbers in (½, 2½).
    Positive(&'static str),
    /// Real numbers that differ from each other and from 0 by more than the stencil's reach: for functions with kinks.
    Apart(&'static str),
    /// A scalar without a cotangent.
    Fixed(f64),
    /// A mask.
    Mask(&'static str),
    /// Ids over axes, counted along an axis; about one in four is −1.
    Ids(&'static str, &'static str),
}
use Arg::*;

struct Case {
    op: &'static str,
    attrs: Attrs,
    args: Vec<Arg>,
    /// Makes drawn sizes fit the operation.
    fit: fn(&mut Sizes),
    /// How many results get a cotangent; the others are read by the derivative only.
    active: usize,
}

fn case(op: &'static str, attrs: Attrs, args: &[Arg]) -> Case {
    Case { op, attrs, args: args.to_vec(), fit: |_| (), active: usize::MAX }
}

impl Case {
    fn fit(mut self, fit: fn(&mut Sizes)) -> Case {
        self.fit = fit;
        self
    }

    fn active(mut self, n: usize) -> Case {
        self.active = n;
        self
    }
}

fn axes(text: &str) -> Vec<Axis> {
    text.split_whitespace().map(Axis::new).collect()
}

fn none() -> Attrs {
    Attrs::new()
}

fn shape(text: &str) -> Attrs {
    none().with("shape", axes(text))
}

fn axis(name: &str, axis: &str) -> Attrs {
    none().with(name, Axis::new(axis))
}

fn size(sizes: &Sizes, axis: &str) -> usize {
    sizes.of(Axis::new(axis))
}

fn bind(sizes: &mut Sizes, axis: &str, n: usize) {
    sizes.bind(Axis::new(axis), n);
}

fn even_head(sizes: &mut Sizes) {
    let k = size(sizes, "K");
    bind(sizes, "K", k + k % 2);
}

fn renamed(sizes: &mut Sizes) {
    let s = size(sizes, "S");
    bind(sizes, "T", s);
}

/// Every operation with a value that can be computed from its operands alone.
fn cases() -> Vec<Case> {
    let mut cases = vec![
        case("const", shape("B S").with("value", -1.25), &[]),
        case("const", shape("").with("value", Attr::Int(3)), &[]),
        case("iota", axis("axis", "S").with("shape", axes("B S D")), &[]),
        case("half_sign", axis("axis", "K").with("shape", axes("S K")), &[]).fit(even_head),
        case("size", shape("B").with("axes", axes("S D")), &[]),
        case("size", shape("").with("axes", axes("S D")).with("recip", true), &[]),
        case("uniform", shape("B S").with("site", 3), &[]),
        case("cast", none().with("dtype", DType::F32), &[Real("B S")]),
        case("f32", none(), &[Real("B S")]),
        case("select", none(), &[Mask("B S"), Real("B S"), Real("B S")]),
        case("broadcast", none().with("to", axes("S B D")), &[Real("B")]),
        case("broadcast", none().with("to", axes("S D B")), &[Real("B S")]),
        case("permute", none().with("to", axes("D B S")), &[Real("B S D")]),
        case("rename", axis("from", "S").with("to", Axis::new("T")), &[Real("B S D")]).fit(renamed),
        case("split", axis("axis", "D").with("into", axes("G K")), &[Real("B D S")]).fit(merged),
        case("merge", axis("into", "D").with("axes", axes("G K")), &[Real("B G K S")]).fit(merged),
        case("slice", axis("axis", "S").with("start", 1).with("to", Axis::new("T")), &[Real("B S D")]).fit(window),
        case("pad", axis("axis", "T").with("before", 1).with("to", Axis::new("S")), &[Real("B T D")]).fit(window),
        case(
            "concat",
            axis("axis", "S").with("other", Axis::new("T")).with("to", Axis::new("L")),
            &[Real("B S D"), Real("B T D")],
        )
        .fit(joined),
        case(
            "concat",
            axis("axis", "S").with("other", Axis::new("S")).with("to", Axis::new("L")),
            &[Real("S D"), Real("S D")],
        )
        .fit(doubled),
        case("rotate_half", axis("axis", "K"), &[Real("S K B")]).fit(even_head),
        case("reduce_sum", none().with("axes", axes("S")), &[Real("B S D")]),
        case("reduce_sum", none().with("axes", axes("D B")), &[Real("B S D")]),
        case("reduce_max", none().with("axes", axes("S")), &[Apart("B S D")]),
        case("reduce_max", none().with("axes", axes("B D")), &[Apart("B S D")]),
        case("mean", none().with("axes", axes("S")), &[Real("B S D")]),
        case("mean", none().with("axes", axes("B S")), &[Real("B S")]),
        case("dot_general", none().with("out", axes("B S F")), &[Real("B S D"), Real("D F")]),
        case("dot_general", none().with("out", axes("B G R S K")), &[Real("B S D"), Real("D G R K")]),
        case("dot_general", none().with("out", axes("T B S")), &[Real("B S K"), Real("B K T")]),
        case("dot_general", none().with("out", axes("")), &[Real("B S"), Real("S B")]),
        case("dot_general", none().with("out", axes("S B")), &[Real("B"), Real("S")]),
        case("gather", none(), &[Real("V D"), Ids("B S", "V")]),
        case("gather", none(), &[Real("V"), Ids("B", "V")]),
        case("gather", none(), &[Real("V G K"), Ids("", "V")]),
        case("scatter_add", axis("axis", "V"), &[Ids("B S", "V"), Real("B S D")]),
        case("scatter_add", axis("axis", "V"), &[Ids("B", "V"), Real("B")]),
        case("silu", none(), &[Real("B S")]),
        case("gelu", none(), &[Real("B S")]),
        case("gelu_tanh", none(), &[Real("B S")]),
        case("relu", none(), &[Apart("B S")]),
        case("softmax", axis("axis", "S"), &[Real("B S D")]),
        case("softmax", axis("axis", "D"), &[Real("D")]),
        case("log_softmax", axis("axis", "S"), &[Real("B S D")]),
        // An epsilon far above H², or the norm of a row near zero bends within the stencil.
        case("rms_norm", none().with("eps", 1e-1), &[Real("B S D"), Real("D")]),
        case("rms_norm", none().with("eps", 1e-2), &[Real("D"), Real("D")]),
        case("layer_norm", none().with("eps", 1e-2), &[Real("B S D"), Real("D"), Real("D")]),
        case("rope", axis("seq", "S").with("head", Axis::new("K")), &[Real("B G S K"), Fixed(10_000.0)]).fit(even_head),
        case("rope", axis("seq", "S").with("head", Axis::new("K")).with("inverse", true), &[Real("K S"), Fixed(100.0)])
            .fit(even_head),
        case("dropout", none().with("rate", 0.3).with("site", 1), &[Real("B S D")]),
        case("cross_entropy", none(), &[Real("B S V"), Ids("B S", "V")]),
        case("cross_entropy", none(), &[Real("V"), Ids("", "V")]),
        case("linear_cross_entropy", none(), &[Real("B S D"), Real("V D"), Ids("B S", "V")]).active(2),
        case("linear_cross_entropy", none(), &[Real("B D"), Real("V D"), Ids("B", "V")]).active(2),
        case("all_reduce", none().with("mesh", "tensor"), &[Real("B S")]),
        case("pbroadcast", none().with("mesh", "tensor"), &[Real("B S")]),
        case("all_gather", axis("axis", "S").with("mesh", "tensor"), &[Real("B S")]),
        case("reduce_scatter", axis("axis", "S").with("mesh", "tensor"), &[Real("B S")]),
        case("pslice", axis("axis", "S").with("mesh", "tensor"), &[Real("B S")]),
    ];
    for op in ["neg", "exp", "sin", "cos", "tanh", "erf", "logistic"] {
        cases.push(case(op, none(), &[Real("B S")]));
    }
    for op in ["log", "sqrt", "rsqrt", "recip"] {
        cases.push(case(op, none(), &[Positive("B S")]));
    }
    for op in ["abs", "sign"] {
        cases.push(case(op, none(), &[Apart("B S")]));
    }
    for op in ["add", "sub", "mul"] {
        cases.push(case(op, none(), &[Real("B S"), Real("B S")]));
    }
    cases.push(case("div", none(), &[Real("B S"), Positive("B S")]));
    for op in ["max", "min"] {
        cases.push(case(op, none(), &[Apart("B S"), Apart("B S")]));
    }
    for op in ["lt", "le", "gt", "ge", "eq", "ne"] {
        cases.push(case(op, none(), &[Apart("B S"), Apart("B S")]));
        cases.push(case(op, none(), &[Apart("B S"), Ids("B S", "V")]));
    }
    for causal in [false, true] {
        let attrs = none().with("causal", causal);
        let heads = [Real("B G S K"), Real("B G T K"), Real("B G T K")];
        cases.push(case("attention", attrs.clone(), &heads).fit(covered).active(1));
        let grouped = [Real("B G R S K"), Real("B G S K"), Real("B G S K")];
        cases.push(case("attention", attrs.clone(), &grouped).active(1));
        cases.push(case("attention", attrs, &[Real("R S K"), Real("T K"), Real("T K")]).fit(covered).active(1));
    }
    cases
}

fn merged(sizes: &mut Sizes) {
    let n = size(sizes, "G") * size(sizes, "K");
    bind(sizes, "D", n);
}

fn window(sizes: &mut Sizes) {
    let t = size(sizes, "T");
    let s = t + 1 + size(sizes, "S") / 2;
    bind(sizes, "S", s);
}

fn joined(sizes: &mut Sizes) {
    let n = size(sizes, "S") + size(sizes, "T");
    bind(sizes, "L", n);
}

fn doubled(sizes: &mut Sizes) {
    let n = 2 * size(sizes, "S");
    bind(sizes, "L", n);
}

/// Every query sees a key.
fn covered(sizes: &mut Sizes) {
    let t = size(sizes, "T").max(size(sizes, "S"));
    bind(sizes, "T", t);
}

/// Operations without a case, each with its reason.
const NO_CASE: &[(&str, &str)] = &[
    (
        "stop_gradient",
        "its derivative is zero by the user's will: see `stop_gradient_is_the_identity_without_a_derivative`",
    ),
    ("sort_index", "has no real operand; runs in the expansion of `scatter_add`"),
    ("segment_sum", "stands in backward functions; runs in the expansion of `scatter_add`"),
    ("attention_vjp", "stands in backward functions; runs in the derivative of `attention`"),
    ("linear_cross_entropy_vjp", "stands in backward functions; runs in the derivative of `linear_cross_entropy`"),
    ("call", "linking replaces it; type rule in `structural_results_are_declared`"),
    ("call_vjp", "linking replaces it; type rule in `structural_results_are_declared`"),
    ("repeat", "linking replaces it; type rule in `structural_results_are_declared`"),
    ("repeat_vjp", "linking replaces it; type rule in `structural_results_are_declared`"),
    ("select_host", "see `select_host_runs_the_chosen_body`"),
    ("opaque", "its value is the user's; type rule in `structural_results_are_declared`"),
];

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn between(&mut self, a: f64, b: f64) -> f64 {
        a + (b - a) * self.unit()
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

fn uniform(site: i64, index: u64) -> f32 {
    // 24 bits, so that the quotient is exact and below 1.
    (Random(index ^ ((site as u64) << 40)).next() >> 40) as f32 / (1 << 24) as f32
}

fn with_cx<T>(sizes: &Sizes, f: impl FnOnce(&EvalCx<'_>) -> T) -> T {
    f(&EvalCx { sizes, uniform: &uniform })
}

fn draw_sizes(case: &Case, random: &mut Random) -> Sizes {
    let mut sizes: Sizes =
        axes("B S T D F G R K V L").into_iter().map(|a| (a, EXTENTS[random.below(EXTENTS.len())])).collect();
    (case.fit)(&mut sizes);
    sizes
}

fn arg_type(arg: Arg) -> Type {
    match arg {
        Real(a) | Positive(a) | Apart(a) => Type::f32(axes(a)),
        Fixed(_) => Type::f32([]),
        Mask(a) => Type::new(DType::Bool, axes(a)),
        Ids(a, _) => Type::new(DType::I32, axes(a)),
    }
}

fn draw(case: &Case, sizes: &Sizes, random: &mut Random) -> Vec<Array> {
    // Numbers for `Apart`: a shuffled grid around zero, shared by all operands.
    let count: usize = case.args.iter().map(|&a| sizes.elements(&arg_type(a).shape)).sum();
    let mut grid: Vec<f64> = (0..count).map(|i| 0.05 + 0.1 * (i as f64 - (count / 2) as f64)).collect();
    for i in (1..grid.len()).rev() {
        grid.swap(i, random.below(i + 1));
    }
    let mut element = |arg: Arg| match arg {
        Real(_) => random.between(-2.0, 2.0),
        Positive(_) => random.between(0.5, 2.5),
        Apart(_) => grid.pop().expect("the grid has a number for each element"),
        Fixed(x) => x,
        Mask(_) => random.below(2) as f64,
        Ids(_, bound) => match random.below(4) {
            0 => -1.0,
            _ => random.below(size(sizes, bound)) as f64,
        },
    };
    let array = |arg: &Arg| interp::build(sizes, &arg_type(*arg).shape, |_| element(*arg));
    case.args.iter().map(array).collect()
}

/// The operation alone as a function.
fn forward(case: &Case) -> Func {
    let mut b = Builder::default();
    let inputs: Vec<ValueId> =
        case.args.iter().enumerate().map(|(i, &a)| b.func.add_input(arg_type(a), &format!("x{i}"))).collect();
    b.func.outputs = b.ops(case.op, case.attrs.clone(), &inputs);
    checked(b.func)
}

/// Its derivative as a function of the operands and of a cotangent for each active float result.
fn backward(case: &Case, forward: &Func) -> Option<(Func, Vec<Option<usize>>)> {
    let Vjp::Rule(rule) = forward.nodes[0].op.vjp else { return None };
    let mut b = Builder::on(forward.clone());
    let node = forward.nodes[0].clone();
    let cotangents: Vec<Option<ValueId>> = (0..node.outputs.len())
        .map(|i| {
            let ty = b.ty(node.outputs[i]).clone();
            (ty.dtype.is_float() && i < case.active).then(|| b.func.add_input(ty.with(DType::F32), &format!("d{i}")))
        })
        .collect();
    let pulled = rule(&mut b, &VjpNode { node: &node, cotangents: &cotangents });
    assert_eq!(pulled.len(), node.inputs.len(), "`{}`: one entry per operand", case.op);
    b.func.outputs = pulled.iter().flatten().copied().collect();
    let mut next = 0..;
    let which = pulled.iter().map(|p| p.and_then(|_| next.next())).collect();
    for (i, p) in pulled.iter().enumerate() {
        let x = b.ty(node.inputs[i]);
        match p {
            Some(d) => assert_eq!(b.ty(*d).shape, x.shape, "`{}`: cotangent {i} has its operand's axes", case.op),
            None => assert!(
                !x.dtype.is_float() || matches!(case.args[i], Fixed(_)),
                "`{}`: real operand {i} has a cotangent",
                case.op
            ),
        }
    }
    Some((checked(b.func), which))
}

/// The function, verified and through the text form.
fn checked(func: Func) -> Func {
    let text = print_func(&func);
    let read = parse_func(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert_eq!(read, func, "{text}");
    verify::func(func).unwrap_or_else(|e| panic!("{e}\n{text}")).into_inner()
}

fn close(a: f64, b: f64, rtol: f64, atol: f64) -> bool {
    (a - b).abs() <= atol + rtol * a.abs().max(b.abs())
}

fn each_sample(mut f: impl FnMut(&Case, &Sizes, &[Array], &mut Random)) {
    for (i, case) in cases().iter().enumerate() {
        let mut random = Random(i as u64);
        for _ in 0..SHAPES {
            let sizes = draw_sizes(case, &mut random);
            let x = draw(case, &sizes, &mut random);
            f(case, &sizes, &x, &mut random);
        }
    }
}

#[test]
fn every_operation_has_a_case_or_a_reason() {
    let with_case: BTreeSet<&str> = cases().iter().map(|c| c.op).collect();
    let excused: BTreeSet<&str> = NO_CASE.iter().map(|(op, _)| *op).collect();
    let all: BTreeSet<&str> = ops::all().iter().map(|op| op.name).collect();
    let missing: Vec<_> = all.iter().filter(|op| !with_case.contains(*op) && !excused.contains(*op)).collect();
    assert!(missing.is_empty(), "no case for {missing:?}");
    assert!(with_case.is_disjoint(&excused), "both a case and a reason for none");
    assert!(excused.is_subset(&all), "reasons for operations that do not exist");
    assert_eq!(all.len(), ops::all().len(), "names are unique");
}

#[test]
fn derivatives_match_central_differences() {
    let mut compared = 0;
    each_sample(|case, sizes, x, random| {
        let f = forward(case);
        let value = |x: &[Array]| with_cx(sizes, |cx| interp::run(cx, &f, x));
        let y = value(x);
        let active = |i: usize| i < case.active && f.ty(f.outputs[i]).dtype.is_float();
        let u: Vec<Array> = (0..y.len())
            .map(|i| interp::build(sizes, &f.ty(f.outputs[i]).shape, |_| random.between(-1.0, 1.0)))
            .collect();
        let dot = |a: &Array, b: &Array| a.data.iter().zip(&b.data).map(|(a, b)| a * b).sum::<f64>();
        // ⟨f(x + t·v), u⟩ by the five-point stencil in t.
        let along = |v: &[Array]| {
            let at = |t: f64| {
                let moved: Vec<Array> = x
                    .iter()
                    .zip(v)
                    .map(|(x, v)| {
                        Array::new(x.dims.clone(), x.data.iter().zip(&v.data).map(|(x, v)| x + t * v).collect())
                    })
                    .collect();
                value(&moved).iter().enumerate().filter(|(i, _)| active(*i)).map(|(i, y)| dot(y, &u[i])).sum::<f64>()
            };
            (at(-2.0 * H) - 8.0 * at(-H) + 8.0 * at(H) - at(2.0 * H)) / (12.0 * H)
        };
        let pulled: Vec<Array> = match backward(case, &f) {
            None => {
                assert!(matches!(f.nodes[0].op.vjp, Vjp::Zero), "`{}` has no derivative", case.op);
                x.iter().map(|x| Array::full(x.dims.clone(), 0.0)).collect()
            }
            Some((b, which)) => {
                let inputs: Vec<Array> =
                    x.iter().chain((0..y.len()).filter(|&i| active(i)).map(|i| &u[i])).cloned().collect();
                let d = with_cx(sizes, |cx| interp::run(cx, &b, &inputs));
                let zero = |x: &Array| Array::full(x.dims.clone(), 0.0);
                which.iter().zip(x).map(|(w, x)| w.map_or_else(|| zero(x), |w| d[w].clone())).collect()
            }
        };
        let moves = |i: usize| matches!(case.args[i], Real(_) | Positive(_) | Apart(_));
        let still: Vec<Array> = x.iter().map(|x| Array::full(x.dims.clone(), 0.0)).collect();
        for i in (0..x.len()).filter(|&i| moves(i)) {
            let n = x[i].data.len();
            let elements: BTreeSet<usize> =
                if n <= SAMPLED { (0..n).collect() } else { (0..SAMPLED).map(|_| random.below(n)).collect() };
            for e in elements {
                let mut v = still.clone();
                v[i].data[e] = 1.0;
                let (expected, found) = (along(&v), pulled[i].data[e]);
                let context = || format!("`{}` {:?}: operand {i}, element {e}, {sizes:?}", case.op, case.attrs);
                assert!(close(found, expected, RTOL, ATOL), "{}: {found} instead of {expected}", context());
                compared += 1;
            }
        }
        // ⟨Jv, u⟩ = ⟨v, Jᵀu⟩ with steps short enough for the functions with kinks.
        let mut v = still;
        for i in (0..x.len()).filter(|&i| moves(i)) {
            v[i].data.iter_mut().for_each(|v| *v = random.between(-1.0, 1.0));
        }
        let (jv, jtu) = (along(&v), v.iter().zip(&pulled).map(|(v, d)| dot(v, d)).sum::<f64>());
        let total = 1.0
            + v.iter()
                .zip(&pulled)
                .map(|(v, d)| v.data.iter().zip(&d.data).map(|(a, b)| (a * b).abs()).sum::<f64>())
                .sum::<f64>();
        assert!((jv - jtu).abs() <= ATOL + RTOL * total, "`{}`, {sizes:?}: ⟨Jv,u⟩ = {jv}, ⟨v,Jᵀu⟩ = {jtu}", case.op);
    });
    assert!(compared > 10_000, "only {compared} derivatives were compared");
}

#[test]
fn composites_equal_their_expansions() {
    let mut expanded = BTreeSet::new();
    each_sample(|case, sizes, x, _| {
        let f = forward(case);
        let node = f.nodes[0].clone();
        let Some(expand) = node.op.expand else { return };
        expanded.insert(case.op);
        let mut b = Builder::on(f.clone());
        b.func.nodes.clear();
        let outputs = expand(&mut b, &node);
        for (&a, &o) in node.outputs.iter().zip(&outputs) {
            assert_eq!(f.ty(a), b.ty(o), "`{}`: the expansion has the type of the operation", case.op);
        }
        b.func.outputs = outputs;
        let g = checked(b.func);
        let composite = |n: &&kiln_compiler::ir::Node| n.op.expand.is_some();
        assert!(g.nodes.iter().find(composite).is_none(), "`{}` expands into primitives", case.op);
        let (direct, primitives) = with_cx(sizes, |cx| (interp::run(cx, &f, x), interp::run(cx, &g, x)));
        for (a, b) in direct.iter().zip(&primitives) {
            for (&a, &b) in a.data.iter().zip(&b.data) {
                assert!(close(a, b, SAME, SAME), "`{}` {sizes:?}: {a} directly, {b} in primitives", case.op);
            }
        }
    });
    let composites: BTreeSet<&str> = ops::all().iter().filter(|op| op.expand.is_some()).map(|op| op.name).collect();
    assert_eq!(expanded, composites);
}

/// Nodes as (operation, attributes, operands), with operands renumbered by definition so that two builds compare.
fn fingerprints(func: &Func, skip: usize) -> Vec<String> {
    let mut names: Vec<String> = func.values.iter().map(|v| v.name.clone().unwrap_or_default()).collect();
    let mut prints = Vec::new();
    for n in &func.nodes[skip..] {
        let inputs: Vec<&str> = n.inputs.iter().map(|v| names[v.index()].as_str()).collect();
        let print = format!("{}{:?}({})", n.op.name, n.attrs, inputs.join(","));
        for (i, o) in n.outputs.iter().enumerate() {
            names[o.index()] = format!("{print}.{i}");
        }
        prints.push(print);
    }
    prints
}

#[test]
fn norms_recompute_their_statistics_by_the_nodes_of_the_expansion() {
    for (case, shared) in cases().into_iter().filter_map(|c| match c.op {
        "rms_norm" => Some((c, 8)),
        "layer_norm" => Some((c, 13)),
        "cross_entropy" => Some((c, 5)),
        _ => None,
    }) {
        let f = forward(&case);
        let mut b = Builder::on(f.clone());
        b.func.nodes.clear();
        (f.nodes[0].op.expand.expect("a composite"))(&mut b, &f.nodes[0]);
        let (forward, backward) = (fingerprints(&b.func, 0), fingerprints(&backward(&case, &f).expect("a rule").0, 1));
        let merging = forward.iter().filter(|p| backward.contains(p)).count();
        assert!(
            merging >= shared,
            "`{}`: {merging} of the forward's nodes appear in its derivative, {forward:#?}",
            case.op
        );
    }
}

fn op(name: &str) -> Op {
    ops::find(name).unwrap_or_else(|| panic!("no operation `{name}`"))
}

/// Values worked out by hand: (result type, operation with attributes, operands as type and elements, expected elements).
#[test]
fn values() {
    type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a [f64])], &'a [f64]);
    let counted: &[f64] = &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0];
    let cases: &[Case<'_>] = &[
        ("f32[B, D]", "const(X) {shape=[B, D], value=2}", &[], &[2.0; 6]),
        ("f32[B, D]", "iota(X) {axis='D, shape=[B, D]}", &[], &[0.0, 1.0, 2.0, 0.0, 1.0, 2.0]),
        ("f32[D, B]", "iota(X) {axis='D, shape=[D, B]}", &[], &[0.0, 0.0, 1.0, 1.0, 2.0, 2.0]),
        ("f32[K]", "half_sign(X) {axis='K, shape=[K]}", &[], &[-1.0, -1.0, 1.0, 1.0]),
        ("f32[]", "size(X) {axes=[B, D], shape=[]}", &[], &[6.0]),
        ("f32[]", "size(X) {axes=[K], recip=true, shape=[]}", &[], &[0.25]),
        ("f32[D, B]", "broadcast(X) {to=[D, B]}", &[("f32[B]", &[1.0, 2.0])], &[1.0, 2.0, 1.0, 2.0, 1.0, 2.0]),
        ("f32[D, B]", "permute(X) {to=[D, B]}", &[("f32[B, D]", counted)], &[0.0, 3.0, 1.0, 4.0, 2.0, 5.0]),
        ("f32[B, D]", "split(X) {axis='E, into=[B, D]}", &[("f32[E]", counted)], counted),
        ("f32[E]", "merge(X) {axes=[B, D], into='E}", &[("f32[B, D]", counted)], counted),
        ("f32[B, H]", "slice(X) {axis='D, start=1, to='H}", &[("f32[B, D]", counted)], &[1.0, 2.0, 4.0, 5.0]),
        ("f32[D]", "pad(X) {axis='H, before=1, to='D}", &[("f32[H]", &[1.0, 2.0])], &[0.0, 1.0, 2.0]),
        ("f32[D]", "pad(X) {axis='I, before='B, to='D}", &[("f32[I]", &[7.0])], &[0.0, 0.0, 7.0]),
        (
            "f32[B, D]",
            "concat(X) {axis='H, other='I, to='D}",
            &[("f32[B, H]", &[1.0, 2.0, 3.0, 4.0]), ("f32[B, I]", &[8.0, 9.0])],
            &[1.0, 2.0, 8.0, 3.0, 4.0, 9.0],
        ),
        ("f32[K, I]", "rotate_half(X) {axis='K}", &[("f32[K, I]", &[1.0, 2.0, 3.0, 4.0])], &[3.0, 4.0, 1.0, 2.0]),
        ("f32[D]", "reduce_sum(X) {axes=[B]}", &[("f32[B, D]", counted)], &[3.0, 5.0, 7.0]),
        ("f32[B]", "reduce_max(X) {axes=[D]}", &[("f32[B, D]", &[-1.0, -3.0, -2.0, 0.0, 9.0, 1.0])], &[-1.0, 9.0]),
        ("f32[B]", "mean(X) {axes=[D]}", &[("f32[B, D]", counted)], &[1.0, 4.0]),
        (
            "f32[H, B]",
            "dot_general(X) {out=[H, B]}",
            &[("f32[B, D]", counted), ("f32[D, H]", &[1.0, 0.0, 0.0, 10.0, 100.0, 0.0])],
            &[200.0, 503.0, 10.0, 40.0],
        ),
        (
            "f32[D, B]",
            "gather(X)",
            &[("f32[H, B]", &[1.0, 2.0, 3.0, 4.0]), ("i32[D]", &[1.0, -1.0, 0.0])],
            &[3.0, 4.0, 0.0, 0.0, 1.0, 2.0],
        ),
        (
            "f32[H, B]",
            "scatter_add(X) {axis='H}",
            &[("i32[D]", &[1.0, -1.0, 1.0]), ("f32[D, B]", counted)],
            &[0.0, 0.0, 4.0, 6.0],
        ),
        ("bool[D]", "lt(X)", &[("f32[D]", &[1.0, 2.0, 3.0]), ("i32[D]", &[2.0, 2.0, 2.0])], &[1.0, 0.0, 0.0]),
        ("bool[D]", "le(X)", &[("f32[D]", &[1.0, 2.0, 3.0]), ("i32[D]", &[2.0, 2.0, 2.0])], &[1.0, 1.0, 0.0]),
        ("bool[D]", "gt(X)", &[("i32[D]", &[1.0, 2.0, 3.0]), ("f32[D]", &[2.0, 2.0, 2.0])], &[0.0, 0.0, 1.0]),
        ("bool[D]", "ge(X)", &[("i32[D]", &[1.0, 2.0, 3.0]), ("f32[D]", &[2.0, 2.0, 2.0])], &[0.0, 1.0, 1.0]),
        ("bool[D]", "eq(X)", &[("f32[D]", &[1.0, 2.0, 3.0]), ("f32[D]", &[2.0, 2.0, 2.0])], &[0.0, 1.0, 0.0]),
        ("bool[D]", "ne(X)", &[("f32[D]", &[1.0, 2.0, 3.0]), ("f32[D]", &[2.0, 2.0, 2.0])], &[1.0, 0.0, 1.0]),
        (
            "f32[D]",
            "select(X)",
            &[("bool[D]", &[1.0, 0.0, 1.0]), ("f32[D]", &[1.0, 2.0, 3.0]), ("f32[D]", &[4.0, 5.0, 6.0])],
            &[1.0, 5.0, 3.0],
        ),
        ("f32[D]", "max(X)", &[("f32[D]", &[1.0, 2.0, 3.0]), ("f32[D]", &[2.0, 2.0, 2.0])], &[2.0, 2.0, 3.0]),
        ("f32[D]", "min(X)", &[("f32[D]", &[1.0, 2.0, 3.0]), ("f32[D]", &[2.0, 2.0, 2.0])], &[1.0, 2.0, 2.0]),
        ("f32[D]", "sign(X)", &[("f32[D]", &[-3.0, 0.0, 3.0])], &[-1.0, 0.0, 1.0]),
        ("f32[D]", "relu(X)", &[("f32[D]", &[-3.0, 0.0, 3.0])], &[0.0, 0.0, 3.0]),
    ];
    let sizes: Sizes = [("B", 2), ("D", 3), ("E", 6), ("H", 2), ("I", 1), ("K", 4)]
        .map(|(a, n)| (Axis::new(a), n))
        .into_iter()
        .collect();
    for (result, call, operands, expected) in cases {
        let numbered = |f: &dyn Fn(usize) -> String| (0..operands.len()).map(f).collect::<Vec<_>>().join(", ");
        let args = numbered(&|i| format!("%{i}: {}", operands[i].0));
        let n = operands.len();
        let call = call.replace('X', &numbered(&|i| format!("%{i}")));
        let text = format!("fn({args}) {{ %{n}: {result} = {call} return %{n} }}");
        let func = checked(parse_func(&text).unwrap_or_else(|e| panic!("{e}: {text}")));
        let array = |v: ValueId, x: &[f64]| Array::new(sizes.shape(&func.ty(v).shape), x.to_vec());
        let x: Vec<Array> = func.inputs.iter().zip(*operands).map(|(&v, (_, x))| array(v, x)).collect();
        let y = with_cx(&sizes, |cx| interp::run(cx, &func, &x));
        assert_eq!(y, [array(func.outputs[0], expected)], "{text}");
    }
}

/// The library operations against the same mathematics in primitives.
#[test]
fn attention_is_the_masked_softmax_of_scores() {
    let grouped = "B G R S K";
    each_sample(|case, sizes, x, _| {
        let (causal, &[Real(q), Real(k), _]) = (case.attrs.flag("causal"), case.args.as_slice()) else { return };
        if case.op != "attention" {
            return;
        }
        // Keys named as queries get a name of their own.
        let keys = if q == grouped { "B G T K" } else { k };
        let mut sizes = sizes.clone();
        if q == grouped {
            renamed(&mut sizes);
        }
        let mut b = Builder::default();
        let (query, key) = (b.func.add_input(Type::f32(axes(q)), "q"), b.func.add_input(Type::f32(axes(keys)), "k"));
        let value = b.func.add_input(Type::f32(axes(keys)), "v");
        let scores = axes(&format!("{} S T", q.trim_end_matches("S K")));
        let product = b.dot(query, key, &scores);
        let scaled = b.scale(product, 1.0 / (size(&sizes, "K") as f64).sqrt());
        let index = |b: &mut Builder, a| b.op("iota", axis("axis", a).with("shape", scores.clone()), &[]);
        let (i, j) = (index(&mut b, "S"), index(&mut b, "T"));
        let shift = b.constant(size(&sizes, "T") as f64 - size(&sizes, "S") as f64, &scores);
        let last = b.add(i, shift);
        let seen = b.binary("le", j, last);
        let never = b.constant(f64::NEG_INFINITY, &scores);
        let masked = if causal { b.op("select", none(), &[seen, scaled, never]) } else { scaled };
        let p = b.op("softmax", axis("axis", "T"), &[masked]);
        let e = b.unary("exp", masked);
        let sum = b.sum(e, &axes("T"));
        let lse = b.unary("log", sum);
        b.func.outputs = vec![b.dot(p, value, &axes(q)), lse];
        let reference = checked(b.func);
        let y = with_cx(&sizes, |cx| (interp::run(cx, &forward(case), x), interp::run(cx, &reference, x)));
        for (a, b) in y.0.iter().zip(&y.1).flat_map(|(a, b)| a.data.iter().zip(&b.data)) {
            assert!(close(*a, *b, SAME, SAME), "{:?} {sizes:?}: {a}, in primitives {b}", case.attrs);
        }
    });
}

#[test]
fn linear_cross_entropy_is_cross_entropy_of_the_product() {
    each_sample(|case, sizes, x, _| {
        if case.op != "linear_cross_entropy" {
            return;
        }
        let mut b = Builder::default();
        let v: Vec<ValueId> = case.args.iter().map(|&a| b.func.add_input(arg_type(a), "x")).collect();
        let mut logits = b.shape(v[2]);
        logits.push(Axis::new("V"));
        let logits = b.dot(v[0], v[1], &logits);
        b.func.outputs = b.ops("cross_entropy", none(), &[logits, v[2]]);
        let reference = checked(b.func);
        let y = with_cx(sizes, |cx| (interp::run(cx, &forward(case), x), interp::run(cx, &reference, x)));
        assert!(close(y.0[0].data[0], y.1[0].data[0], SAME, SAME), "{} {}", y.0[0].data[0], y.1[0].data[0]);
        assert_eq!(y.0[1], y.1[1]);
    });
}

#[test]
fn stop_gradient_is_the_identity_without_a_derivative() {
    let case = case("stop_gradient", none(), &[Real("B S")]);
    let sizes: Sizes = [(Axis::new("B"), 2), (Axis::new("S"), 3)].into_iter().collect();
    let x = draw(&case, &sizes, &mut Random(1));
    assert_eq!(with_cx(&sizes, |cx| interp::run(cx, &forward(&case), &x)), x);
    assert!(matches!(op("stop_gradient").vjp, Vjp::Zero));
}

#[test]
fn cast_rounds_to_even() {
    let c = case("cast", none().with("dtype", DType::Bf16), &[Real("B")]);
    let sizes: Sizes = [(Axis::new("B"), 3)].into_iter().collect();
    let x = Array::new([3], vec![1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -1e-3]);
    let y = with_cx(&sizes, |cx| interp::run(cx, &forward(&c), &[x]));
    assert_eq!(y[0].data, [1.0, 1.0 + 4.0 / 256.0, f64::from(half::bf16::from_f64(-1e-3))]);
}

#[test]
fn ties_share_the_cotangent() {
    let sizes: Sizes = [(Axis::new("B"), 4)].into_iter().collect();
    let one = |n: usize| Array::full([n], 1.0);
    let max = case("reduce_max", none().with("axes", axes("B")), &[Real("B")]);
    let (b, _) = backward(&max, &forward(&max)).expect("a rule");
    let x = Array::new([4], vec![1.0, 3.0, 3.0, 2.0]);
    let d = with_cx(&sizes, |cx| interp::run(cx, &b, &[x.clone(), Array::scalar(1.0)]));
    assert_eq!(d[0].data, [0.0, 0.5, 0.5, 0.0]);
    let max = case("max", none(), &[Real("B"), Real("B")]);
    let (b, _) = backward(&max, &forward(&max)).expect("a rule");
    let d = with_cx(&sizes, |cx| interp::run(cx, &b, &[x, Array::full([4], 2.0), one(4)]));
    assert_eq!((d[0].data.as_slice(), d[1].data.as_slice()), (&[0.0, 1.0, 1.0, 0.5][..], &[1.0, 0.0, 0.0, 0.5][..]));
}

#[test]
fn causal_queries_before_the_first_key_give_zeros() {
    let c = case("attention", none().with("causal", true), &[Real("S K"), Real("T K"), Real("T K")]).active(1);
    let sizes: Sizes = [("S", 3), ("T", 2), ("K", 2)].into_iter().map(|(a, n)| (Axis::new(a), n)).collect();
    let x = draw(&c, &sizes, &mut Random(2));
    let f = forward(&c);
    let y = with_cx(&sizes, |cx| interp::run(cx, &f, &x));
    assert_eq!(y[0].data[..2], [0.0, 0.0]);
    assert_eq!(y[1].data[0], f64::NEG_INFINITY);
    let (b, _) = backward(&c, &f).expect("a rule");
    let inputs: Vec<Array> = x.into_iter().chain([Array::full([3, 2], 1.0)]).collect();
    let d = with_cx(&sizes, |cx| interp::run(cx, &b, &inputs));
    assert!(d.iter().all(|d| d.data.iter().all(|x| x.is_finite())));
}

#[test]
fn select_host_runs_the_chosen_body() {
    let body = |op: &str| {
        let mut b = Builder::default();
        let x = b.func.add_input(Type::f32(axes("B")), "x");
        b.func.outputs = vec![b.unary(op, x)];
        b.func
    };
    let sizes: Sizes = [(Axis::new("B"), 2)].into_iter().collect();
    for (cond, expected) in [(true, [-1.0, -2.0]), (false, [1.0, 4.0_f64.sqrt() / 4.0])] {
        let mut b = Builder::default();
        let x = b.func.add_input(Type::f32(axes("B")), "x");
        let attrs = none().with("cond", cond).with("outs", 1).with("out0", axes("B")).with("dtype", DType::F32);
        b.func.outputs = b.ops("select_host", attrs, &[x]);
        b.func.nodes[0].bodies = vec![body("neg"), body("recip")];
        let f = checked(b.func);
        let y = with_cx(&sizes, |cx| interp::run(cx, &f, &[Array::new([2], vec![1.0, 2.0])]));
        assert_eq!(y[0].data, expected);
    }
}

#[test]
fn structural_results_are_declared() {
    let mut b = Builder::default();
    let x = b.func.add_input(Type::f32(axes("B D")), "x");
    let w = b.func.add_input(Type::new(DType::Bf16, axes("D")), "w");
    let ids = b.func.add_input(Type::new(DType::I32, axes("B")), "ids");
    let call = none().with("sub", 0).with("dtype", DType::Sub(0)).with("outs", 2);
    let call = call.with("out0", axes("B D")).with("out1", axes(""));
    let y = b.ops("call", call.clone(), &[x, w, ids]);
    assert_eq!(y.iter().map(|&y| b.ty(y).to_string()).collect::<Vec<_>>(), ["sub0[B, D]", "sub0[]"]);
    let loss = b.ops("call", none().with("sub", 0).with("loss", true), &[x]);
    assert_eq!(loss.iter().map(|&y| b.ty(y).to_string()).collect::<Vec<_>>(), ["f32[]", "f32[]"]);
    let back = call.with("n_inputs", 3).with("mask", "110");
    let d = b.ops("call_vjp", back, &[x, w, ids, y[0], y[1]]);
    assert_eq!(d.iter().map(|&d| b.ty(d).to_string()).collect::<Vec<_>>(), ["f32[B, D]", "bf16[D]"]);
    let repeat = axis("axis", "L").with("sub", 0);
    let y = b.op("repeat", repeat.clone(), &[x, w]);
    assert_eq!(b.ty(y), b.ty(x));
    let d = b.ops("repeat_vjp", repeat.with("n_inputs", 2).with("mask", "01"), &[x, w, y]);
    assert_eq!(d.iter().map(|&d| b.ty(d).to_string()).collect::<Vec<_>>(), ["bf16[D]"]);
    let opaque = none().with("name", "scan").with("outs", 1).with("out0", axes("D")).with("dtype", DType::F32);
    let y = b.op("opaque", opaque, &[x]);
    assert_eq!(b.ty(y).to_string(), "f32[D]");
    b.func.outputs = vec![y];
    checked(b.func);
}

#[test]
fn float_operands_may_have_any_float_type() {
    for case in cases() {
        let low = |a: &Arg| match arg_type(*a) {
            t if t.dtype.is_float() => t.with(DType::Compute),
            t => t,
        };
        let types: Vec<Type> = case.args.iter().map(low).collect();
        let refs: Vec<&Type> = types.iter().collect();
        let outs = (op(case.op).infer)(&case.attrs, &refs).unwrap_or_else(|e| panic!("`{}`: {e}", case.op));
        let keeps = matches!(op(case.op).class, ops::Class::View | ops::Class::Collective) || case.op == "gather";
        for t in outs.iter().filter(|t| t.dtype.is_float()) {
            let expected = if keeps { DType::Compute } else { DType::F32 };
            assert_eq!(t.dtype, expected, "`{}`", case.op);
        }
    }
}
