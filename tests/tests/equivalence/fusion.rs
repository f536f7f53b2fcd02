//! Fusion: storing every value on its way through memory gives the same bits as keeping it in registers.
#![allow(missing_docs, reason = "test models")]

use kiln::DType;
use kiln::layer::Layer;
use kiln::prelude::*;
use kiln::trainer::Trainer;
use kiln_tests::training::{grads, same_bits};

axes! { B: "batch", D: "model", F: "hidden", C: "classes" }

/// Chains of maps, statistics over rows and columns, masks, values with several readers.
#[layer]
pub fn fused(
    x: Tensor<B, D>,
    class: Ids<B>,
    #[param(init = normal(0.4))] w: Tensor<D, F>,
    #[param(init = normal(0.4))] bias: Tensor<F>,
    #[param(init = uniform(0.5, 1.5))] scale: Tensor<F>,
    #[param(init = normal(0.4))] out: Tensor<F, C>,
) -> Loss {
    let h = x.matmul(w) + bias;
    let gate = h.silu();
    let wave = (h * 1.5).tanh();
    let both = gate * wave + h;
    let kept = both.dropout(0.2);
    let normed = kept.rms_norm(scale, 1e-5);
    let share = normed.softmax(F);
    let mixed = normed + share * h;
    mixed.matmul(out).cross_entropy(class)
}

/// The same, every step of it stored.
#[layer]
pub fn unfused(
    x: Tensor<B, D>,
    class: Ids<B>,
    #[param(init = normal(0.4))] w: Tensor<D, F>,
    #[param(init = normal(0.4))] bias: Tensor<F>,
    #[param(init = uniform(0.5, 1.5))] scale: Tensor<F>,
    #[param(init = normal(0.4))] out: Tensor<F, C>,
) -> Loss {
    #[no_fuse]
    let h = x.matmul(w) + bias;
    #[no_fuse]
    let gate = h.silu();
    #[no_fuse]
    let wave = (h * 1.5).tanh();
    #[no_fuse]
    let both = gate * wave + h;
    #[no_fuse]
    let kept = both.dropout(0.2);
    #[no_fuse]
    let normed = kept.rms_norm(scale, 1e-5);
    #[no_fuse]
    let share = normed.softmax(F);
    #[no_fuse]
    let mixed = normed + share * h;
    mixed.matmul(out).cross_entropy(class)
}

fn start<M: Layer>(precision: DType) -> Trainer<M> {
    let sizes = sizes! { B = 45, D = 19, F = 77, C = 11 };
    Trainer::<M>::new(sizes).precision(precision).seed(1).threads(2).build().expect("the model is sound")
}

#[test]
fn fused_and_unfused_layers_have_the_same_bits() {
    let x: Vec<f32> = (0..45 * 19).map(|i| (i as f32 * 0.37).sin()).collect();
    let class: Vec<i32> = (0..45).map(|i| if i % 6 == 5 { -1 } else { i * 5 % 11 }).collect();
    let batch = (x, class);
    for precision in [DType::F32, DType::Bf16, DType::F16] {
        let (mut few, mut many) = (start::<Fused>(precision), start::<Unfused>(precision));
        let counts = (few.plan().steps.len(), many.plan().steps.len());
        assert!(counts.0 + 5 < counts.1, "{counts:?} steps");
        for step in 0..2 {
            let (a, b) = (few.step(&batch).expect("a sound step"), many.step(&batch).expect("a sound step"));
            // As text: a norm may be NaN in a step that f16 skips.
            assert_eq!(format!("{a:?}"), format!("{b:?}"), "{precision}, step {step}");
            assert!(same_bits(&grads(&few), &grads(&many)), "{precision}, gradients of step {step}");
        }
    }
}
