//! The example GPT in f32: logits, every gradient, twenty steps of AdamW, and a saved state in a Python of its own.

use std::path::Path;
use std::process::Command;

use kiln::Sizes;
use kiln::optim::{AdamW, Optimizer};
use kiln::prelude::*;
use kiln::schedule::Schedule;
use kiln::trainer::Trainer;
use kiln_examples::gpt::*;
use kiln_tests::peers::{self, Values, relative};
use kiln_tests::skips;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

/// Generating root over the state of `GptTied`.
#[layer]
pub fn tied_logits(ids: Ids<B, S>, #[sub] trunk: Trunk) -> Tensor<B, S, V> {
    trunk.forward(ids).einsum(trunk.emb, "b s d, v d -> b s v")
}

/// Both run in f32 or better. The bound of the project for a whole GPT: ‖Δ‖/‖reference‖ of each tensor.
const F32_MODEL: f64 = 1e-4;

fn sizes_of(v: &Values) -> Sizes {
    let n = |axis: &str| v.size(axis);
    sizes! {
        B = n("B"), S = n("S"), D = n("D"), G = n("G"), R = n("R"), K = n("K"), F = n("F"), V = n("V"), L = n("L"),
    }
}

/// A session at PyTorch's first parameters.
fn session(v: &Values) -> Trainer<GptTied> {
    let number = |name: &str| v.about["adamw"][name].as_f64().expect("a number");
    let beta = |i: usize| v.about["adamw"]["betas"][i].as_f64().expect("a number");
    let adamw = AdamW { betas: (beta(0), beta(1)), eps: number("eps"), weight_decay: number("weight_decay") };
    let mut trainer = Trainer::<GptTied>::new(sizes_of(v))
        .optimizer(Optimizer::AdamW(adamw))
        .schedule(Schedule::constant(number("lr")))
        .build()
        .expect("the model is sound");
    let params = v.under("param");
    assert_eq!(params.len(), trainer.model().params.len());
    for (path, values) in params {
        trainer.set_param(&path, &values.data).expect("a parameter");
    }
    trainer
}

/// Batch number `step`.
fn batch(v: &Values, step: usize) -> (Vec<i32>, Vec<i32>) {
    let n = v.size("B") * v.size("S");
    let part = |name: &str| v.get(name).data[step * n..(step + 1) * n].iter().map(|&x| x as i32).collect();
    (part("ids"), part("targets"))
}

/// Logits of the trainer's parameters.
fn logits(v: &Values, trainer: &Trainer<GptTied>, ids: &Vec<i32>) -> Vec<f32> {
    let mut session = trainer.session::<TiedLogits>(sizes_of(v)).expect("the roots share a state");
    session.forward(ids).expect("the batch fits")
}

fn near(what: &str, ours: &[f32], reference: &[f32]) {
    let distance = relative(ours, reference);
    println!("{what}: {distance:.2e}");
    assert!(distance <= F32_MODEL, "{what}: {distance:.2e}");
}

fn logits_and_gradients(name: &str) {
    let v = Values::read(name);
    let mut trainer = session(&v);
    let (ids, targets) = batch(&v, 0);
    near("logits", &logits(&v, &trainer, &ids), &v.get("logits").data);
    let counted = targets.iter().filter(|&&t| t >= 0).count();
    assert!(counted < targets.len(), "some targets are ignored");
    let mut step = trainer.begin_step();
    step.forward_backward(&(ids, targets)).expect("the batch fits");
    let gradients = step.reduce().expect("a sound step");
    assert_eq!(gradients.count(), counted as f64);
    let grads = v.under("grad");
    assert_eq!(grads.len(), v.under("param").len());
    for (path, reference) in grads {
        near(&format!("gradient of {path}"), &gradients.get(&path).expect("a parameter"), &reference.data);
    }
}

fn twenty_steps(name: &str) {
    let v = Values::read(name);
    let mut trainer = session(&v);
    let losses = &v.get("losses").data;
    assert_eq!(losses.len(), 20);
    for (step, &reference) in losses.iter().enumerate() {
        let loss = trainer.step(&batch(&v, step)).expect("a sound step").loss;
        near(&format!("loss of step {step}"), &[loss as f32], &[reference]);
    }
    for (path, reference) in v.under("after") {
        near(&path, &trainer.param(&path).expect("a parameter"), &reference.data);
    }
}

#[test]
fn logits_and_gradients_are_pytorchs() {
    logits_and_gradients("gpt_a");
}

#[test]
fn logits_and_gradients_are_pytorchs_at_odd_sizes() {
    let v = Values::read("gpt_b");
    assert_eq!((v.size("K"), v.size("V")), (20, 257));
    logits_and_gradients("gpt_b");
}

#[test]
fn twenty_adamw_steps_are_pytorchs() {
    twenty_steps("gpt_a");
}

#[test]
fn twenty_adamw_steps_are_pytorchs_at_odd_sizes() {
    twenty_steps("gpt_b");
}

#[test]
fn a_saved_state_gives_the_same_logits_in_python() {
    let Some(python) = peers::python() else {
        return skips::skip(
            "a_saved_state_gives_the_same_logits_in_python",
            "no PyTorch: `--tier peers --fresh` makes one",
        );
    };
    let v = Values::read("gpt_b");
    let mut trainer = session(&v);
    for step in 0..3 {
        trainer.step(&batch(&v, step)).expect("a sound step");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    trainer.save(path("state.safetensors"), &[]).expect("the state is written");
    let (ids, _) = batch(&v, 5);
    write_ids(&path("ids.safetensors"), &ids, &[v.size("B"), v.size("S")]);
    let script = kiln_tests::folders::root().join("tests/peers/logits.py");
    let arguments = ["state.safetensors", "ids.safetensors", "logits.safetensors"].map(path);
    let status = Command::new(python).env("PYTHONDONTWRITEBYTECODE", "1").arg(script).args(&arguments).status();
    assert!(status.expect("Python starts").success());
    let bytes = std::fs::read(&arguments[2]).expect("Python wrote its logits");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let view = file.tensor("logits").expect("the script writes `logits`");
    let reference: Vec<f32> =
        view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    near("logits", &logits(&v, &trainer, &ids), &reference);
}

fn write_ids(path: &Path, ids: &[i32], shape: &[usize]) {
    let bytes: Vec<u8> = ids.iter().flat_map(|i| i.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::I32, shape.to_vec(), &bytes).expect("the shape fits");
    safetensors::serialize_to_file([("ids", view)], None, path).expect("the ids are written");
}
