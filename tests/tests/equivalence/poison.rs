//! Poisoned memory: filling each buffer with NaN at its planned birth and death changes no bit of a sound plan, and shows a broken one.

use kiln::DType;
use kiln::device::Target;
use kiln::exec::{EngineOptions, HostInput, Kind, Mode, inspect::Inspection};
use kiln::link::{Keep, LinkOptions, Model};
use kiln::plan::{self, Memory, Plan, Segment, arena};
use kiln::prelude::Layer as _;
use kiln::ranks::{Mesh, Ranks};
use kiln::trainer::Trainer;
use kiln_tests::models::*;
use kiln_tests::training::{batch, grads, same_bits};

use crate::small;

#[test]
fn poisoned_runs_have_the_same_bits() {
    let settings = [
        (DType::F32, Keep::Everything, Mesh::ONE),
        (DType::F32, Keep::Inputs, Mesh { data: 1, tensor: 2 }),
        (DType::Bf16, Keep::Inputs, Mesh::ONE),
        (DType::F16, Keep::Everything, Mesh { data: 2, tensor: 1 }),
    ];
    for (precision, keep, mesh) in settings {
        let start = |poison: bool| {
            let trainer = Trainer::<Dropped>::new(small()).precision(precision).checkpoint(keep).mesh(mesh);
            trainer.accumulate(2).seed(6).poison(poison).build().expect("the model is sound")
        };
        let (mut plain, mut poisoned) = (start(false), start(true));
        for step in 0..2 {
            let batch = batch(&small(), step);
            let (a, b) = (plain.step(&batch).expect("a sound step"), poisoned.step(&batch).expect("a sound step"));
            // As text: a norm may be NaN in a step that f16 skips.
            assert_eq!(format!("{a:?}"), format!("{b:?}"), "{precision}, {keep:?}, {mesh:?}");
            assert!(same_bits(&grads(&plain), &grads(&poisoned)), "{precision}, {keep:?}, {mesh:?}");
            let (a, b) = (plain.evaluate([&batch]), poisoned.evaluate([&batch]));
            assert_eq!(a.expect("a batch").to_bits(), b.expect("a batch").to_bits());
        }
        assert!(
            plain.state(&[]).expect("a state") == poisoned.state(&[]).expect("a state"),
            "{precision}, {keep:?}, {mesh:?}"
        );
        for rank in 0..mesh.world_size() {
            let seen: &Inspection = poisoned.ranks().engine_of(rank).inspection().expect("it inspects");
            assert_eq!(seen.strays, [], "{precision}, {keep:?}, {mesh:?}: writes outside of living buffers");
        }
    }
}

/// One poisoned rank that runs an edited plan.
fn run(edit: impl Fn(&mut Plan)) -> Vec<u32> {
    let options = LinkOptions {
        sizes: small(),
        config: [].into(),
        precision: DType::F32,
        keep: Keep::Everything,
        tensor: (1, 0),
    };
    let engine = |model: &Model| EngineOptions {
        target: Target::Host,
        threads: 1,
        seed: 6,
        n_moments: 0,
        decays: vec![false; model.params.len()],
        poison: true,
    };
    let plans = |model: &Model| {
        let mut train = plan::build(model, &small(), Memory::HOST);
        edit(&mut train);
        (Some(train), plan::build_forward(model, &small(), Memory::HOST))
    };
    let mut ranks = Ranks::new(Dropped::DEF, &options, Mesh::ONE, 1, engine, plans).expect("a sound model");
    ranks.initialise(6).expect("it runs");
    let (ids, next) = batch(&small(), 0);
    let sums = ranks.run(Mode::Train, &[HostInput::I32(&ids), HostInput::I32(&next)], 0, 0, 1.0).expect("it runs");
    let all = (0..ranks.model().params.len()).flat_map(|p| ranks.engine().values(Kind::Gradient, p).expect("it runs"));
    all.chain([sums.loss as f32]).map(f32::to_bits).collect()
}

/// Pairs of temporaries of which the first is still read after the second was born.
fn alive_together(plan: &Plan) -> Vec<(usize, usize)> {
    let temporary: Vec<usize> =
        (0..plan.buffers.len()).filter(|&b| plan.buffers[b].segment == Segment::Temporary).collect();
    let life = |b: usize| plan.buffers[b].life;
    let read_later = |i: usize, j: usize| life(i).0 < life(j).0 && life(j).0 < life(i).1;
    temporary.iter().flat_map(|&i| temporary.iter().filter(move |&&j| read_later(i, j)).map(move |&j| (i, j))).collect()
}

#[test]
fn an_overlap_is_noticed() {
    let sound = run(|_| {});
    let model_plan = {
        let trainer = Trainer::<Dropped>::new(small()).build().expect("a sound model");
        trainer.plan().clone()
    };
    let pairs = alive_together(&model_plan);
    assert!(pairs.len() > 100, "{} pairs", pairs.len());
    for &(i, j) in pairs.iter().step_by(pairs.len() / 16) {
        let onto = |plan: &mut Plan| {
            plan.buffers[j].offset = plan.buffers[i].offset;
            plan.temporary_bytes += arena::align(plan.buffers[j].bytes());
            assert!(arena::overlap(&plan.buffers).is_some(), "the planner's own check");
        };
        let (a, b) = (&model_plan.buffers[i].name, &model_plan.buffers[j].name);
        assert!(run(onto) != sound, "`{b}` at the place of `{a}` changes nothing");
    }
}

#[test]
fn a_buffer_that_dies_early_is_noticed() {
    let sound = run(|_| {});
    let short = |plan: &mut Plan| {
        let late = |b: &&mut plan::Buffer| b.segment == Segment::Temporary && b.life.1 > b.life.0 + 20;
        let longest = plan.buffers.iter_mut().find(late).expect("a residual");
        longest.life.1 = longest.life.0 + 1;
    };
    assert!(run(short) != sound, "its last reader met NaN");
}
