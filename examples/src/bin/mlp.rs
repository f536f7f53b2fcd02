//! `mlp`: a first model. From eight characters of Rust source it says which kind of character comes next.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use kiln::Sizes;
use kiln::data::{Corpus, CorpusOptions, cargo_sources};
use kiln::optim::{AdamW, Optimizer};
use kiln::prelude::*;
use kiln::progress::{Progress, Report, Style, print_line};
use kiln::schedule::Schedule;
use kiln::trainer::Trainer;
use kiln_examples::failure::{Failure, report};
use kiln_examples::mlp::*;
use kiln_examples::next_kind::{FEATURES, KINDS, Rows, WINDOW, Windows, accuracy, majority};

/// Rows of a step.
const BATCH: usize = 256;
/// Held-out rows.
const HELD_OUT: usize = 16_384;
/// Width of both hidden layers.
const HIDDEN: usize = 128;
/// First learning rate, the same for both models.
const LR: f64 = 3e-3;

/// Learns which kind of character comes next in Rust source.
#[derive(Parser)]
#[command(name = "mlp", version)]
struct Cli {
    /// Steps of each model
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// File or folder of text [default: the Rust sources that cargo has downloaded]
    #[arg(long, value_name = "PATH")]
    corpus: Option<PathBuf>,
    /// Key of the initial weights and of the rows
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Worker threads [default: one per processor]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    threads: usize,
}

fn main() -> ExitCode {
    report(run(&Cli::parse()))
}

fn run(cli: &Cli) -> Result<ExitCode, Failure> {
    let options = CorpusOptions { extensions: vec!["rs".to_owned()], max_bytes: 8 << 20, ..CorpusOptions::default() };
    let corpus = match &cli.corpus {
        Some(path) => Corpus::read(path, &CorpusOptions { extensions: Vec::new(), ..options })?,
        None => Corpus::read(&cargo_sources()?, &options)?,
    };
    corpus.check_length(WINDOW)?;
    print_line(&corpus.summary());
    let held_out: Vec<Rows> = Windows::new(corpus.valid.clone(), BATCH, 0).take(HELD_OUT / BATCH).collect();
    let kinds: Vec<i32> = held_out.iter().flat_map(|(_, kinds)| kinds.iter().copied()).collect();

    let sizes = sizes! { B = BATCH, P = FEATURES, C = KINDS.len() };
    let linear = train::<Regression, RegressionLogits>("linear", sizes, cli, &corpus, &held_out)?;
    let sizes = sizes! { B = BATCH, P = FEATURES, H = HIDDEN, M = HIDDEN, C = KINDS.len() };
    let mlp = train::<Mlp, MlpLogits>("mlp", sizes, cli, &corpus, &held_out)?;
    print_line(&format!(
        "accuracy on {} characters of files that were not trained on:\n  always the commonest kind {:.1} %\n  linear model {:.1} %\n  mlp {:.1} %",
        kinds.len(),
        100.0 * majority(&kinds),
        100.0 * accuracy(&linear, &kinds),
        100.0 * accuracy(&mlp, &kinds)
    ));
    Ok(ExitCode::SUCCESS)
}

/// Trains the root `Root` and returns what `Logits` says about the held-out rows.
fn train<Root: Layer, Logits: Layer>(
    name: &str,
    sizes: Sizes,
    cli: &Cli,
    corpus: &Corpus,
    held_out: &[Rows],
) -> Result<Vec<f32>, Failure> {
    let mut trainer = Trainer::<Root>::new(sizes.clone())
        .optimizer(Optimizer::AdamW(AdamW::default()))
        .schedule(Schedule::linear(LR, 0.0, cli.steps))
        .seed(cli.seed)
        .threads(cli.threads)
        .build()?;
    print_line(&format!("{name}:"));
    let progress = Progress::new(Style::of_environment(), cli.steps, 0);
    let started = std::time::Instant::now();
    for batch in Windows::new(corpus.train.clone(), BATCH, cli.seed + 1).take(cli.steps as usize) {
        let step = trainer.step(&batch)?;
        if step.step.is_multiple_of((cli.steps / 5).max(1)) {
            let per_step = started.elapsed().as_secs_f64() / step.step as f64;
            let (per_second, eta_s) = (BATCH as f64 / per_step, (cli.steps - step.step) as f64 * per_step);
            let valid_loss = Some(trainer.evaluate(held_out)?);
            progress.report(&Report { step: step.step, loss: step.loss, valid_loss, per_second, unit: "rows", eta_s });
        }
    }
    progress.finish();
    let mut session = trainer.session::<Logits>(sizes)?;
    let mut logits = Vec::new();
    for (features, _) in held_out {
        logits.extend(session.forward(features)?);
    }
    Ok(logits)
}
