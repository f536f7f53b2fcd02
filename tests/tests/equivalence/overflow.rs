//! f16 with a dynamic loss scale: an overflow changes nothing but the scale, and the scale changes nothing but the range.

use kiln::DType;
use kiln::ranks::Mesh;
use kiln::scaler::ScalerOptions;
use kiln::trainer::{Trainer, TrainerBuilder};
use kiln_compiler::ir::ConfigValue;
use kiln_tests::models::*;
use kiln_tests::training::{Tensors, batch, farthest, grads, moments, params, same_bits};

use crate::small;

fn f16() -> TrainerBuilder<Dropped> {
    Trainer::<Dropped>::new(small()).precision(DType::F16).seed(3)
}

/// All that an update would change.
fn everything(trainer: &Trainer<Dropped>) -> Tensors {
    let [first, second] = moments(trainer);
    let named = |prefix: &'static str, t: Tensors| t.into_iter().map(move |(n, x)| (format!("{prefix} {n}"), x));
    named("weight", params(trainer)).chain(named("first", first)).chain(named("second", second)).collect()
}

fn overflow_changes_nothing(mesh: Mesh, path: &str, element: usize, value: f32) {
    let options = ScalerOptions { init_scale: 64.0, growth_interval: 2, ..ScalerOptions::default() };
    let mut trainer = f16().mesh(mesh).loss_scaling(options).build().expect("the model is sound");
    let sound = trainer.step(&batch(&small(), 0)).expect("a sound step");
    assert!(!sound.skipped && trainer.updates_done() == 1);
    let before = everything(&trainer);
    let mut step = trainer.begin_step();
    step.forward_backward(&batch(&small(), 1)).expect("a sound batch");
    let mut gradients = step.reduce().expect("a sound step");
    let mut broken = gradients.get(path).expect("a parameter");
    broken[element] = value;
    gradients.set(path, &broken).expect("a parameter");
    let report = gradients.finish().expect("a sound step");
    assert!(report.skipped);
    assert_eq!((report.loss_scale, trainer.loss_scale()), (64.0, 32.0));
    assert_eq!((trainer.steps_done(), trainer.updates_done()), (2, 1));
    assert!(same_bits(&before, &everything(&trainer)), "weights and moments are those before the step");
    // Two clean steps, counted from the overflow, double the scale.
    for step in 2..4 {
        assert!(!trainer.step(&batch(&small(), step)).expect("a sound step").skipped);
    }
    assert_eq!((trainer.loss_scale(), trainer.updates_done()), (64.0, 3));
    assert!(!same_bits(&before, &everything(&trainer)));
}

#[test]
fn an_injected_overflow_changes_the_scale_alone() {
    overflow_changes_nothing(Mesh::ONE, "trunk.emb", 17, f32::INFINITY);
    overflow_changes_nothing(Mesh::ONE, "trunk.nf", 0, f32::NAN);
}

#[test]
fn an_overflow_of_one_rank_is_one_of_all() {
    // The last element lies on the last rank of `tensor`.
    let last = 22 * 12 - 1;
    overflow_changes_nothing(Mesh { data: 1, tensor: 2 }, "trunk.blocks.1.mlp.down", last, f32::NEG_INFINITY);
}

#[test]
fn a_scale_beyond_the_range_comes_down_by_itself() {
    let start = |init_scale: f32| {
        let options = ScalerOptions { init_scale, ..ScalerOptions::default() };
        let off = f16().config("rate", ConfigValue::Float(0.0)).loss_scaling(options);
        off.build().expect("the model is sound")
    };
    let (mut high, batch) = (start(2f32.powi(60)), batch(&small(), 0));
    let fresh = everything(&high);
    let mut skipped = 0;
    let fits = loop {
        let report = high.step(&batch).expect("the loss itself is finite");
        if !report.skipped {
            break report;
        }
        skipped += 1;
        assert!(same_bits(&fresh, &everything(&high)), "skipped step {skipped}");
    };
    assert!(skipped >= 20, "2^60 is far outside of f16: {skipped} steps skipped");
    assert_eq!(fits.loss_scale, 2f64.powi(60 - skipped));
    assert_eq!(high.updates_done(), 1, "bias correction counts updates, not batches");
    // Without dropout the first update is the same as that of a session which began with this scale.
    let mut fitting = start(fits.loss_scale as f32);
    assert!(!fitting.step(&batch).expect("a sound step").skipped);
    assert!(same_bits(&everything(&fitting), &everything(&high)));
}

#[test]
fn the_scale_is_divided_out() {
    /// f16 rounds every value to 2⁻¹¹ of its size; a model of two blocks adds up some tens of them.
    const F16_MODEL: f64 = 32.0 / 2048.0;
    let batch = batch(&small(), 4);
    let mut exact = Trainer::<Dropped>::new(small()).seed(3).build().expect("the model is sound");
    let options = ScalerOptions { init_scale: 128.0, ..ScalerOptions::default() };
    let mut half = f16().loss_scaling(options).build().expect("the model is sound");
    let (a, b) = (exact.step(&batch).expect("a sound step"), half.step(&batch).expect("a sound step"));
    let mut scaled = grads(&half);
    scaled.values_mut().flatten().for_each(|g| *g /= 128.0);
    let (distance, name) = farthest(&scaled, &grads(&exact));
    assert!(distance <= F16_MODEL, "{name}: {distance:.1e}");
    let norms = (a.grad_norm - b.grad_norm).abs() / a.grad_norm;
    assert!(norms <= F16_MODEL, "norms {} and {}", a.grad_norm, b.grad_norm);
    let (distance, name) = farthest(&moments(&half)[0], &moments(&exact)[0]);
    assert!(distance <= F16_MODEL, "first moment of {name}: {distance:.1e}");
}
