//! Rates and loss scales, step by step those of PyTorch.

use kiln::scaler::{LossScaler, ScalerOptions, Verdict};
use kiln::schedule::Schedule;
use kiln_tests::peers::{self, Values};
use serde_json::Value;
use std::fs;

/// PyTorch updates a rate from the last one; forty such products and sums are forty roundings of f64.
const SCHEDULE_ROUNDING: f64 = 64.0 * f64::EPSILON;

#[test]
fn schedules_are_pytorchs() {
    let text = fs::read_to_string(peers::folder().join("schedules.json")).expect("the peers' schedules");
    let rates: Value = serde_json::from_str(&text).expect("schedules are JSON");
    let linear = Schedule::linear(3e-4, 3e-5, 30);
    let cosine = Schedule::cosine(3e-4, 3e-5, 30);
    let cases = [
        ("constant", Schedule::constant(3e-4)),
        ("linear", linear.clone()),
        ("cosine", cosine.clone()),
        ("warmup_linear", linear.warmup(8)),
        ("warmup_cosine", cosine.warmup(8)),
    ];
    for (name, schedule) in cases {
        let expected = rates[name].as_array().unwrap_or_else(|| panic!("no rates of `{name}`"));
        assert!(expected.len() > 30, "`{name}` has {} steps", expected.len());
        for (t, rate) in expected.iter().enumerate() {
            let rate = rate.as_f64().expect("a rate is a number");
            let ours = schedule.lr(t as u64);
            assert!((ours - rate).abs() <= SCHEDULE_ROUNDING * 3e-4, "{name}, step {t}: {ours} is not {rate}");
        }
    }
}

#[test]
fn loss_scale_is_gradscalers_on_random_patterns() {
    let values = Values::read("scaler");
    let (found, scales) = (values.get("found"), values.get("scales"));
    let (options, steps) = (values.get("options"), values.get("steps"));
    let longest = found.shape[1];
    assert_eq!(found.shape[0], 1000);
    let rows = found.data.chunks(longest).zip(scales.data.chunks(longest)).zip(options.data.chunks(4)).zip(&steps.data);
    for (i, (((found, scales), options), steps)) in rows.enumerate() {
        let options = ScalerOptions {
            init_scale: options[0],
            growth_factor: f64::from(options[1]),
            backoff_factor: f64::from(options[2]),
            growth_interval: options[3] as u32,
        };
        let mut scaler = LossScaler::new(options);
        let mut taken = 0.0;
        for (t, (&overflow, &scale)) in found.iter().zip(scales).enumerate() {
            taken += if scaler.update(overflow != 0.0) == Verdict::Step { 1.0 } else { 0.0 };
            assert_eq!(scaler.scale().to_bits(), scale.to_bits(), "pattern {i}, update {t}");
        }
        assert_eq!(taken, *steps, "pattern {i}");
    }
}
