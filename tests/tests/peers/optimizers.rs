//! AdamW, momentum and Nesterov under given gradients, with and without clipping, twenty steps each.

use kiln::optim::{AdamW, Optimizer, Sgd};
use kiln::prelude::sizes;
use kiln::schedule::Schedule;
use kiln::trainer::Trainer;
use kiln_tests::models::*;
use kiln_tests::peers::{Values, relative};
use serde_json::Value;

const STEPS: usize = 20;

/// Each step rounds a parameter, its moments and their quotient a few times, in f32 here and in f64 there.
fn f32_updates(steps: usize) -> f64 {
    4.0 * steps as f64 * f64::from(f32::EPSILON)
}

/// The norm is summed in f64 over f32 gradients; PyTorch's went through f32 when it was stored.
const NORM: f64 = 2.0 * f32::EPSILON as f64;

fn number(about: &Value, name: &str) -> f64 {
    about[name].as_f64().unwrap_or_else(|| panic!("no `{name}`"))
}

fn check(name: &str, optimizer: impl Fn(&Value) -> (Optimizer, f64), clipped: bool) {
    let v = Values::read("optimizers");
    let (optimizer, lr) = optimizer(&v.about);
    let mut builder = Trainer::<Pair>::new(sizes! { N = 1, H = 43, P = 37, C = 5 })
        .optimizer(optimizer)
        .schedule(Schedule::constant(lr));
    if clipped {
        builder = builder.clip(number(&v.about, "max_norm"));
    }
    let mut trainer = builder.build().expect("the model is sound");
    let fixed = trainer.param("fixed").expect("a parameter");
    for path in ["w", "b"] {
        trainer.set_param(path, &v.get(&format!("start/{path}")).data).expect("a parameter");
    }
    // One row with one target: the gradient of the mean is the sum, and setting it rounds nothing.
    let row = (vec![1.0f32; 43], vec![2]);
    for step in 0..STEPS {
        let mut open = trainer.begin_step();
        open.forward_backward(&row).expect("the batch fits");
        let mut gradients = open.reduce().expect("a sound step");
        for path in ["w", "b"] {
            let all = &v.get(&format!("grads/{path}")).data;
            let n = all.len() / STEPS;
            gradients.set(path, &all[step * n..(step + 1) * n]).expect("a parameter");
        }
        let report = gradients.finish().expect("a sound step");
        if clipped {
            let norm = f64::from(v.get(&format!("{name}/norms")).data[step]);
            assert!((report.grad_norm - norm).abs() <= NORM * norm, "step {step}: {} is not {norm}", report.grad_norm);
        }
    }
    for path in ["w", "b"] {
        let distance = relative(&trainer.param(path).expect("a parameter"), &v.get(&format!("{name}/{path}")).data);
        println!("{name}, {path}: {distance:.2e}");
        assert!(distance <= f32_updates(STEPS), "{name}, {path}: {distance:.2e}");
    }
    assert_eq!(trainer.param("fixed").expect("a parameter"), fixed, "a frozen parameter does not move");
}

fn adamw(about: &Value) -> (Optimizer, f64) {
    let a = &about["adamw"];
    let beta = |i: usize| a["betas"][i].as_f64().expect("a number");
    let adamw = AdamW { betas: (beta(0), beta(1)), eps: number(a, "eps"), weight_decay: number(a, "weight_decay") };
    (Optimizer::AdamW(adamw), number(a, "lr"))
}

fn sgd(about: &Value, nesterov: bool) -> (Optimizer, f64) {
    let s = &about["sgd"];
    (Optimizer::Sgd(Sgd { momentum: number(s, "momentum"), weight_decay: 0.0, nesterov }), number(s, "lr"))
}

#[test]
fn adamw_is_pytorchs() {
    check("adamw", adamw, false);
}

#[test]
fn clipped_adamw_is_pytorchs() {
    check("adamw_clipped", adamw, true);
}

#[test]
fn momentum_is_pytorchs() {
    check("sgd", |about| sgd(about, false), false);
}

#[test]
fn clipped_nesterov_is_pytorchs() {
    check("nesterov", |about| sgd(about, true), true);
}
