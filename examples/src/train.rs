//! Training a GPT: text, session and run folder become a loop that logs, evaluates, saves, stops and resumes.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use kiln::data::{Batch, Batches, Bigram, Corpus, CorpusOptions, Cursor, PairCounts, cargo_sources};
use kiln::device::{Copied, Target};
use kiln::explain::explain;
use kiln::interrupt::{EXIT_INTERRUPTED, Interrupt};
use kiln::link::Keep;
use kiln::metrics::{MetricsWriter, Record, read_metrics};
use kiln::plot::{Curve, svg};
use kiln::prelude::*;
use kiln::progress::{Progress, Report, Style, print_line, print_note};
use kiln::ranks::Mesh;
use kiln::run_dir::{RunDir, RunError};
use kiln::trainer::{StepReport, TrainError, Trainer};
use kiln::{DType, Sizes};

use crate::cli::{GenerateArgs, TrainArgs};
use crate::config::{Checkpoint, Config, DeviceChoice, FREE, Precision};
use crate::failure::Failure;
use crate::generate;
use crate::gpt::*;

/// Batches of an evaluation: with the XS preset 32,768 bytes, whose mean loss has a standard error of about 0.01.
const EVAL_BATCHES: usize = 16;
/// Key of the order of validation text: the same for every run, so that runs compare.
const VALID_SEED: u64 = 0;
/// Steps before a profile begins, and steps of a profile.
const PROFILE_AFTER: u64 = 10;
const PROFILED_STEPS: u64 = 5;
/// Largest norm of the gradients.
const CLIP: f64 = 1.0;

/// A run in progress.
struct Run {
    config: Config,
    folder: RunDir,
    trainer: Trainer<Gpt>,
    batches: Batches,
    valid: Vec<Batch>,
    metrics: MetricsWriter,
    fingerprint: String,
    progress: Progress,
    started: Instant,
    /// Seconds of earlier parts of this run.
    elapsed_before: f64,
    end: u64,
    since_record: Meter,
    /// The steps of which a profile is made.
    profiled: Option<std::ops::Range<u64>>,
}

/// What passed since the last record.
struct Meter {
    since: Instant,
    steps: u64,
    /// Of the last step.
    collective_bytes: u64,
    /// Of the last step.
    copied: Copied,
}

/// `gpt train`: starts or resumes a run.
///
/// # Errors
/// [`Failure`]; nothing of another run is overwritten.
pub fn train(args: &TrainArgs) -> Result<ExitCode, Failure> {
    let interrupt = Interrupt::watch()?;
    let resumed = match args.resume {
        true => Some(resumed(args)?),
        false => None,
    };
    let config = match &resumed {
        Some((_, config)) => config.clone(),
        None => args.resolve()?,
    };
    let corpus = read_corpus(&config)?;
    print_note(&corpus.summary());
    let mut trainer = session(&config)?;
    print_note(&device_line(&config, &trainer));
    if args.profile && trainer.target().name() != "host" {
        let why =
            format!("only the host records what its workers do, and this run is on `{}`", trainer.target().name());
        return Err(Failure::option("--profile", why));
    }
    say_cache_note(trainer.target());
    let end = args.stop_at.unwrap_or(config.steps).min(config.steps);
    let mut batches = Batches::new(corpus.train.clone(), config.batch, config.seq, config.seed);
    let (folder, metrics, elapsed_before) = match resumed {
        None => {
            let json = to_json(&config)?;
            let folder = RunDir::create(&args.runs, args.name.as_deref())?;
            folder.write_config(&json)?;
            let metrics = MetricsWriter::create(&folder.metrics())?;
            (folder, metrics, 0.0)
        }
        Some((folder, _)) => {
            let saved = trainer.resume(folder.state())?;
            let cursor = check_position(&saved, &corpus, &folder)?;
            batches = batches.resume(cursor);
            let metrics = MetricsWriter::resume(&folder.metrics(), trainer.steps_done())?;
            (folder, metrics, saved.get("elapsed_s").and_then(|s| s.parse().ok()).unwrap_or(0.0))
        }
    };
    folder.write(&folder.plan(), &explain(trainer.model(), trainer.plan()))?;
    print_note(&format!("run: {}", folder.path().display()));
    let valid = Batches::new(corpus.valid.clone(), config.batch, config.seq, VALID_SEED).take(EVAL_BATCHES).collect();
    let progress = Progress::new(Style::of_environment(), config.steps, trainer.steps_done());
    let now = Instant::now();
    let since_record = Meter { since: now, steps: 0, collective_bytes: 0, copied: Copied::default() };
    let fingerprint = corpus.fingerprint();
    let mut run = Run {
        config,
        folder,
        trainer,
        batches,
        valid,
        metrics,
        fingerprint,
        progress,
        started: now,
        elapsed_before,
        end,
        since_record,
        profiled: None,
    };
    if args.profile {
        let done = run.trainer.steps_done();
        // A short run is profiled from its second half on.
        let from = done + PROFILE_AFTER.min((run.end - done) / 2);
        run.profiled = Some(from..run.end.min(from + PROFILED_STEPS));
    }
    if run.steps_to(interrupt)? {
        run.progress.finish();
        print_note(&format!("interrupted after step {}; `--resume` continues", run.trainer.steps_done()));
        return Ok(ExitCode::from(EXIT_INTERRUPTED as u8));
    }
    run.progress.finish();
    run.conclude(&corpus)?;
    Ok(ExitCode::SUCCESS)
}

/// `gpt explain`: the plan, without text and without a run.
///
/// # Errors
/// [`Failure`] if the model cannot be planned.
pub fn print_plan(args: &TrainArgs) -> Result<ExitCode, Failure> {
    let trainer = session(&args.resolve()?)?;
    print_line(explain(trainer.model(), trainer.plan()).trim_end());
    Ok(ExitCode::SUCCESS)
}

/// The run to resume and its configuration, which no flag may contradict.
fn resumed(args: &TrainArgs) -> Result<(RunDir, Config), Failure> {
    let folder = RunDir::resume(&args.runs, args.name.as_deref())?;
    let saved_json = folder.read_config()?;
    let saved: Config = serde_json::from_value(saved_json.clone())
        .map_err(|e| RunError::Config { path: folder.config(), detail: e.to_string() })?;
    let config = args.over(saved)?;
    folder.check_same_config(&saved_json, &to_json(&config)?, FREE)?;
    Ok((folder, config))
}

fn to_json(config: &Config) -> Result<serde_json::Value, Failure> {
    // Of numbers, names and paths only a path can fail to become JSON.
    serde_json::to_value(config)
        .map_err(|e| Failure::option("--corpus", format!("it cannot be kept in config.json: {e}")))
}

fn read_corpus(config: &Config) -> Result<Corpus, Failure> {
    let options = CorpusOptions::default();
    let corpus = match (&config.corpus, &config.valid) {
        (Some(train), Some(valid)) => Corpus::read_pair(train, valid, &options)?,
        (Some(train), None) => Corpus::read(train, &options)?,
        (None, valid) => {
            let rust = CorpusOptions { extensions: vec!["rs".to_owned()], ..options };
            match valid {
                Some(valid) => Corpus::read_pair(&cargo_sources()?, valid, &rust)?,
                None => Corpus::read(&cargo_sources()?, &rust)?,
            }
        }
    };
    corpus.check_length(config.seq)?;
    Ok(corpus)
}

/// The training session of a configuration.
///
/// # Errors
/// [`Failure`] if the device is missing or cannot run the model.
pub fn session(config: &Config) -> Result<Trainer<Gpt>, Failure> {
    let along = |axis: &str| config.mesh.get(axis).copied().unwrap_or(1);
    let trainer = Trainer::<Gpt>::new(sizes_of(config, config.batch))
        .precision(dtype(config.precision))
        .checkpoint(match config.checkpoint {
            Checkpoint::Inputs => Keep::Inputs,
            Checkpoint::Never => Keep::Everything,
        })
        .optimizer(config.optimizer())
        .schedule(config.schedule())
        .clip(CLIP)
        .seed(config.seed)
        .threads(config.threads)
        .device(target(config.device)?)
        .mesh(Mesh { data: along("data"), tensor: along("tensor") })
        .build()?;
    Ok(trainer)
}

/// Sizes of the model for a batch of `batch` rows.
pub fn sizes_of(config: &Config, batch: usize) -> Sizes {
    let w = config.preset.widths();
    sizes! {
        B = batch, S = config.seq, D = w.d, G = w.g, R = w.r, K = w.k, F = w.f, V = w.v, L = config.layers,
    }
}

/// The compiler's name of a precision.
pub fn dtype(precision: Precision) -> DType {
    match precision {
        Precision::F32 => DType::F32,
        Precision::Bf16 => DType::Bf16,
        Precision::F16 => DType::F16,
    }
}

/// The device of a configuration.
fn target(device: DeviceChoice) -> Result<Target, Failure> {
    let name = match device {
        DeviceChoice::Auto => "auto",
        DeviceChoice::Host => "host",
        DeviceChoice::Wgpu => "wgpu",
        DeviceChoice::Cuda => "cuda",
    };
    Ok(Target::named(name).map_err(TrainError::from)?)
}

/// What became of an older kernel cache.
pub fn say_cache_note(target: &Target) {
    if let Some(note) = target.cache_note() {
        print_note(note);
    }
}

fn device_line(config: &Config, trainer: &Trainer<Gpt>) -> String {
    let parameters: usize = trainer.model().params.iter().map(kiln::link::Param::len).sum();
    let chosen = trainer.target().name();
    let why = if config.device == DeviceChoice::Auto { " (auto)" } else { "" };
    let mib = trainer.peak_bytes() as f64 / (1 << 20) as f64;
    format!("device: {chosen}{why}; {parameters} parameters, {mib:.1} MiB planned")
}

/// The data cursor of a saved state, if it belongs to this text.
fn check_position(
    saved: &std::collections::BTreeMap<String, String>,
    corpus: &Corpus,
    folder: &RunDir,
) -> Result<Cursor, Failure> {
    let here = corpus.fingerprint();
    let there = saved.get("corpus").cloned().unwrap_or_default();
    if here != there {
        let (path, key) = (folder.path().to_owned(), "text of the corpus".to_owned());
        return Err(RunError::Differs { path, key, saved: there, current: here }.into());
    }
    let number = |key: &str| saved.get(key).and_then(|v| v.parse().ok());
    match (number("epoch"), number("index")) {
        (Some(epoch), Some(index)) => Ok(Cursor { epoch, index }),
        _ => Err(kiln::state::StateError::Meta { key: "epoch".into(), found: None, wanted: "a data cursor" }.into()),
    }
}

impl Run {
    /// Trains to the end; true if Ctrl-C ended it earlier. Either way the state is saved.
    fn steps_to(&mut self, interrupt: Interrupt) -> Result<bool, Failure> {
        let mut batch = Batch::default();
        while self.trainer.steps_done() < self.end {
            self.batches.fill(&mut batch);
            if self.profiled.as_ref().is_some_and(|p| p.start == self.trainer.steps_done()) {
                self.trainer.profile()?;
            }
            let (sent, copied) = (self.trainer.ranks().collective_bytes(), self.trainer.ranks().copied());
            self.trainer.submit(&batch)?;
            let step = self.trainer.steps_done();
            // A GPU is waited for where somebody looks at the step.
            let report = match self.is_logged(step) || self.is_evaluated(step) {
                true => Some(self.trainer.report()?),
                false => None,
            };
            let now = self.trainer.ranks().copied();
            self.since_record.steps += 1;
            self.since_record.collective_bytes = self.trainer.ranks().collective_bytes() - sent;
            self.since_record.copied = Copied { h2d: now.h2d - copied.h2d, d2h: now.d2h - copied.d2h };
            if self.profiled.as_ref().is_some_and(|p| p.end == step) {
                self.write_profile()?;
            }
            self.after_step(step, report)?;
            if interrupt.requested() {
                self.save()?;
                return Ok(true);
            }
        }
        self.save()?;
        Ok(false)
    }

    /// Prints the table of the profile and writes its trace.
    fn write_profile(&mut self) -> Result<(), Failure> {
        if let Some(profile) = self.trainer.profiled()? {
            let path = self.folder.profile();
            self.folder.write(&path, &profile.trace)?;
            print_note(profile.table.trim_end());
            print_note(&format!("trace for chrome://tracing: {}", path.display()));
        }
        Ok(())
    }

    fn is_due(&self, step: u64, every: u64) -> bool {
        step.is_multiple_of(every) || step == self.end
    }

    fn is_evaluated(&self, step: u64) -> bool {
        self.is_due(step, self.config.eval_every)
    }

    fn is_logged(&self, step: u64) -> bool {
        self.is_due(step, self.config.log_every)
    }

    fn after_step(&mut self, step: u64, report: Option<StepReport>) -> Result<(), Failure> {
        if let Some(report) = report {
            self.record(&report, self.is_evaluated(step))?;
        }
        if step.is_multiple_of(self.config.save_every) && step != self.end {
            self.save()?;
        }
        Ok(())
    }

    fn record(&mut self, report: &StepReport, evaluated: bool) -> Result<(), Failure> {
        let steps = self.since_record.steps as f64;
        let seconds = self.since_record.since.elapsed().as_secs_f64();
        let tokens_per_second = steps * self.config.tokens_per_step() as f64 / seconds;
        let valid_loss = match evaluated {
            true => Some(self.trainer.evaluate(&self.valid)?),
            false => None,
        };
        self.metrics.write(&Record {
            step: report.step,
            train_loss: report.loss,
            valid_loss,
            tokens_per_second,
            step_ms: 1e3 * seconds / steps,
            lr: report.lr,
            grad_norm: report.grad_norm,
            loss_scale: report.loss_scale,
            peak_bytes: self.trainer.peak_bytes() as u64,
            elapsed_s: self.elapsed_before + self.started.elapsed().as_secs_f64(),
            device: self.trainer.target().name().to_owned(),
            world_size: self.config.local_ranks as u64,
            collective_bytes: self.since_record.collective_bytes,
            h2d_bytes: self.since_record.copied.h2d,
            d2h_bytes: self.since_record.copied.d2h,
        })?;
        let eta_s = (self.end - report.step) as f64 * seconds / steps;
        let (step, loss, per_second) = (report.step, report.loss, tokens_per_second);
        self.progress.report(&Report { step, loss, valid_loss, per_second, unit: "tokens", eta_s });
        self.since_record = Meter { since: Instant::now(), steps: 0, collective_bytes: 0, copied: Copied::default() };
        Ok(())
    }

    fn save(&self) -> Result<(), Failure> {
        let Cursor { epoch, index } = self.batches.cursor();
        let elapsed = self.elapsed_before + self.started.elapsed().as_secs_f64();
        self.trainer.save(
            self.folder.state(),
            &[
                ("corpus", self.fingerprint.clone()),
                ("epoch", epoch.to_string()),
                ("index", index.to_string()),
                ("elapsed_s", elapsed.to_string()),
            ],
        )?;
        Ok(())
    }

    /// Plot, sample, and the baseline beside the loss.
    fn conclude(&mut self, corpus: &Corpus) -> Result<(), Failure> {
        self.folder.write(&self.folder.plot(), &loss_plot(&self.folder.metrics())?)?;
        let valid_loss = self.trainer.evaluate(&self.valid)?;
        let pairs = PairCounts::of_batches(&self.valid);
        let bigram = Bigram::tuned(&corpus.train, &pairs);
        print_note(&format!(
            "validation loss {valid_loss:.4} nats per byte; bigram with add-α on the same bytes {:.4} (α = {:.4}, tuned on them)",
            bigram.nats_per_byte(&pairs),
            bigram.alpha()
        ));
        let text = generate::text(&self.config, &self.trainer.state(&[])?, &GenerateArgs::default())?;
        let step = self.trainer.steps_done();
        self.folder.write(&self.folder.samples().join(format!("step-{step:06}.txt")), &text)?;
        print_note(&format!("sample:\n{text}"));
        Ok(())
    }
}

/// The loss curves of a metrics file.
fn loss_plot(metrics: &Path) -> Result<String, Failure> {
    let records = read_metrics(metrics)?;
    let train = records.iter().map(|r| (r.step as f64, r.train_loss)).collect();
    let valid = records.iter().filter_map(|r| Some((r.step as f64, r.valid_loss?))).collect();
    let curves = [Curve { name: "training".into(), points: train }, Curve { name: "validation".into(), points: valid }];
    Ok(svg("Loss of gpt", "step", "nats per byte", &curves))
}
