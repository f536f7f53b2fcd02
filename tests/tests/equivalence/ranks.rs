//! Ranks: the same training whether one rank or several do it, each with its part of what is split.

use kiln::device::Target;
use kiln::exec::{EngineOptions, HostInput, Kind, Mode};
use kiln::layer::Layer;
use kiln::link::{Keep, LinkOptions, Model};
use kiln::plan::{self, Memory, Plan, Work, Write};
use kiln::prelude::sizes;
use kiln::ranks::{Mesh, Ranks, RanksError};
use kiln::trainer::{TrainError, Trainer, TrainerBuilder};
use kiln::{DType, Sizes};
use kiln_compiler::ir::{Axis, ConfigValue};
use kiln_examples::gpt::Gpt;
use kiln_tests::models::*;
use kiln_tests::training::{Tensors, batch, farthest, grads, params, same_bits};

use crate::small;

/// Sums in another order: of a loss or gradient in f32, ‖Δ‖/‖reference‖.
const ONE_STEP: f64 = 1e-6;
/// The same after fifty updates, each of which starts from the differences of the last.
const FIFTY_STEPS: f64 = 1e-4;

const TENSOR: Mesh = Mesh { data: 1, tensor: 2 };
const DATA: Mesh = Mesh { data: 2, tensor: 1 };
const BOTH: Mesh = Mesh { data: 2, tensor: 2 };

fn builder(mesh: Mesh) -> TrainerBuilder<Dropped> {
    Trainer::<Dropped>::new(small()).mesh(mesh).seed(9)
}

fn session(mesh: Mesh) -> Trainer<Dropped> {
    builder(mesh).build().expect("the model is sound")
}

fn same_training(mesh: Mesh) {
    let (mut one, mut many) = (session(Mesh::ONE), session(mesh));
    assert!(same_bits(&params(&one), &params(&many)), "any mesh starts from the same weights");
    for step in 0..50 {
        let batch = batch(&small(), step);
        let (a, b) = (one.step(&batch).expect("a sound step"), many.step(&batch).expect("a sound step"));
        assert_eq!(a.count, b.count);
        let loss = (a.loss - b.loss).abs() / a.loss;
        if step == 0 {
            let (distance, name) = farthest(&grads(&many), &grads(&one));
            println!("{mesh:?}: loss {loss:.1e}, gradients {distance:.1e}");
            assert!(loss <= ONE_STEP, "loss: {loss:.1e}");
            assert!(distance <= ONE_STEP, "gradient of {name}: {distance:.1e}");
        }
        assert!(loss <= FIFTY_STEPS, "loss of step {step}: {loss:.1e}");
        let norms = (a.grad_norm - b.grad_norm).abs() / a.grad_norm;
        assert!(norms <= FIFTY_STEPS, "norm of step {step}: {norms:.1e}");
    }
    let (distance, name) = farthest(&params(&many), &params(&one));
    println!("{mesh:?}: after fifty steps {distance:.1e}");
    assert!(distance <= FIFTY_STEPS, "{name} after fifty steps: {distance:.1e}");
    let batch = batch(&small(), 99);
    let (a, b) = (one.evaluate([&batch]).expect("a batch"), many.evaluate([&batch]).expect("a batch"));
    assert!((a - b).abs() <= FIFTY_STEPS * a, "evaluation: {a} and {b}");
}

#[test]
fn two_ranks_on_tensor_train_as_one() {
    same_training(TENSOR);
}

#[test]
fn two_ranks_on_data_train_as_one() {
    same_training(DATA);
}

#[test]
fn four_ranks_train_as_one() {
    same_training(BOTH);
}

#[test]
fn recomputation_and_precision_keep_the_ranks_equal() {
    /// bf16 rounds every value to 2⁻⁸; where sums in another order fall to the other side, values differ by that much.
    const BF16_MODEL: f64 = 4.0 / 256.0;
    for (precision, tolerance) in [(DType::F32, ONE_STEP), (DType::Bf16, BF16_MODEL)] {
        let start =
            |mesh| builder(mesh).checkpoint(Keep::Inputs).precision(precision).build().expect("the model is sound");
        let (mut one, mut many, batch) = (start(Mesh::ONE), start(BOTH), batch(&small(), 7));
        let (a, b) = (one.step(&batch).expect("a sound step"), many.step(&batch).expect("a sound step"));
        assert!((a.loss - b.loss).abs() <= tolerance * a.loss, "{precision}: {} and {}", a.loss, b.loss);
        let (distance, name) = farthest(&grads(&many), &grads(&one));
        assert!(distance <= tolerance, "{precision}, {name}: {distance:.1e}");
    }
}

/// Whether a parameter of the model is split over `tensor`.
fn is_split(path: &str) -> bool {
    path.contains(".mlp.") || path.contains(".attn.w")
}

#[test]
fn each_rank_holds_its_half_of_weights_gradients_and_moments() {
    let mut trainer = session(TENSOR);
    trainer.step(&batch(&small(), 0)).expect("a sound step");
    let whole = session(Mesh::ONE);
    let tensors = [Kind::Weight, Kind::Gradient, Kind::Moment(0), Kind::Moment(1)];
    let mut n_split = 0;
    for (p, param) in whole.model().params.iter().enumerate() {
        let split = is_split(&param.path);
        n_split += usize::from(split);
        for kind in tensors {
            let [a, b] = [0, 1].map(|rank| trainer.ranks().engine_of(rank).values(kind, p).expect("it runs"));
            let held = if split { param.len() / 2 } else { param.len() };
            assert_eq!((a.len(), b.len()), (held, held), "{kind:?} of {}", param.path);
            // Parts are two halves, anything else is the same on both.
            assert_eq!(a == b, !split, "{kind:?} of {}", param.path);
        }
    }
    assert_eq!(n_split, 2 * 8);
    let bytes = |t: &Trainer<Dropped>| t.ranks().engine().layout().flat.len * size_of::<f32>();
    assert!(bytes(&trainer) < bytes(&whole), "{} and {}", bytes(&trainer), bytes(&whole));
    assert!(trainer.peak_bytes() < whole.peak_bytes());
}

/// What one training step of the example gives to collectives, per rank.
fn bytes_of_a_step(mesh: Mesh, accumulate: usize) -> u64 {
    let sizes = small();
    let mut trainer =
        Trainer::<Gpt>::new(sizes.clone()).mesh(mesh).accumulate(accumulate).build().expect("a sound model");
    trainer.step(&batch(&sizes, 0)).expect("a sound step");
    let once = trainer.ranks().collective_bytes();
    let planned = trainer.plan().collective_bytes() * accumulate;
    trainer.step(&batch(&sizes, 1)).expect("a sound step");
    assert_eq!(trainer.ranks().collective_bytes(), 2 * once, "each step sends the same");
    if mesh.data == 1 {
        assert_eq!(once, planned as u64, "what the plan says");
    }
    once
}

#[test]
fn collective_bytes_are_the_formula() {
    let n = |axis: &str| small().of(Axis::new(axis));
    let f32s = |elements: usize| (elements * size_of::<f32>()) as u64;
    // Attention and feed-forward part of each layer sum a [B, S, D] over ranks: their results forward, their inputs' cotangents backward.
    let tensor = f32s(n("L") * 4 * n("B") * n("S") * n("D"));
    assert_eq!(bytes_of_a_step(Mesh::ONE, 1), 0);
    assert_eq!(bytes_of_a_step(TENSOR, 1), tensor);
    assert_eq!(bytes_of_a_step(TENSOR, 2), tensor, "half a batch, twice");
    // Gradients once per step, each padded to 64 elements.
    let padded = |model: &Model| model.params.iter().map(|p| p.len().next_multiple_of(64)).sum::<usize>();
    let of = |mesh| padded(Trainer::<Gpt>::new(small()).mesh(mesh).build().expect("a sound model").model());
    assert_eq!(bytes_of_a_step(DATA, 1), f32s(of(DATA)));
    assert_eq!(bytes_of_a_step(DATA, 2), f32s(of(DATA)), "micro-batches are summed first");
    assert_eq!(bytes_of_a_step(BOTH, 1), f32s(of(BOTH)) + tensor / 2);
}

/// Ranks whose plans `edit` changes; it sees the rank's model and its plan.
fn edited<M: Layer>(mesh: Mesh, edit: impl Fn(&Model, &mut Plan)) -> Result<Ranks, RanksError> {
    let local: Sizes = kiln::exec::micro_sizes(&small(), Axis::new("B"), mesh.data);
    let options = LinkOptions {
        sizes: small(),
        config: [("rate".to_owned(), ConfigValue::Float(0.1))].into(),
        precision: DType::F32,
        keep: Keep::Everything,
        tensor: (1, 0),
    };
    let engine = |model: &Model| EngineOptions {
        target: Target::Host,
        threads: 1,
        seed: 9,
        n_moments: 2,
        decays: vec![false; model.params.len()],
        poison: false,
    };
    let plans = |model: &Model| {
        let mut train = plan::build(model, &local, Memory::HOST);
        edit(model, &mut train);
        (Some(train), plan::build_forward(model, &local, Memory::HOST))
    };
    let mut ranks = Ranks::new(M::DEF, &options, mesh, 1, engine, plans)?;
    ranks.initialise(9)?;
    Ok(ranks)
}

/// Loss and gradients of one step.
fn one_step(ranks: &mut Ranks) -> (f64, Tensors) {
    let (ids, next) = batch(&small(), 0);
    let sums = ranks.run(Mode::Train, &[HostInput::I32(&ids), HostInput::I32(&next)], 0, 0, 1.0).expect("it runs");
    ranks.reduce_grads().expect("it runs");
    let params = ranks.model().params.iter().enumerate();
    let grads =
        params.map(|(p, param)| (param.path.clone(), ranks.gather(Kind::Gradient, p).expect("it runs"))).collect();
    (sums.loss, grads)
}

fn collectives(plan: &Plan) -> Vec<usize> {
    (0..plan.steps.len()).filter(|&i| matches!(plan.steps[i].work, Work::AllReduce { .. })).collect()
}

#[test]
fn every_collective_is_needed() {
    let (loss, grads) = one_step(&mut edited::<Dropped>(Mesh::ONE, |_, _| {}).expect("sound plans"));
    let mut sound = edited::<Dropped>(TENSOR, |_, _| {}).expect("sound plans");
    let all = collectives(sound.engine().plan(Mode::Train));
    assert!(all.len() >= 2 * 4, "{} collectives", all.len());
    let differs = |ranks: &mut Ranks| {
        let (l, g) = one_step(ranks);
        ((l - loss).abs() / loss).max(farthest(&g, &grads).0)
    };
    assert!(differs(&mut sound) <= ONE_STEP);
    for step in all {
        // Each rank keeps its own part of the sum.
        let without = |_: &Model, plan: &mut Plan| plan.steps[step].work = Work::Accumulate(Write::Store);
        let mut ranks = edited::<Dropped>(TENSOR, without).expect("the same plan on all ranks");
        let distance = differs(&mut ranks);
        println!("without step {step}: {distance:.1e}");
        assert!(distance > 100.0 * ONE_STEP, "nothing notices that step {step} is missing: {distance:.1e}");
    }
}

#[test]
fn ranks_whose_plans_differ_never_start() {
    let skips_one = |model: &Model, plan: &mut Plan| {
        let last = collectives(plan)[3];
        if model.tensor_rank == 1 {
            plan.steps[last].work = Work::Accumulate(Write::Store);
        }
    };
    match edited::<Dropped>(TENSOR, skips_one) {
        Err(RanksError::PlansDiffer { rank, here, there }) => {
            assert_eq!(rank, 1);
            assert!(here.contains("accumulate") && there.contains("all_reduce"), "`{here}`, `{there}`");
        }
        Ok(_) => panic!("ranks that would wait for each other started"),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn illegal_meshes_are_refused_with_the_legal_sizes() {
    let refused = |mesh: Mesh| builder(mesh).build().map(|_| ()).expect_err("an illegal mesh");
    let three = refused(Mesh { data: 1, tensor: 3 });
    assert!(matches!(three, TrainError::Ranks(RanksError::Link(_))), "{three:?}");
    let text = three.to_string();
    assert!(text.contains("K0704") && text.contains("`tensor = 3`") && text.contains("[1, 2"), "{text}");
    assert!(text.contains("models.rs:"), "{text}");
    let text = refused(Mesh { data: 3, tensor: 1 }).to_string();
    assert!(text.contains("K0712") && text.contains("[1, 2, 4]"), "{text}");
    assert!(matches!(refused(Mesh { data: 1, tensor: 0 }), TrainError::Ranks(RanksError::NoRanks("tensor"))));
    assert!(refused(Mesh { data: 0, tensor: 1 }).to_string().contains("K0712"));
}

#[test]
fn a_broken_value_on_one_rank_is_reported_and_nobody_waits() {
    let mut trainer = session(BOTH);
    let path = "trunk.blocks.1.mlp.down";
    let mut down = trainer.param(path).expect("a parameter");
    // On the second rank of `tensor` alone.
    *down.last_mut().expect("elements") = f32::NAN;
    trainer.set_param(path, &down).expect("a parameter");
    let before = params(&trainer);
    match trainer.step(&batch(&small(), 0)) {
        Err(TrainError::NotFinite { path, operation, at, .. }) => {
            // The product before the sum over ranks, which rank 0 sees only after it.
            assert_eq!((path.as_str(), operation.as_str()), ("trunk.blocks.1.mlp", "dot_general"));
            assert!(at.contains("models.rs:"), "{at}");
        }
        other => panic!("{other:?}"),
    }
    assert!(same_bits(&before, &params(&trainer)));
}

#[test]
fn the_example_trains_alike_at_other_sizes() {
    let sizes = sizes! { B = 6, S = 5, D = 10, G = 4, R = 1, K = 2, F = 12, V = 19, L = 3 };
    let start = |mesh| Trainer::<Gpt>::new(sizes.clone()).mesh(mesh).seed(2).build().expect("a sound model");
    let (mut one, mut many) = (start(Mesh::ONE), start(Mesh { data: 3, tensor: 4 }));
    let batch = batch(&sizes, 1);
    let (a, b) = (one.step(&batch).expect("a sound step"), many.step(&batch).expect("a sound step"));
    assert!((a.loss - b.loss).abs() <= ONE_STEP * a.loss);
    let (distance, name) = farthest(&grads(&many), &grads(&one));
    assert!(distance <= ONE_STEP, "{name}: {distance:.1e}");
}
