//! Trains the classifier: `outside INPUT OUTPUT` reads parameters and batches from one state file, and writes scores and gradients of the
//! first step and the loss of every step to another.
#![forbid(unsafe_code)]
#![deny(warnings, missing_docs)]

use forge::optim::{Groups, Optimizer, Sgd};
use forge::prelude::*;
use forge::schedule::Schedule;
use forge::state::{State, TensorData};
use forge::trainer::Trainer;
use outside::{C, E, H, M, N, P, Scorer};
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

/// Training root; it lives in the executable, its child in the library.
#[layer]
pub fn objective(x: Tensor<N, P>, kind: Ids<N>, #[sub] net: Scorer) -> Loss {
    let scores: Tensor<N, C> = net.forward(x);
    scores.cross_entropy(kind)
}

/// Scoring root over the same parameters.
#[layer]
pub fn scores(x: Tensor<N, P>, #[sub] net: Scorer) -> Tensor<N, C> {
    net.forward(x)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [input, output] = arguments.as_slice() else {
        eprintln!("usage: outside INPUT OUTPUT");
        return ExitCode::from(2);
    };
    match run(Path::new(input), Path::new(output)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::from(2)
        }
    }
}

/// Sizes of the axes from the texts of a state.
fn sizes_of(state: &State<'_>) -> Result<forge::Sizes, Box<dyn Error>> {
    let size = |name| state.meta_value::<usize>(name, "a size");
    let (n, p, h) = (size("N")?, size("P")?, size("H")?);
    Ok(sizes! { N = n, P = p, H = h, M = size("M")?, C = size("C")?, E = size("E")? })
}

/// The numbers of a tensor.
fn floats<'s>(state: &'s State<'_>, name: &str) -> Result<&'s [f32], String> {
    state.tensors.get(name).and_then(TensorData::as_f32).ok_or_else(|| format!("the input has no numbers `{name}`"))
}

fn run(input: &Path, output: &Path) -> Result<(), Box<dyn Error>> {
    let state = State::load(input)?;
    let sizes = sizes_of(&state)?;
    let number = |name| state.meta_value::<f64>(name, "a number");
    let sgd = Sgd { momentum: number("momentum")?, weight_decay: 0.0, nesterov: false };
    let mut trainer = Trainer::<Objective>::new(sizes.clone())
        .optimizer(Optimizer::Sgd(sgd))
        .groups(Groups::default())
        .schedule(Schedule::constant(number("lr")?))
        .config("eps", number("eps")?)
        .config("rate", number("rate")?)
        .build()?;
    let paths: Vec<String> = trainer.model().params.iter().map(|p| p.path.clone()).collect();
    for path in &paths {
        trainer.set_param(path, floats(&state, path)?)?;
    }
    let (x, kinds) = (floats(&state, "x")?, floats(&state, "kind")?);
    let kinds: Vec<i32> = kinds.iter().map(|&k| k as i32).collect();
    let steps = state.meta_value::<usize>("steps", "a number of steps")?;
    let batch = |i: usize| {
        let part = |n: usize| i * n / steps..(i + 1) * n / steps;
        (x[part(x.len())].to_vec(), kinds[part(kinds.len())].to_vec())
    };

    let mut result = State::default();
    let first = trainer.session::<Scores>(sizes)?.forward(&batch(0).0)?;
    result.tensors.insert("logits".to_owned(), TensorData::f32(vec![first.len()], first));
    let mut losses = Vec::new();
    for i in 0..steps {
        let report = trainer.step(&batch(i))?;
        losses.push(report.loss as f32);
        println!("step {} loss {:.6}", report.step, report.loss);
        if i > 0 {
            continue;
        }
        for path in &paths {
            let sum = trainer.grad(path)?;
            let mean: Vec<f32> = sum.iter().map(|g| (f64::from(*g) / report.count) as f32).collect();
            result.tensors.insert(format!("grad/{path}"), TensorData::f32(vec![mean.len()], mean));
        }
    }
    result.tensors.insert("losses".to_owned(), TensorData::f32(vec![steps], losses));
    Ok(result.save(output)?)
}

#[cfg(test)]
mod tests {
    #[test]
    fn parsed_and_recorded_layers_agree() {
        let report = forge::check::recordings().unwrap_or_else(|e| panic!("{e}"));
        let compared = |name: &str| report.compared.iter().any(|n| n == name);
        for name in [
            "block",
            "scorer",
            "objective",
            "scores",
            "linear over [N, P], [P, H], [H]",
            "linear over [N, M], [M, H], [H]",
        ] {
            assert!(compared(name), "{name}: {report:?}");
        }
        assert_eq!(report.recorded_only, ["feed_forward"]);
    }

    #[test]
    fn operations_of_the_library_are_listed() {
        let mut ops: Vec<&str> = forge::user_ops().map(|op| op.name).collect();
        ops.sort_unstable();
        assert_eq!(ops, ["outside::affine::affine", "outside::affine::affine_vjp"]);
    }
}
