//! What a GPU cannot do, and what happens when it fails: errors that name the thing, and nothing lost that was saved.

use kiln::device::cube::CubeDevice;
use kiln::device::{Target, wgpu};
use kiln::layer::Layer;
use kiln::prelude::*;
use kiln::ranks::Mesh;
use kiln::trainer::{TrainError, Trainer, TrainerBuilder};
use kiln_tests::models::*;
use kiln_tests::training::{batch, params, same_bits};
use std::sync::Arc;

use crate::{small, wgpu as shared};

/// A device of its own, which a test may change; none where the machine has none.
fn own(case: &str, change: impl FnOnce(CubeDevice) -> CubeDevice) -> Option<Target> {
    shared(case)?;
    Some(Target::Gpu(Arc::new(change(wgpu::open().expect("there is a device")))))
}

fn refused<L: Layer>(builder: TrainerBuilder<L>) -> String {
    builder.build().map(|_| ()).expect_err("it cannot be built").to_string()
}

#[test]
fn tensors_in_many_pieces_on_wgpu_are_the_same_tensors() {
    let case = "tensors_in_many_pieces_on_wgpu_are_the_same_tensors";
    // The largest tensor fits, all parameters together do not.
    let Some(pieces) = own(case, |d| d.with_chunk(1 << 13)) else { return };
    let Some(whole) = shared(case) else { return };
    let start =
        |target: Target| Trainer::<Dropped>::new(small()).seed(5).device(target).build().expect("a sound model");
    let (mut a, mut b) = (start(whole), start(pieces));
    assert!(b.ranks().engine().layout().flat.trained.len() > a.ranks().engine().layout().flat.trained.len());
    for step in 0..3 {
        let batch = batch(&small(), step);
        let (a, b) = (a.step(&batch).expect("a sound step"), b.step(&batch).expect("a sound step"));
        assert_eq!(a.loss.to_bits(), b.loss.to_bits());
    }
    // The norm is summed in other parts, so clipping would differ; without it the bits are the same.
    assert!(same_bits(&params(&a), &params(&b)));
}

#[test]
fn what_does_not_fit_on_wgpu_is_named() {
    let case = "what_does_not_fit_on_wgpu_is_named";
    let Some(tiny) = own(case, |d| d.with_chunk(1 << 11)) else { return };
    let text = refused(Trainer::<Dropped>::new(small()).device(tiny));
    assert!(text.starts_with("K0833: `") && text.contains("binds at most 2.0 kB"), "{text}");
    let Some(full) = own(case, |d| d.with_capacity(1 << 16)) else { return };
    let text = refused(Trainer::<Dropped>::new(small()).device(full));
    assert!(text.starts_with("K0801") && text.contains("this process can have 65.5 kB"), "{text}");
    let owners = text.split("most of it are ").nth(1).expect("a list").split("; use").next().expect("an end");
    assert_eq!(owners.split("), ").count(), 5, "{text}");
}

#[test]
fn settings_that_wgpu_does_not_have_are_refused() {
    let Some(gpu) = shared("settings_that_wgpu_does_not_have_are_refused") else { return };
    for mesh in [Mesh { data: 2, tensor: 1 }, Mesh { data: 1, tensor: 2 }] {
        let text = refused(Trainer::<Dropped>::new(small()).mesh(mesh).device(gpu.clone()));
        assert!(text.starts_with("K0834: device `wgpu` runs one rank"), "{text}");
    }
    let text = refused(Trainer::<Dropped>::new(small()).poison(true).device(gpu));
    assert!(text.starts_with("K0834: device `wgpu` does not inspect"), "{text}");
}

axes! { N2: "rows", H2: "features", C2: "classes" }

/// Overflows on large inputs.
#[layer]
fn steep(x: Tensor<N2, H2>, class: Ids<N2>, #[param(init = normal(0.5))] w: Tensor<H2, C2>) -> Loss {
    x.exp().matmul(w).cross_entropy(class)
}

#[test]
fn a_step_without_a_loss_on_wgpu_is_found_and_undone() {
    let Some(gpu) = shared("a_step_without_a_loss_on_wgpu_is_found_and_undone") else { return };
    let sizes = sizes! { N2 = 2, H2 = 3, C2 = 4 };
    let start = |target: Target| Trainer::<Steep>::new(sizes.clone()).device(target).build().expect("a sound model");
    let (mut host, mut device) = (start(Target::Host), start(gpu));
    let sound = |i: usize| ([0.1 * i as f32, 0.2, 0.3, -0.1, 0.5, 0.2], [1, 3]);
    let broken = ([0.1, 1e4, 0.3, 0.0, 0.0, 0.0], [1, 3]);
    host.step(&sound(1)).expect("a sound step");
    let told = host.step(&broken).expect_err("no loss").to_string();
    // Three steps are on their way before anybody looks; the second has no loss.
    for batch in [sound(1), broken, sound(2)] {
        device.submit(&batch).expect("it is enqueued");
    }
    let error = device.report().expect_err("the second step has no loss");
    assert!(matches!(error, TrainError::NotFinite { step: 2, .. }), "{error}");
    assert!(told.contains("`exp`") || told.contains("map"), "{told}");
    assert_eq!(error.to_string(), told, "the host says the same");
    assert_eq!((device.steps_done(), device.updates_done()), (1, 1));
    let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
    assert!(near(&host.param("w").unwrap(), &device.param("w").unwrap()), "weights are those before the step");
    assert!(matches!(device.report(), Err(TrainError::NothingSubmitted)));
    // Training goes on.
    let (a, b) = (host.step(&sound(3)).unwrap(), device.step(&sound(3)).unwrap());
    assert!((a.loss - b.loss).abs() < 1e-6 && a.step == b.step, "{b:?} is not {a:?}");
    let nothing = ([0.0; 6], [-1, -1]);
    assert!(matches!(device.step(&nothing), Err(TrainError::NoTargets(3))));
}

#[test]
fn a_device_of_wgpu_that_fails_keeps_what_was_saved() {
    let Some(target) = own("a_device_of_wgpu_that_fails_keeps_what_was_saved", |d| d) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("state.safetensors");
    let start =
        |target: Target| Trainer::<Dropped>::new(small()).seed(5).device(target).build().expect("a sound model");
    let mut trainer = start(target.clone());
    trainer.step(&batch(&small(), 0)).expect("a sound step");
    trainer.save(&file, &[]).expect("saved");
    let saved = std::fs::read(&file).expect("the file");
    let Target::Gpu(device) = &target else { panic!("a wgpu device") };
    device.fail("the cable was pulled");
    for error in
        [trainer.step(&batch(&small(), 1)).map(|_| ()), trainer.save(&file, &[]), trainer.param("trunk.nf").map(|_| ())]
    {
        let text = error.expect_err("the device is gone").to_string();
        assert!(
            text.starts_with("K0835: the device failed: the cable was pulled") && text.contains("--resume"),
            "{text}"
        );
    }
    assert_eq!(std::fs::read(&file).expect("the file"), saved, "nothing was overwritten");
    let mut again = start(shared("again").expect("a device"));
    again.resume(&file).expect("what was saved is there");
    again.step(&batch(&small(), 1)).expect("a sound step");
}

#[test]
fn warming_on_wgpu_changes_no_weight_and_leaves_nothing_to_compile() {
    let Some(target) = own("warming_on_wgpu_changes_no_weight_and_leaves_nothing_to_compile", |d| d) else { return };
    let mut trainer =
        Trainer::<Dropped>::new(small()).accumulate(2).clip(1.0).device(target.clone()).build().expect("a sound model");
    let before = params(&trainer);
    let mut seen = Vec::new();
    trainer.warm(|done, all| seen.push((done, all))).expect("every kernel compiles");
    let last = seen.last().copied().expect("there are kernels");
    assert!(last.0 == last.1 && last.1 > 50 && seen.is_sorted(), "{last:?}");
    assert!(same_bits(&before, &params(&trainer)));
    let compiled = target.compiled_kernels();
    trainer.step(&batch(&small(), 0)).expect("a sound step");
    trainer.evaluate([&batch(&small(), 1)]).expect("a batch");
    assert_eq!(target.compiled_kernels(), compiled, "a step compiles nothing more");
}
