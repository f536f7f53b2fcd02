//! Training on wgpu beside training on the host, from the same seed on the same batches.

use kiln::DType;
use kiln::device::Target;
use kiln::layer::Layer;
use kiln::link::Keep;
use kiln::optim::{Optimizer, Sgd};
use kiln::prelude::*;
use kiln::schedule::Schedule;
use kiln::trainer::{StepReport, Trainer, TrainerBuilder};
use kiln_tests::models::*;
use kiln_tests::peers::relative;
use kiln_tests::training::{batch, params, same_bits};

use crate::{small, wgpu};

/// How far losses and norms may be apart, relative.
const STEP: f64 = 1e-4;
/// The same for each parameter after the last step.
const WEIGHTS: f64 = 1e-3;

/// Trains both and compares every report, then every parameter.
fn compare<L: Layer>(
    what: &str,
    gpu: Target,
    start: impl Fn() -> TrainerBuilder<L>,
    batches: &[(Vec<i32>, Vec<i32>)],
    [of_step, of_weights]: [f64; 2],
) {
    let mut host = start().build().expect("a sound model");
    let mut device = start().device(gpu).build().unwrap_or_else(|e| panic!("{what}: {e}"));
    for batch in batches {
        let a: StepReport = host.step(batch).expect("a sound step");
        let b: StepReport = device.step(batch).unwrap_or_else(|e| panic!("{what}: {e}"));
        // The norm of a step that f16 skips is not a number.
        let near = |a: f64, b: f64| (a - b).abs() <= of_step * a.abs() || a.is_nan() && b.is_nan();
        assert!(near(a.loss, b.loss) && near(a.grad_norm, b.grad_norm), "{what}: {b:?} is not {a:?}");
        assert_eq!((a.step, a.count, a.lr, a.skipped), (b.step, b.count, b.lr, b.skipped), "{what}");
    }
    for (path, values) in params(&host) {
        let distance = relative(&device.param(&path).expect("a parameter"), &values);
        assert!(distance <= of_weights, "{what}, {path}: {distance:.1e}");
    }
    let batch = &batches[0];
    let (a, b) = (host.evaluate([batch]).expect("a batch"), device.evaluate([batch]).expect("a batch"));
    assert!((a - b).abs() <= of_step * a, "{what}: evaluated to {b}, the host to {a}");
}

fn batches(n: u64) -> Vec<(Vec<i32>, Vec<i32>)> {
    (0..n).map(|i| batch(&small(), i)).collect()
}

/// Logits of the same trunk.
#[layer]
fn logits(ids: Ids<B, S>, #[sub] trunk: Trunk) -> Tensor<B, S, V> {
    trunk.forward(ids).einsum(trunk.emb, "b s d, v d -> b s v")
}

#[test]
fn a_state_moves_between_the_host_and_wgpu() {
    let Some(gpu) = wgpu("a_state_moves_between_the_host_and_wgpu") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let start = |target: Target| {
        let builder = Trainer::<Dropped>::new(small()).seed(5).schedule(Schedule::constant(1e-3)).device(target);
        builder.build().expect("a sound model")
    };
    let (mut host, mut device) = (start(Target::Host), start(gpu));
    for (i, batch) in batches(4).iter().enumerate() {
        // Each takes over from the other.
        let file = folder.path().join(format!("{i}.safetensors"));
        let (from, to) = if i % 2 == 0 { (&mut host, &mut device) } else { (&mut device, &mut host) };
        from.step(batch).expect("a sound step");
        from.save(&file, &[]).expect("saved");
        to.resume(&file).expect("the same model");
        assert!(same_bits(&params(from), &params(to)), "after step {i}");
    }
    let mut alone = start(Target::Host);
    for batch in &batches(4) {
        alone.step(batch).expect("a sound step");
    }
    let far = |(path, values): (String, Vec<f32>)| relative(&device.param(&path).expect("a parameter"), &values);
    let distance = params(&alone).into_iter().map(far).fold(0.0, f64::max);
    assert!(distance <= WEIGHTS, "{distance:.1e}");
    let ids = &batches(1)[0].0;
    let scores =
        |t: &Trainer<Dropped>| t.session::<Logits>(small()).expect("the same layers").forward(ids).expect("logits");
    let distance = relative(&scores(&device), &scores(&host));
    assert!(distance <= WEIGHTS, "logits: {distance:.1e}");
}

/// The forms of kernels that hardware takes, run by this machine's driver.
#[test]
fn steps_on_wgpu_shaped_as_hardware_are_those_of_the_host() {
    let Some(_) = wgpu("steps_on_wgpu_shaped_as_hardware_are_those_of_the_host") else { return };
    let device = kiln::device::wgpu::open().expect("there is a device").with_shape(kiln::device::wgpu::HARDWARE);
    let start = || Trainer::<Dropped>::new(small()).seed(5).schedule(Schedule::constant(1e-3)).clip(1.0).accumulate(2);
    compare("hardware", Target::Gpu(std::sync::Arc::new(device)), start, &batches(3), [STEP, WEIGHTS]);
}

/// A unit of bf16 or f16 where a sum falls beside the middle of two numbers, and what training makes of it in a few steps.
const HALF: [f64; 2] = [2e-3, 2e-2];

#[test]
fn half_precision_on_wgpu_is_that_of_the_host() {
    let Some(gpu) = wgpu("half_precision_on_wgpu_is_that_of_the_host") else { return };
    for precision in [DType::Bf16, DType::F16] {
        let start = || Trainer::<Dropped>::new(small()).seed(5).precision(precision).schedule(Schedule::constant(1e-3));
        compare(&precision.to_string(), gpu.clone(), start, &batches(4), HALF);
        // Unlike AdamW, momentum sees by which factor the gradient is divided; six steps are enough for the f16 scale to fit.
        let sgd = Optimizer::Sgd(Sgd { momentum: 0.9, weight_decay: 0.0, nesterov: false });
        compare(&format!("{precision}, momentum"), gpu.clone(), || start().optimizer(sgd), &batches(6), HALF);
        let explained = start().device(gpu.clone()).build().expect("a sound model").explain();
        let is_wider = gpu.memory().width(precision) > precision.bytes();
        let says_so = explained.contains(&format!("{precision} is rounded and stored in 4 bytes"));
        assert_eq!(says_so, is_wider, "{explained}");
    }
}

/// XS of the benchmarks, with dropout in every part.
#[test]
fn fifty_steps_of_xs_on_wgpu_are_those_of_the_host() {
    let Some(gpu) = wgpu("fifty_steps_of_xs_on_wgpu_are_those_of_the_host") else { return };
    let sizes = sizes! { B = 16, S = 128, D = 128, G = 4, R = 1, K = 32, F = 384, V = 256, L = 4 };
    let batches: Vec<_> = (0..50).map(|i| batch(&sizes, i)).collect();
    let start =
        || Trainer::<Dropped>::new(sizes.clone()).seed(5).schedule(Schedule::constant(3e-4).warmup(10)).clip(1.0);
    compare("XS", gpu, start, &batches, [STEP, WEIGHTS]);
}

#[test]
fn steps_on_wgpu_are_those_of_the_host() {
    let Some(gpu) = wgpu("steps_on_wgpu_are_those_of_the_host") else { return };
    let start = || Trainer::<Dropped>::new(small()).seed(5).schedule(Schedule::constant(1e-3)).clip(1.0);
    compare("f32", gpu.clone(), start, &batches(6), [STEP, WEIGHTS]);
    compare("accumulated", gpu.clone(), || start().accumulate(2), &batches(4), [STEP, WEIGHTS]);
    compare("replayed", gpu.clone(), || start().checkpoint(Keep::Inputs), &batches(4), [STEP, WEIGHTS]);
    let sgd = Optimizer::Sgd(Sgd { momentum: 0.9, weight_decay: 0.01, nesterov: true });
    compare("momentum", gpu, || start().optimizer(sgd), &batches(4), [STEP, WEIGHTS]);
}
