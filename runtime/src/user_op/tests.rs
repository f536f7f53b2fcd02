//! Operations of the user's own: eager, recorded and parsed, interpreted, executed and trained on the host.

use crate::layer::{Layer as _, LayerDef};
use crate::optim::{Optimizer, Sgd};
use crate::prelude::*;
use crate::schedule::Schedule;
use crate::session::Session;
use crate::tensor::record;
use crate::trainer::Trainer;
use crate::user_op::{self, HostArray, HostIds, UserOp};
use kiln_compiler::interp::{self, Array};
use kiln_compiler::ir::{Axis, DType, Layer, Sizes, text::print_layer};
use kiln_compiler::ops::EvalCx;
use std::collections::BTreeMap;

axes! { B: "batch", S: "sequence", D: "model", F: "hidden", C: "classes" }

/// A decaying sum along the second axis: yₛ = xₛ + w·yₛ₋₁.
#[op(sig = "b s d, d -> b s d", vjp = scan_vjp)]
pub fn scan(x: &HostArray, w: &HostArray) -> HostArray {
    sums(x, w)
}

/// As a kernel: one unit for each sequence and feature.
#[op(sig = "b s d, d -> b s d", vjp = scan_vjp, reference = sums)]
#[cube]
pub fn scan_kernel(x: &Array<f32>, w: &Array<f32>, y: &mut Array<f32>, b: usize, s: usize, d: usize) {
    let unit = ABSOLUTE_POS;
    if unit < b * d {
        let mut sum = 0.0;
        for step in 0..s {
            let at = (unit / d * s + step) * d + unit % d;
            sum = x[at] + w[unit % d] * sum;
            y[at] = sum;
        }
    }
}

fn sums(x: &HostArray, w: &HostArray) -> HostArray {
    let [_, s, d] = x.dims[..] else { panic!("three axes") };
    let mut y = x.clone();
    for i in 0..y.data.len() {
        if i / d % s > 0 {
            y.data[i] += w.data[i % d] * y.data[i - d];
        }
    }
    y
}

/// x̄ₛ = ȳₛ + w·x̄ₛ₊₁; w̄ = Σ x̄ₛ·yₛ₋₁.
#[op(sig = "b s d, d, b s d -> b s d, d")]
pub fn scan_vjp(x: &HostArray, w: &HostArray, dy: &HostArray) -> (HostArray, HostArray) {
    let [_, s, d] = x.dims[..] else { panic!("three axes") };
    let (y, mut dx, mut dw) = (sums(x, w), dy.clone(), HostArray::zeros(w.dims.clone()));
    for i in (0..dx.data.len()).rev() {
        if i / d % s > 0 {
            dx.data[i - d] += w.data[i % d] * dx.data[i];
            dw.data[i % d] += dx.data[i] * y.data[i - d];
        }
    }
    (dx, dw)
}

/// Rows of a table, and their squared lengths.
#[op(sig = "c d, b -> b d, b", vjp = rows_vjp)]
pub fn rows(table: &HostArray, ids: &HostIds) -> (HostArray, HostArray) {
    let d = table.dims[1];
    let row = |&i: &i32| table.data[i as usize * d..][..d].to_vec();
    let found: Vec<f32> = ids.data.iter().flat_map(row).collect();
    let squares = found.chunks(d).map(|r| r.iter().map(|x| x * x).sum()).collect();
    (HostArray::new([ids.dims[0], d], found), HostArray::new(ids.dims.clone(), squares))
}

/// The derivative of `rows`.
#[op(sig = "c d, b, b d, b -> c d")]
pub fn rows_vjp(table: &HostArray, ids: &HostIds, d_rows: &HostArray, d_squares: &HostArray) -> HostArray {
    let d = table.dims[1];
    let mut grad = HostArray::zeros(table.dims.clone());
    for (b, &id) in ids.data.iter().enumerate() {
        for k in 0..d {
            let at = id as usize * d + k;
            grad.data[at] += d_rows.data[b * d + k] + 2.0 * table.data[at] * d_squares.data[b];
        }
    }
    grad
}

/// A layer whose body calls an operation by a path.
#[layer]
fn smooth(
    x: Tensor<B, S, D>,
    #[param(init = uniform(-0.5, 0.5))] w: Tensor<D>,
    #[param(init = normal(0.5))] up: Tensor<D, F>,
) -> Tensor<B, S, F> {
    let y: Tensor<B, S, D> = self::scan(x, w);
    let z = x + scan(y * 0.5, w);
    z.matmul(up).tanh()
}

/// The same body, recorded.
#[layer(trace)]
fn smooth_traced(
    x: Tensor<B, S, D>,
    #[param(init = uniform(-0.5, 0.5))] w: Tensor<D>,
    #[param(init = normal(0.5))] up: Tensor<D, F>,
) -> Tensor<B, S, F> {
    let y = scan(x, w);
    let z = x + scan(y * 0.5, w);
    z.matmul(up).tanh()
}

#[layer]
fn net(x: Tensor<B, S, D>, kind: Ids<B>, #[sub] smooth: Smooth, #[param(init = xavier)] out: Tensor<F, C>) -> Loss {
    let h: Tensor<B, S, F> = smooth.forward(x);
    h.mean(S).matmul(out).cross_entropy(kind)
}

#[layer]
fn net_traced(
    x: Tensor<B, S, D>,
    kind: Ids<B>,
    #[sub] smooth: SmoothTraced,
    #[param(init = xavier)] out: Tensor<F, C>,
) -> Loss {
    let h: Tensor<B, S, F> = smooth.forward(x);
    h.mean(S).matmul(out).cross_entropy(kind)
}

#[layer]
fn looked_up(ids: Ids<B>, kind: Ids<B>, #[param(init = normal(1.0))] table: Tensor<C, D>) -> Loss {
    let (r, n): (Tensor<B, D>, Tensor<B>) = rows(table, ids);
    (r.matmul(table.permute((D, C))) + n.over(C)).cross_entropy(kind)
}

fn sizes() -> Sizes {
    sizes! { B = 4, S = 5, D = 3, F = 6, C = 3 }
}

fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let word = |i: u64| (seed * 1_000_003 + i).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
    (0..n as u64).map(|i| word(i) as f32 / (1 << 23) as f32 - 1.0).collect()
}

fn recorded(def: &'static LayerDef) -> Layer {
    record(def, def.record.expect("it can be recorded"), &BTreeMap::new()).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn an_operation_of_the_users_runs_its_reference() {
    let x = Tensor::new(&[1, 3, 2], vec![1.0; 6]).named((B, S, D));
    let y = scan(x, Tensor::new(&[2], vec![0.5, 2.0]));
    assert_eq!(y.to_vec(), [1.0, 1.0, 1.5, 3.0, 1.75, 7.0]);
    assert_eq!((y + x).dims(), [1, 3, 2]);
}

#[test]
fn the_reference_of_a_kernel_runs_on_the_host() {
    let (x, w) = (Tensor::new(&[2, 4, 3], numbers(24, 9)), Tensor::new(&[3], numbers(3, 8)));
    assert_eq!(scan_kernel(x, w).to_vec(), scan(x, w).to_vec());
    let kernels = user_op::user_ops().filter(|o| o.has_kernel).map(|o| o.label).collect::<Vec<_>>();
    assert_eq!(kernels, ["scan_kernel"]);
}

#[test]
fn axes_without_a_name_stay_apart() {
    /// Products of all pairs.
    #[op(sig = "a, b -> a b")]
    fn outer(x: &HostArray, y: &HostArray) -> HostArray {
        let data = x.data.iter().flat_map(|x| y.data.iter().map(move |y| x * y)).collect();
        HostArray::new([x.dims[0], y.dims[0]], data)
    }
    let x = Tensor::new(&[2], vec![1.0, 2.0]);
    let y = outer(x, x);
    assert_eq!(y.matmul(y).to_vec(), [5.0, 10.0, 10.0, 20.0]);
}

#[test]
#[should_panic(expected = "K0106: `scan` takes `d` as operand 2, which is f32[_0, _1]")]
fn operands_fit_the_sig() {
    scan(Tensor::ones(&[1, 3, 2]), Tensor::ones(&[2, 2]));
}

#[test]
#[should_panic(expected = "K0105: `scan` takes numbers as operand 2, which is i32[_0]")]
fn operands_are_of_the_kind_of_their_argument() {
    scan(Tensor::ones(&[1, 3, 2]), Ids::new(&[2], vec![0, 1]));
}

#[test]
#[should_panic(expected = "K0124: the reference of `kiln::user_op::tests::short`")]
fn a_reference_returns_the_sizes_of_the_sig() {
    /// One element too few.
    #[op(sig = "a -> a")]
    fn short(x: &HostArray) -> HostArray {
        HostArray::zeros([x.dims[0] - 1])
    }
    short(Tensor::ones(&[3]));
}

#[test]
fn operations_are_listed_for_tools() {
    let ops: Vec<&UserOp> = user_op::user_ops().filter(|o| o.name.starts_with("kiln::user_op::tests::")).collect();
    let find = |label: &str| ops.iter().find(|o| o.label == label).copied();
    let scan = find("scan").expect("`scan` is listed");
    assert_eq!((scan.name, scan.sig), ("kiln::user_op::tests::scan", "b s d, d -> b s d"));
    assert_eq!(scan.vjp.map(|v| v.name), Some("kiln::user_op::tests::scan_vjp"));
    assert!(scan.at.0.ends_with("tests.rs") && scan.at.1 > 10, "{:?}", scan.at);
    assert!(find("rows_vjp").is_some_and(|o| o.vjp.is_none()));
}

#[test]
fn two_operations_of_one_name_are_told_apart() {
    fn first() -> &'static UserOp {
        #[op(sig = "a -> a")]
        fn twice(x: &HostArray) -> HostArray {
            x.clone()
        }
        <__KilnOp_twice as user_op::Operation>::OP
    }
    fn second() -> &'static UserOp {
        #[op(sig = "a b -> a b")]
        fn twice(x: &HostArray) -> HostArray {
            x.clone()
        }
        <__KilnOp_twice as user_op::Operation>::OP
    }
    assert_eq!(user_op::register(first()), Ok(()));
    assert_eq!(user_op::register(first()), Ok(()));
    assert_eq!(user_op::register(second()).map_err(|e| e.code), Err("K0602"));
}

/// Without positions, the parsed and the recorded body are one text.
#[test]
fn the_parsed_body_is_the_recorded_one() {
    let mut parsed = kiln_compiler::ir::text::parse_layer(Smooth::DEF.ir).expect("the macro's text is IR");
    user_op::resolve(&mut parsed.body, Smooth::DEF.ops).expect("the operations are known");
    let nodes = |layer: &Layer| {
        let print = |n: &kiln_compiler::ir::Node| format!("{} {:?} {:?} {:?}", n.op.name, n.attrs, n.inputs, n.outputs);
        layer.body.nodes.iter().map(print).collect::<Vec<_>>()
    };
    assert_eq!(nodes(&parsed), nodes(&recorded(Smooth::DEF)));
    assert_eq!(nodes(&parsed), nodes(&recorded(SmoothTraced::DEF)));
    let text = print_layer(&parsed);
    let node = "opaque(%0, %1) {dtype=:f32, name=\"kiln::user_op::tests::scan\", out0=[B, S, D], outs=1, \
                vjp=\"kiln::user_op::tests::scan_vjp\"}";
    assert_eq!(text.matches(node).count(), 1, "{text}");
}

/// Products of six and roundings of ten, on numbers below 2.
const ROUNDING: f64 = 64.0 * f32::EPSILON as f64;

#[test]
fn eager_interpreted_and_executed_agree() {
    let (x, w, up) = (numbers(60, 1), numbers(3, 2), numbers(18, 3));
    let arrays = [(&[4, 5, 3][..], &x), (&[3], &w), (&[3, 6], &up)]
        .map(|(dims, data)| Array::new(dims, data.iter().map(|&v| f64::from(v)).collect()));
    let cx = EvalCx { sizes: &sizes(), uniform: &|_, _| 0.0 };
    let interpreted = interp::run(&cx, &recorded(Smooth::DEF).body, &arrays)[0].data.clone();
    let tensors = [(&[4, 5, 3][..], &x), (&[3], &w), (&[3, 6], &up)].map(|(d, v)| Tensor::new(d, v.clone()));
    let eager = smooth(tensors[0], tensors[1], tensors[2]).to_vec();
    let executed = |def: &str| {
        let mut state = crate::state::State::default();
        let sizes = sizes! { B = 4, S = 5, D = 3, F = 6 };
        state.tensors.insert("w".into(), crate::state::TensorData::f32(vec![3], w.clone()));
        state.tensors.insert("up".into(), crate::state::TensorData::f32(vec![3, 6], up.clone()));
        let input = vec![crate::exec::HostInput::F32(&x)];
        if def == "parsed" {
            let mut session = Session::<Smooth>::new(sizes, DType::F32, BTreeMap::new(), 1).expect("it links");
            session.set_params(&state).expect("it fits");
            session.forward(&input).expect("it runs")
        } else {
            let mut session = Session::<SmoothTraced>::new(sizes, DType::F32, BTreeMap::new(), 1).expect("it links");
            session.set_params(&state).expect("it fits");
            session.forward(&input).expect("it runs")
        }
    };
    let parsed = executed("parsed");
    assert_eq!(parsed, executed("traced"));
    assert_eq!(interpreted.len(), 4 * 5 * 6);
    for (i, &truth) in interpreted.iter().enumerate() {
        for found in [eager[i], parsed[i]] {
            assert!((f64::from(found) - truth).abs() <= ROUNDING, "element {i}: {found} is not {truth}");
        }
    }
}

fn trainer<L: crate::layer::Layer>(sizes: Sizes, lr: f64) -> Trainer<L> {
    let builder = Trainer::<L>::new(sizes).optimizer(Optimizer::Sgd(Sgd::default())).schedule(Schedule::constant(lr));
    builder.seed(3).threads(1).build().unwrap_or_else(|e| panic!("{e}"))
}

/// Central differences of an f32 loss: with h = 2⁻⁷ their own error is of order h² = 6e-5, and rounding adds 1e-7/h = 2e-5.
const STEP: f32 = 1.0 / 128.0;
const DIFFERENCE: f64 = 1e-3;

/// Gradients of the mean loss against differences, each parameter element by element.
fn compare_with_differences<L: crate::layer::Layer>(
    sizes: Sizes,
    batch: &impl crate::trainer::HostBatch,
    params: &[&str],
) {
    let mut t = trainer::<L>(sizes, 0.0);
    let count = t.step(batch).expect("it trains").count;
    for path in params {
        let (grad, start) = (t.grad(path).expect("it has a gradient"), t.param(path).expect("it is a parameter"));
        let mut largest: f64 = 0.0;
        for i in 0..start.len() {
            let mut at = |x: f32| {
                let mut values = start.clone();
                values[i] = x;
                t.set_param(path, &values).expect("a parameter");
                t.evaluate([batch]).expect("it evaluates")
            };
            let (up, down) = (start[i] + STEP, start[i] - STEP);
            let difference = (at(up) - at(down)) / f64::from(up - down);
            let found = f64::from(grad[i]) / count;
            largest = largest.max(found.abs());
            assert!((found - difference).abs() <= DIFFERENCE, "{path}[{i}]: {found} is not {difference}");
        }
        t.set_param(path, &start).expect("a parameter");
        assert!(largest > 100.0 * DIFFERENCE / 10.0, "the gradient of `{path}` is nearly zero: it proves nothing");
    }
}

#[test]
fn gradients_equal_differences() {
    let batch = (numbers(60, 5), vec![0, 2, 1, 2]);
    compare_with_differences::<Net>(sizes(), &batch, &["smooth.w", "smooth.up", "out"]);
    compare_with_differences::<NetTraced>(sizes(), &batch, &["smooth.w", "smooth.up", "out"]);
    let batch = (vec![2, 0, 1, 2], vec![0, 2, 1, 1]);
    compare_with_differences::<LookedUp>(sizes! { B = 4, D = 3, C = 3 }, &batch, &["table"]);
}

#[test]
fn a_layer_with_an_operation_trains_on_the_host() {
    let batch = (numbers(60, 7), vec![0, 2, 1, 2]);
    let mut t = trainer::<Net>(sizes(), 0.5);
    let losses: Vec<f64> = (0..40).map(|_| t.step(&batch).expect("it trains").loss).collect();
    assert!(losses[39] < 0.5 * losses[0], "{losses:?}");
    let mut traced = trainer::<NetTraced>(sizes(), 0.5);
    let again: Vec<f64> = (0..40).map(|_| traced.step(&batch).expect("it trains").loss).collect();
    assert_eq!(losses, again);
    let log = t.plan().log();
    let steps = |name: &str| log.iter().filter(|l| l.ends_with(name)).count();
    assert_eq!((steps("tests::scan"), steps("tests::scan_vjp")), (2, 2), "{log:#?}");
}

#[test]
fn accumulated_and_shared_batches_give_one_gradient() {
    let batch = (numbers(60, 7), vec![0, 2, 1, 2]);
    let grad = |accumulate, data| {
        let mesh = crate::ranks::Mesh { data, tensor: 1 };
        let b = Trainer::<Net>::new(sizes()).optimizer(Optimizer::Sgd(Sgd::default())).seed(3).threads(1);
        let mut t = b.accumulate(accumulate).mesh(mesh).build().unwrap_or_else(|e| panic!("{e}"));
        t.step(&batch).expect("it trains");
        t.grad("smooth.w").expect("it has a gradient")
    };
    let whole = grad(1, 1);
    for parts in [grad(2, 1), grad(1, 2)] {
        for (a, b) in parts.iter().zip(&whole) {
            assert!((a - b).abs() <= 1e-5 * whole.iter().fold(0.0, |m: f32, x| m.max(x.abs())), "{parts:?} {whole:?}");
        }
    }
}

#[test]
fn in_bf16_operands_and_results_are_rounded() {
    let x = numbers(60, 1);
    let mut session = Session::<Smooth>::new(sizes! { B = 4, S = 5, D = 3, F = 6 }, DType::Bf16, BTreeMap::new(), 1)
        .expect("it links");
    let y = session.forward(&vec![crate::exec::HostInput::F32(&x)]).expect("it runs");
    assert!(y.iter().all(|&v| half::bf16::from_f32(v).to_f32() == v));
    for (layer, results) in [(recorded(Smooth::DEF), 2), (recorded(LookedUp::DEF), 2)] {
        let body = kiln_compiler::precision::run(&layer.body, DType::Bf16);
        let own = body.nodes.iter().filter(|n| n.op.name == "opaque").flat_map(|n| n.outputs.clone());
        let rounds = |n: &kiln_compiler::ir::Node, v| n.op.name == "cast" && n.inputs[0] == v;
        let cast = |v| body.nodes.iter().find(|n| rounds(n, v)).map(|n| body.ty(n.outputs[0]).dtype);
        assert_eq!(own.map(cast).collect::<Vec<_>>(), vec![Some(DType::Bf16); results], "{}", layer.name);
    }
}

#[test]
fn other_devices_are_refused_by_the_operations_name() {
    let t = trainer::<Net>(sizes(), 0.1);
    let refused = user_op::require_host(t.plan(), "wgpu").expect_err("the plan holds an operation").to_string();
    assert!(refused.starts_with("K0804: ") && refused.contains("`kiln::user_op::tests::scan`"), "{refused}");
    assert!(refused.contains("tests.rs:") && refused.contains("`wgpu`"), "{refused}");
}

/// A path without a derivative in a recorded body is found when the model is linked.
#[test]
fn a_recorded_gradient_path_without_a_derivative_is_refused() {
    /// Without a derivative.
    #[op(sig = "b -> b")]
    fn rounded(x: &HostArray) -> HostArray {
        HostArray::new(x.dims.clone(), x.data.iter().map(|x| x.round()).collect())
    }
    #[layer(trace)]
    fn coarse(
        x: Tensor<B, D>,
        kind: Ids<B>,
        #[param(init = xavier)] w: Tensor<D, C>,
        #[param(init = ones)] s: Tensor<D>,
    ) -> Loss {
        (x * rounded(s)).matmul(w).cross_entropy(kind)
    }
    let refused = Trainer::<Coarse>::new(sizes! { B = 4, D = 3, C = 3 }).threads(1).build();
    let text = refused.err().expect("the gradient of `s` has no path").to_string();
    assert!(text.contains("K0601") && text.contains("rounded"), "{text}");

    #[layer]
    fn cut(
        x: Tensor<B, D>,
        kind: Ids<B>,
        #[param(init = xavier)] w: Tensor<D, C>,
        #[param(init = ones)] s: Tensor<D>,
    ) -> Loss {
        let r: Tensor<D> = rounded(stop_gradient(s));
        (x * r).matmul(w).cross_entropy(kind)
    }
    let mut t =
        Trainer::<Cut>::new(sizes! { B = 4, D = 3, C = 3 }).threads(1).build().unwrap_or_else(|e| panic!("{e}"));
    t.step(&(numbers(12, 1), vec![0, 1, 2, 0])).expect("a path that is cut needs no derivative");
    assert_eq!(t.grad("s").unwrap(), vec![0.0; 3]);
}

/// The unknown axes of a child's result have names when the model is linked, and are then checked against the `sig`.
#[test]
fn operands_from_children_are_checked_at_link() {
    #[layer]
    fn narrow(x: Tensor<B, S, D>, #[param(init = ones)] w: Tensor<S>) -> Tensor<B, S, D> {
        let y: Tensor<B, S, D> = scan(x, w.rename(S, D));
        y
    }
    let sizes = sizes! { B = 4, S = 5, D = 3 };
    let refused = Session::<Narrow>::new(sizes, DType::F32, BTreeMap::new(), 1).err().expect("S is not D");
    assert!(refused.to_string().contains("K0704"), "{refused}");
    let mut wrong = recorded(Smooth::DEF).body;
    wrong.values[1].ty.shape = vec![Axis::new("S")];
    assert_eq!(user_op::check(&wrong).map_err(|(_, e)| e.code), Err("K0107"));
}
