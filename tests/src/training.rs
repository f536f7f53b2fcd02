//! What the tiers that train share: batches from a seed, all gradients of a session, distances.

use crate::peers::relative;
use crate::programs::Random;
use kiln::Sizes;
use kiln::layer::Layer;
use kiln::trainer::Trainer;
use kiln_compiler::ir::Axis;
use std::collections::BTreeMap;

/// Tensors by path.
pub type Tensors = BTreeMap<String, Vec<f32>>;

/// Ids and targets of a language model over the axes `B`, `S` and `V`; one target in five is ignored.
pub fn batch(sizes: &Sizes, seed: u64) -> (Vec<i32>, Vec<i32>) {
    let of = |axis| sizes.of(Axis::new(axis));
    let (n, vocab) = (of("B") * of("S"), of("V"));
    let mut random = Random(seed);
    let ids = (0..n).map(|_| random.below(vocab) as i32).collect();
    let targets = (0..n).map(|_| if random.below(5) == 0 { -1 } else { random.below(vocab) as i32 }).collect();
    (ids, targets)
}

const OWN: &str = "the model's own parameter";

/// Every parameter.
pub fn params<L: Layer>(trainer: &Trainer<L>) -> Tensors {
    all(trainer, |path| trainer.param(path).expect(OWN))
}

/// Every gradient, as backward left it.
pub fn grads<L: Layer>(trainer: &Trainer<L>) -> Tensors {
    all(trainer, |path| trainer.grad(path).expect(OWN))
}

/// Both moments of AdamW of every parameter.
pub fn moments<L: Layer>(trainer: &Trainer<L>) -> [Tensors; 2] {
    ["exp_avg", "exp_avg_sq"].map(|name| all(trainer, |path| trainer.moment(name, path).expect(OWN)))
}

fn all<L: Layer>(trainer: &Trainer<L>, read: impl Fn(&str) -> Vec<f32>) -> Tensors {
    let paths = trainer.model().params.iter().map(|p| p.path.clone());
    paths.map(|path| (path.clone(), read(&path))).collect()
}

/// Whether all values have the same bits.
pub fn same_bits(a: &Tensors, b: &Tensors) -> bool {
    let bits = |t: &Tensors| -> Vec<(String, Vec<u32>)> {
        t.iter().map(|(n, x)| (n.clone(), x.iter().map(|v| v.to_bits()).collect())).collect()
    };
    bits(a) == bits(b)
}

/// The largest ‖Δ‖/‖reference‖ of any tensor, with its name; infinite where a value is not finite.
pub fn farthest(ours: &Tensors, reference: &Tensors) -> (f64, String) {
    assert_eq!(ours.keys().collect::<Vec<_>>(), reference.keys().collect::<Vec<_>>());
    let distance = |(name, x): (&String, &Vec<f32>)| {
        let d = relative(x, &reference[name]);
        (if d.is_finite() { d } else { f64::INFINITY }, name.clone())
    };
    ours.iter().map(distance).max_by(|a, b| a.0.total_cmp(&b.0)).expect("a model has parameters")
}
