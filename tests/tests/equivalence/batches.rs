//! Micro-batches equal one batch however unevenly their targets count, and any number of threads gives the same bits.

use kiln::optim::{AdamW, Optimizer, Sgd};
use kiln::prelude::sizes;
use kiln::ranks::Mesh;
use kiln::scaler::ScalerOptions;
use kiln::trainer::Trainer;
use kiln::{DType, Sizes};
use kiln_tests::models::*;
use kiln_tests::training::{batch, farthest, grads, params};

use crate::small;

/// Sums in another order, in f32: ‖Δ‖/‖reference‖ of a loss or gradient.
const ONE_STEP: f64 = 1e-6;
/// The same after three updates by AdamW, which divides by gradients of any size.
const THREE_STEPS: f64 = 1e-5;

/// Counted targets of each row.
const COUNTED: [usize; 4] = [1, 7, 0, 56];

fn rows() -> Sizes {
    sizes! { B = 4, S = 59, D = 12, G = 2, R = 3, K = 6, F = 22, V = 37, L = 2 }
}

/// A batch in which row `i` counts `COUNTED[i]` targets.
fn uneven(seed: u64) -> (Vec<i32>, Vec<i32>) {
    let (ids, mut next) = batch(&rows(), seed);
    for (row, counted) in next.chunks_mut(59).zip(COUNTED) {
        for (i, target) in row.iter_mut().enumerate() {
            // The last ones of each row; 11 and 59 have no common factor, so they are spread over it.
            *target = if i * 11 % 59 < counted { (i as i32 * 7 + seed as i32) % 37 } else { -1 };
        }
    }
    (ids, next)
}

#[test]
fn uneven_micro_batches_equal_one_batch() {
    let start = |accumulate: usize, mesh: Mesh| {
        let trainer = Trainer::<Dropped>::new(rows()).accumulate(accumulate).mesh(mesh).seed(4);
        trainer.build().expect("the model is sound")
    };
    for (accumulate, mesh) in
        [(4, Mesh::ONE), (2, Mesh::ONE), (2, Mesh { data: 2, tensor: 1 }), (1, Mesh { data: 4, tensor: 1 })]
    {
        let (mut whole, mut parts) = (start(1, Mesh::ONE), start(accumulate, mesh));
        for step in 0..3 {
            let batch = uneven(step);
            let (a, b) = (whole.step(&batch).expect("a sound step"), parts.step(&batch).expect("a sound step"));
            assert_eq!((a.count, b.count), (64.0, 64.0));
            if step == 0 {
                assert!((a.loss - b.loss).abs() <= ONE_STEP * a.loss, "{} and {}", a.loss, b.loss);
                let (distance, name) = farthest(&grads(&parts), &grads(&whole));
                println!("{accumulate} micro-batches on {mesh:?}: {distance:.1e}");
                assert!(distance <= ONE_STEP, "{accumulate} micro-batches on {mesh:?}, {name}: {distance:.1e}");
            }
            assert!((a.loss - b.loss).abs() <= THREE_STEPS * a.loss, "step {step}: {} and {}", a.loss, b.loss);
        }
        let (distance, name) = farthest(&params(&parts), &params(&whole));
        assert!(distance <= THREE_STEPS, "{accumulate} micro-batches on {mesh:?}, {name}: {distance:.1e}");
    }
}

#[test]
fn a_batch_without_targets_is_refused_and_changes_nothing() {
    let mut trainer = Trainer::<Dropped>::new(small()).seed(4).build().expect("the model is sound");
    let (ids, next) = batch(&small(), 0);
    let before = trainer.state(&[]).expect("a state");
    let ignored = vec![-1; next.len()];
    let error = trainer.step(&(ids.clone(), ignored)).expect_err("no target counts");
    assert!(error.to_string().contains("K0806"), "{error}");
    assert!(trainer.state(&[]).expect("a state") == before);
    let short = (&ids[1..], &next);
    assert!(trainer.step(&short).expect_err("an input is short").to_string().contains("K0805"));
    assert!(trainer.state(&[]).expect("a state") == before);
}

#[test]
fn narrow_copies_follow_the_weights() {
    let sgd = Optimizer::Sgd(Sgd { nesterov: true, ..Sgd::default() });
    for (precision, optimizer) in [(DType::Bf16, Optimizer::AdamW(AdamW::default())), (DType::F16, sgd)] {
        for mesh in [Mesh::ONE, Mesh { data: 1, tensor: 2 }] {
            let start = || {
                let options = ScalerOptions { init_scale: 64.0, ..ScalerOptions::default() };
                let trainer = Trainer::<Dropped>::new(small()).precision(precision).loss_scaling(options).mesh(mesh);
                trainer.optimizer(optimizer).threads(4).seed(2).build().expect("the model is sound")
            };
            let (mut trained, mut copied) = (start(), start());
            let first = trained.evaluate([&batch(&small(), 9)]).expect("a sound batch");
            for step in 0..3 {
                assert!(!trained.step(&batch(&small(), step)).expect("a sound step").skipped);
            }
            // Setting a parameter writes its narrow copies anew.
            for (path, values) in params(&trained) {
                copied.set_param(&path, &values).expect("a parameter");
            }
            let [a, b] = [&mut trained, &mut copied].map(|t| t.evaluate([&batch(&small(), 9)]).expect("a sound batch"));
            assert_eq!(a.to_bits(), b.to_bits(), "{precision}, {mesh:?}");
            assert_ne!(a, first);
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    // Products and rows large enough that several workers share them.
    let sizes = sizes! { B = 4, S = 37, D = 36, G = 2, R = 3, K = 6, F = 70, V = 101, L = 2 };
    let folder = tempfile::tempdir().expect("a folder");
    for precision in [DType::F32, DType::Bf16] {
        let bytes = |threads: usize| {
            let trainer = Trainer::<Dropped>::new(sizes.clone()).threads(threads).precision(precision).accumulate(2);
            let mut trainer = trainer.clip(1.0).seed(8).build().expect("the model is sound");
            for step in 0..20 {
                trainer.step(&batch(&sizes, step)).expect("a sound step");
            }
            let path = folder.path().join(format!("{precision}-{threads}"));
            trainer.save(&path, &[]).expect("the state is written");
            std::fs::read(path).expect("the state was written")
        };
        let one = bytes(1);
        for threads in [2, 3, 7] {
            assert!(one == bytes(threads), "{precision}: {threads} threads change the state");
        }
    }
}
