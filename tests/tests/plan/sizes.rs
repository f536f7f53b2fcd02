//! Sizes, meshes and batches that cannot be planned: typed errors that name the thing and the legal values.

use kiln::Sizes;
use kiln::device::DeviceError;
use kiln::prelude::sizes;
use kiln::ranks::{Mesh, RanksError};
use kiln::schedule::Schedule;
use kiln::trainer::{TrainError, Trainer, TrainerBuilder};
use kiln_compiler::ir::{Axis, ConfigValue};
use kiln_tests::models::*;

use crate::small;

/// The small sizes with one changed.
fn with(axis: &str, n: usize) -> Sizes {
    small().iter().map(|(a, old)| (a, if a == Axis::new(axis) { n } else { old })).collect()
}

fn refused(builder: TrainerBuilder<Dropped>) -> TrainError {
    builder.build().map(|_| ()).expect_err("it cannot be planned")
}

/// All `parts` stand in the error of these sizes.
fn refuses(sizes: Sizes, parts: &[&str]) {
    let text = refused(Trainer::<Dropped>::new(sizes.clone())).to_string();
    assert!(parts.iter().all(|part| text.contains(part)), "{sizes:?}: {parts:?} are not all in: {text}");
}

#[test]
fn sizes_that_do_not_bind_are_named() {
    refuses(sizes! { B = 4, S = 7, D = 12, G = 2, R = 3, K = 6, F = 22, V = 37 }, &["K0701", "`L`"]);
    refuses(sizes! { B = 4, S = 7, D = 12, G = 2, R = 3, K = 6, V = 37, L = 2 }, &["K0701", "`F`", "`mlp`"]);
    refuses(
        sizes! { B = 4, S = 7, D = 12, G = 2, R = 3, K = 6, F = 22, V = 37, L = 2, C = 3 },
        &["K0705", "`C`", "B, D, F"],
    );
    refuses(with("K", 5), &["K0704", "`K` = 5", "even", "models.rs:"]);
}

#[test]
fn sizes_of_zero_are_named() {
    for axis in ["B", "S", "D", "F", "V", "L"] {
        refuses(with(axis, 0), &["K0702", &format!("`{axis}`")]);
    }
}

#[test]
fn sizes_that_overflow_are_named() {
    for n in [usize::MAX, usize::MAX / 2 + 1, 1 << 40] {
        refuses(with("B", n), &["K0703"]);
        refuses(with("V", n), &["K0703"]);
        refuses(with("F", n), &["K0703", "mlp."]);
        refuses(with("L", n), &["K0716", "`blocks`", "`trunk`"]);
    }
    refuses(with("S", 1 << 29), &["K0703"]);
}

#[test]
fn batches_that_do_not_divide_list_the_legal_numbers() {
    let text = refused(Trainer::<Dropped>::new(with("B", 12)).accumulate(5)).to_string();
    assert!(text.contains("K0712") && text.contains("`B` = 12") && text.contains("[1, 2, 3, 4, 6, 12]"), "{text}");
    let text =
        refused(Trainer::<Dropped>::new(with("B", 12)).accumulate(2).mesh(Mesh { data: 4, tensor: 1 })).to_string();
    assert!(text.contains("8 parts"), "{text}");
    assert!(refused(Trainer::<Dropped>::new(small()).accumulate(0)).to_string().contains("K0712"));
    // A batch with few divisors is listed at once, however large it is.
    let text = refused(Trainer::<Dropped>::new(with("B", 2_097_143)).accumulate(2)).to_string();
    assert!(text.contains("[1, 2097143]"), "{text}");
}

#[test]
fn settings_out_of_range_are_named() {
    let text = refused(Trainer::<Dropped>::new(small()).schedule(Schedule::constant(f64::NAN))).to_string();
    assert!(text.contains("K084"), "{text}");
    let rate = |rate: f64| Trainer::<Dropped>::new(small()).config("rate", ConfigValue::Float(rate));
    assert!(rate(0.0).build().is_ok());
    for outside in [1.0, -0.1, f64::NAN] {
        let text = refused(rate(outside)).to_string();
        assert!(text.contains("`rate`") && text.contains("models.rs:"), "{text}");
    }
}

#[test]
fn more_memory_than_there_is_names_the_largest_owners() {
    // Three matrices of 4 GiB in each of 64 layers, with gradients and two moments: three thousand gigabytes.
    let wide = sizes! { B = 1, S = 2, D = 32768, G = 1, R = 1, K = 2, F = 32768, V = 3, L = 64 };
    match Trainer::<Dropped>::new(wide).build().map(|_| ()) {
        Err(TrainError::Ranks(RanksError::Device(DeviceError::Memory(error)))) => {
            assert!(error.bytes > 64 * 3 * (4 << 30) * 4, "{}", error.bytes);
            assert_eq!(error.owners.len(), 5);
            assert!(error.owners.is_sorted_by(|a, b| a.1 >= b.1), "{:?}", error.owners);
            let text = error.to_string();
            let named = ["K0801", "optimizer moments (1.6 TB)", "parameters (824.", "gradients (824.", "smaller batch"];
            assert!(named.iter().all(|part| text.contains(part)), "{text}");
        }
        other => panic!("{other:?}"),
    }
}
