//! The example's block in bf16: the same casts as PyTorch's, so nearer to PyTorch's bf16 than to its f32.

use std::collections::BTreeMap;

use kiln::prelude::sizes;
use kiln::session::Session;
use kiln::state::{State, TensorData};
use kiln::trainer::Trainer;
use kiln::{DType, Sizes};
use kiln_tests::models::*;
use kiln_tests::peers::{Values, relative};

/// Two runs with the same casts differ where sums in another order fall to the other side of a rounding. A sum of `length` f32
/// products is off by √length·2⁻²⁴ of its size, and a bf16 unit is 2⁻⁸ to 2⁻⁷ of it, so a share √length·2⁻¹⁶ of the values moves by
/// one unit; over `depth` roundings in a row the moved values add up in ‖Δ‖/‖reference‖ like a random walk.
fn flipped_roundings(dtype: DType, length: usize, depth: usize) -> f64 {
    assert_eq!(dtype, DType::Bf16, "written for one type");
    let (unit, share) = (2f64.powi(-8), (length as f64).sqrt() * 2f64.powi(-16));
    unit * (share * depth as f64).sqrt()
}

/// Roundings between a block's input and the gradients of its first weights: about fifteen forward and fifteen backward.
const DEPTH: usize = 30;

fn sizes_of(v: &Values) -> Sizes {
    let n = |axis: &str| v.size(axis);
    sizes! { B = n("B"), S = n("S"), D = n("D"), G = n("G"), R = n("R"), K = n("K"), F = n("F") }
}

/// Where PyTorch's parameter `name` lies in a model around the block.
fn path(name: &str) -> String {
    if name == "x" { name.to_owned() } else { format!("block.{name}") }
}

/// Result and gradients of the block in a precision.
fn run(v: &Values, precision: DType) -> BTreeMap<String, Vec<f32>> {
    let mut trainer = Trainer::<Judged>::new(sizes_of(v)).precision(precision).build().expect("the model is sound");
    let mut state = State::default();
    for (name, t) in v.under("param") {
        trainer.set_param(&path(&name), &t.data).expect("a parameter");
        if name != "x" {
            state.tensors.insert(path(&name), TensorData::f32(t.shape.clone(), t.data.clone()));
        }
    }
    let class: Vec<i32> = v.get("targets").data.iter().map(|&c| c as i32).collect();
    trainer.step(&class).expect("the batch fits");
    let grads = v.under("param").into_keys().map(|name| {
        let grad = trainer.grad(&path(&name)).expect("a parameter");
        (format!("grad/{name}"), grad)
    });
    let mut results: BTreeMap<String, Vec<f32>> = grads.collect();
    let mut shown = Session::<Shown>::new(sizes_of(v), precision, BTreeMap::new(), 0).expect("the model is sound");
    shown.set_params(&state).expect("the block's parameters");
    let x = &v.get("param/x").data;
    results.insert("y".to_owned(), shown.forward(x).expect("the batch fits"));
    results
}

#[test]
fn bf16_block_has_pytorchs_casts() {
    let v = Values::read("block_bf16");
    let longest = v.size("B") * v.size("S");
    let tolerance = flipped_roundings(DType::Bf16, longest, DEPTH);
    let mut far = Vec::new();
    for (name, ours) in run(&v, DType::Bf16) {
        let with_casts = relative(&ours, &v.get(&format!("bf16/{name}")).data);
        let without = relative(&ours, &v.get(&format!("f32/{name}")).data);
        println!("{name}: {with_casts:.2e} from bf16, {without:.2e} from f32, tolerance {tolerance:.2e}");
        if with_casts > tolerance || with_casts > without / 4.0 {
            far.push(name);
        }
    }
    assert!(far.is_empty(), "{far:?} are not near PyTorch's bf16");
}

#[test]
fn f32_block_is_pytorchs() {
    /// Rounding of f32 over sums of some tens of products.
    const F32_BLOCK: f64 = 1e-5;
    let v = Values::read("block_bf16");
    for (name, ours) in run(&v, DType::F32) {
        let distance = relative(&ours, &v.get(&format!("f32/{name}")).data);
        assert!(distance <= F32_BLOCK, "{name}: {distance:.2e}");
    }
}
