//! Recomputation: the same bits from less memory, and a second forward in the plan.

use kiln::Sizes;
use kiln::layer::Layer;
use kiln::link::Keep;
use kiln::plan::{Phase, Plan};
use kiln::prelude::sizes;
use kiln::trainer::Trainer;
use kiln_compiler::ir::ConfigValue;
use kiln_tests::models::*;
use kiln_tests::training::{batch, grads, params, same_bits};

const LAYERS: usize = 8;

fn deep() -> Sizes {
    sizes! { B = 4, S = 33, D = 24, G = 2, R = 2, K = 6, F = 44, V = 61, L = LAYERS }
}

fn session<M: Layer>(keep: Keep) -> Trainer<M> {
    Trainer::<M>::new(deep()).checkpoint(keep).seed(5).threads(2).build().expect("the model is sound")
}

fn check<M: Layer>(mut never: Trainer<Dropped>, mut light: Trainer<M>) {
    assert!(same_bits(&params(&never), &params(&light)), "both start from the same weights");
    for step in 0..3 {
        let batch = batch(&deep(), step);
        let (a, b) = (never.step(&batch).expect("a sound step"), light.step(&batch).expect("a sound step"));
        assert_eq!(a, b, "step {step}");
        let (ours, theirs) = (grads(&light), grads(&never));
        assert!(theirs.values().all(|g| g.iter().any(|x| *x != 0.0)), "a gradient that is zero proves nothing");
        assert!(same_bits(&ours, &theirs), "gradients of step {step}");
    }
    assert!(same_bits(&params(&light), &params(&never)));
    let ratio = light.peak_bytes() as f64 / never.peak_bytes() as f64;
    println!("planned peak: {} of {} bytes, {ratio:.2}", light.peak_bytes(), never.peak_bytes());
    assert!(ratio <= 0.6, "planned peak is {ratio:.2} of that without recomputation");
}

#[test]
fn checkpointed_blocks_give_the_same_bits_from_less_memory() {
    check(session::<Dropped>(Keep::Everything), session::<Light>(Keep::Everything));
}

#[test]
fn the_sessions_checkpoint_gives_the_same_bits_from_less_memory() {
    check(session::<Dropped>(Keep::Everything), session::<Dropped>(Keep::Inputs));
}

#[test]
fn dropout_is_on() {
    let mut on = session::<Dropped>(Keep::Everything);
    let off = Trainer::<Dropped>::new(deep()).config("rate", ConfigValue::Float(0.0)).seed(5).build();
    let (mut off, batch) = (off.expect("the model is sound"), batch(&deep(), 0));
    // Evaluation drops nothing.
    let evaluated = off.evaluate([&batch]).expect("a sound batch");
    assert_eq!(on.evaluate([&batch]).expect("a sound batch"), evaluated);
    let (with, without) = (on.step(&batch).expect("a sound step"), off.step(&batch).expect("a sound step"));
    assert_eq!(without.loss, evaluated);
    assert_ne!(with.loss, without.loss);
}

/// Numbers of a block's steps in a phase.
fn steps(plan: &Plan, phase: Phase, block: usize) -> Vec<usize> {
    let (own, inside) = (format!("trunk.blocks.{block}"), format!("trunk.blocks.{block}."));
    let of_block = |path: &str| path == own || path.starts_with(&inside);
    (0..plan.steps.len()).filter(|&i| plan.steps[i].phase == phase && of_block(&plan.steps[i].path)).collect()
}

#[test]
fn the_plan_shows_the_second_forward() {
    let light = session::<Light>(Keep::Everything);
    let plan = light.plan();
    let name = |i: &usize| (plan.steps[*i].path.clone(), plan.steps[*i].work.name(), plan.steps[*i].line);
    for block in 0..LAYERS {
        let (forward, replay) = (steps(plan, Phase::Forward, block), steps(plan, Phase::Replay, block));
        let backward = steps(plan, Phase::Backward, block);
        assert!(replay.iter().any(|i| plan.steps[*i].work.name() == "attention"), "block {block} runs again");
        let mut first = forward.iter().map(name);
        assert!(replay.iter().all(|again| first.any(|f| f == name(again))), "block {block} runs again in its order");
        assert!(replay.last() < backward.first(), "block {block} runs again before its backward");
        if block + 1 < LAYERS {
            let later = steps(plan, Phase::Backward, block + 1);
            assert!(later.last() < replay.first(), "block {block} runs again only after the backward of the next");
        }
    }
    let never = session::<Dropped>(Keep::Everything);
    assert!(never.plan().steps.iter().all(|s| s.phase != Phase::Replay));
}

#[test]
fn layers_of_the_two_models_share_their_paths() {
    let paths = |def: &kiln::layer::LayerDef| def.subs[0].name.to_owned();
    assert_ne!(paths(Dropped::DEF), paths(Light::DEF), "the models are two");
    assert!(session::<Light>(Keep::Everything).model().params.iter().any(|p| p.path == "trunk.blocks.7.mlp.gate"));
}
