//! The event log of a run is the schedule of its plan, and the highest byte written is the planned one.

use kiln::exec::Mode;
use kiln::exec::inspect::{Event, Inspection};
use kiln::link::Keep;
use kiln::plan::Plan;
use kiln::ranks::Mesh;
use kiln::trainer::Trainer;
use kiln::{DType, Sizes};
use kiln_tests::models::*;
use kiln_tests::training::batch;
use kiln_tests::{folders, snapshot};

use crate::small;

fn inspected(keep: Keep, sizes: Sizes, mesh: Mesh, precision: DType) -> Trainer<Dropped> {
    let trainer = Trainer::<Dropped>::new(sizes).checkpoint(keep).mesh(mesh).precision(precision);
    trainer.threads(1).poison(true).build().expect("the model is sound")
}

fn seen(trainer: &Trainer<Dropped>, rank: usize) -> &Inspection {
    trainer.ranks().engine_of(rank).inspection().expect("it inspects")
}

/// An executed step as a line: phase, layer, operation, and the values that it wrote.
fn line(plan: &Plan, log: &[String], event: &Event) -> String {
    let outputs: Vec<&str> = plan.steps[event.step].outputs.iter().map(|&b| plan.buffers[b].name.as_str()).collect();
    format!("{} -> {}\n", log[event.step], outputs.join(", "))
}

fn executed(name: &str, keep: Keep, mesh: Mesh) {
    let mut trainer = inspected(keep, small(), mesh, DType::F32);
    trainer.step(&batch(&small(), 0)).expect("a sound step");
    let plan = trainer.plan();
    for rank in 0..mesh.world_size() {
        let order: Vec<usize> = seen(&trainer, rank).events.iter().map(|e| e.step).collect();
        assert_eq!(order, (0..plan.steps.len()).collect::<Vec<_>>(), "{name}, rank {rank}: the schedule is what ran");
    }
    let log = plan.log();
    let text: String = seen(&trainer, 0).events.iter().map(|e| line(plan, &log, e)).collect();
    let path = folders::root().join("tests/golden/plan").join(format!("{name}.txt"));
    snapshot::check(&path, &text).unwrap_or_else(|difference| panic!("{difference}"));
}

#[test]
fn what_runs_is_the_schedule_that_keeps_everything() {
    executed("keep_everything", Keep::Everything, Mesh::ONE);
}

#[test]
fn what_runs_is_the_schedule_that_keeps_inputs() {
    executed("keep_inputs", Keep::Inputs, Mesh::ONE);
}

#[test]
fn what_runs_is_the_schedule_of_two_ranks() {
    executed("tensor", Keep::Everything, Mesh { data: 1, tensor: 2 });
}

/// Kernels reserve whole tiles; the last one of a small problem is written in part.
const PARTIAL_TILE: usize = 16 << 10;

#[test]
fn the_highest_byte_written_is_the_planned_one() {
    for (keep, mesh, precision) in [
        (Keep::Everything, Mesh::ONE, DType::F32),
        (Keep::Inputs, Mesh::ONE, DType::F32),
        (Keep::Inputs, Mesh::ONE, DType::Bf16),
        (Keep::Everything, Mesh { data: 1, tensor: 2 }, DType::F32),
    ] {
        let mut trainer = inspected(keep, small(), mesh, precision);
        trainer.step(&batch(&small(), 0)).expect("a sound step");
        for rank in 0..mesh.world_size() {
            let (engine, seen) = (trainer.ranks().engine_of(rank), seen(&trainer, rank));
            let layout = engine.layout();
            let planned = engine.plan(Mode::Train).temporary_bytes;
            assert_eq!(layout.workspace - layout.temporaries, planned, "training needs more than evaluation");
            assert!(
                seen.reached(planned),
                "{keep:?}, {mesh:?}: {} bytes were written of {planned}",
                seen.temporary_bytes
            );
            let unwritten = layout.workspace_bytes - seen.workspace_bytes;
            assert!(unwritten <= PARTIAL_TILE, "{keep:?}, {mesh:?}, {precision}: no kernel writes {unwritten} bytes");
            assert_eq!(engine.bytes(), layout.total);
        }
    }
}

#[test]
fn planning_is_deterministic() {
    let hash = |keep| inspected(keep, small(), Mesh::ONE, DType::F32).plan().hash();
    assert_eq!(hash(Keep::Everything), hash(Keep::Everything));
    assert_ne!(hash(Keep::Everything), hash(Keep::Inputs));
}
