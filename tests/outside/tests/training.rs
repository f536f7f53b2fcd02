//! What a user of the library sees: eager layers, dropout, training from initial values, refusals.

use forge::device::Target;
use forge::optim::{Optimizer, Sgd};
use forge::prelude::*;
use forge::schedule::Schedule;
use forge::trainer::{TrainError, Trainer};
use forge::{ConfigValue, tensor};
use outside::{C, E, H, M, N, P, PlainScorer, Scorer, affine};

/// Training root of this test alone.
#[layer]
fn fit(x: Tensor<N, P>, kind: Ids<N>, #[sub] net: Scorer) -> Loss {
    let scores: Tensor<N, C> = net.forward(x);
    scores.cross_entropy(kind)
}

fn sizes() -> forge::Sizes {
    sizes! { N = 12, P = 5, H = 9, M = 10, C = 3, E = 2 }
}

/// Vectors whose class is the largest of their first three elements.
fn batch(seed: u64) -> (Vec<f32>, Vec<i32>) {
    let word = |i: u64| (seed * 1_000_003 + i).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
    let x: Vec<f32> = (0..60).map(|i| word(i) as f32 / (1 << 23) as f32 - 1.0).collect();
    let largest = |row: &[f32]| (0..3).fold(0, |best, i| if row[i] > row[best] { i } else { best }) as i32;
    let kinds = x.chunks(5).map(largest).collect();
    (x, kinds)
}

fn trainer(rate: f64, threads: usize) -> Trainer<Fit> {
    let sgd = Sgd { momentum: 0.9, ..Sgd::default() };
    let builder = Trainer::<Fit>::new(sizes()).optimizer(Optimizer::Sgd(sgd)).schedule(Schedule::constant(0.1));
    builder.config("eps", 1e-5).config("rate", rate).seed(5).threads(threads).build().unwrap_or_else(|e| panic!("{e}"))
}

fn losses(rate: f64, threads: usize) -> Vec<f64> {
    let mut t = trainer(rate, threads);
    (0..60).map(|i| t.step(&batch(i)).unwrap_or_else(|e| panic!("{e}")).loss).collect()
}

#[test]
fn it_learns_with_and_without_dropout() {
    for rate in [0.0, 0.2] {
        let losses = losses(rate, 1);
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        assert!(mean(&losses[50..]) < 0.5 * mean(&losses[..10]), "rate {rate}: {losses:?}");
    }
}

#[test]
fn dropout_depends_on_the_seed_alone() {
    let one = losses(0.2, 1);
    assert_eq!(one, losses(0.2, 2));
    assert_ne!(one, losses(0.0, 1));
}

#[test]
fn the_eager_run_is_the_planned_one() {
    let (x, kinds) = batch(3);
    let config = [("eps".to_owned(), ConfigValue::Float(1e-5))].into_iter().collect();
    let model: Fit = tensor::init_with(&sizes(), 5, &config).unwrap_or_else(|e| panic!("{e}"));
    let eager = model.forward(Tensor::new(&[12, 5], x.clone()), Ids::new(&[12], kinds.clone())).ratio();
    let planned = trainer(0.0, 1).evaluate([&(x, kinds)]).unwrap_or_else(|e| panic!("{e}"));
    assert!((f64::from(eager) - planned).abs() < 1e-5, "{eager} {planned}");
}

#[test]
fn the_operation_is_a_function() {
    let y = affine(
        Tensor::new(&[2, 2], vec![1.0, 2.0, 3.0, 4.0]),
        Tensor::new(&[2], vec![10.0, 100.0]),
        Tensor::new(&[2], vec![0.5, -0.5]),
    );
    assert_eq!(y.to_vec(), [10.5, 199.5, 30.5, 399.5]);
}

#[test]
fn a_missing_configuration_is_an_error_that_names_it() {
    match Trainer::<Fit>::new(sizes()).build() {
        Err(TrainError::Link(e)) => assert!(e.to_string().contains("`#[config] eps` of layer `block`"), "{e}"),
        other => panic!("{:?}", other.map(|_| "a trainer")),
    }
}

/// Training root of the model that every device runs.
#[layer]
pub fn plain_fit(x: Tensor<N, P>, kind: Ids<N>, #[sub] net: PlainScorer) -> Loss {
    let scores: Tensor<N, C> = net.forward(x);
    scores.cross_entropy(kind)
}

#[test]
fn fifty_steps_on_wgpu_are_those_of_the_host() {
    let Ok(gpu) = Target::wgpu() else { return };
    let start = |target: Target| {
        let builder = Trainer::<PlainFit>::new(sizes()).schedule(Schedule::constant(1e-2)).clip(1.0).device(target);
        builder.config("eps", 1e-5).config("rate", 0.2).seed(5).build().unwrap_or_else(|e| panic!("{e}"))
    };
    let (mut host, mut device) = (start(Target::Host), start(gpu));
    let near = |a: f64, b: f64, tolerance: f64| (a - b).abs() <= tolerance * a.abs();
    for i in 0..50 {
        let step = |t: &mut Trainer<PlainFit>| t.step(&batch(i)).unwrap_or_else(|e| panic!("{e}"));
        let (a, b) = (step(&mut host), step(&mut device));
        assert!(near(a.loss, b.loss, 1e-4) && near(a.grad_norm, b.grad_norm, 1e-4), "{b:?} is not {a:?}");
    }
    let paths: Vec<String> = host.model().params.iter().map(|p| p.path.clone()).collect();
    for path in paths {
        let values = |t: &Trainer<PlainFit>| t.param(&path).unwrap_or_else(|e| panic!("{e}"));
        let (a, b) = (values(&host), values(&device));
        let squares = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
        let apart = squares(&mut a.iter().zip(&b).map(|(a, b)| f64::from(a - b)));
        let whole = squares(&mut a.iter().map(|a| f64::from(*a)));
        assert!(apart <= 1e-3 * whole, "{path}: {apart:e} of {whole:e}");
    }
}

#[test]
fn an_operation_of_the_hosts_own_is_refused_by_wgpu() {
    let Ok(gpu) = Target::wgpu() else { return };
    let text = match Trainer::<Fit>::new(sizes()).config("eps", 1e-5).device(gpu).build() {
        Err(e) => e.to_string(),
        Ok(_) => panic!("the operation has no kernel"),
    };
    assert!(text.starts_with("K0804: ") && text.contains("affine") && text.contains("device `wgpu`"), "{text}");
}
