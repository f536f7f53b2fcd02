//! Trainer: a root layer and sizes become a session that trains, evaluates, saves and resumes.
//!
//! One step: forward and backward of each micro-batch, then found-inf → unscale → clip → optimizer, in this order. The loss is
//! Σsum/Σcount over all micro-batches, so accumulation and ignored targets cannot change its normalisation. The parts of a step
//! are public: [`crate::step`].

use crate::batch;
use crate::device::host::ceilings::ceilings;
use crate::device::{DeviceError, Target};
use crate::exec::{EngineOptions, Kind, Mode, micro_sizes};
use crate::explain;
use crate::layer::Layer;
use crate::link::{self, Keep, LinkError, LinkOptions, Model};
use crate::optim::{AdamW, Group, Groups, Optimizer, OptimizerError, clip_factor};
use crate::plan::{self, IdError, Plan};
use crate::profile::{Profile, Profiled};
use crate::ranks::{Mesh, Ranks, RanksError};
use crate::scaler::{LossScaler, ScalerOptions};
use crate::schedule::{Schedule, ScheduleError};
use crate::session::Session;
use crate::state::{State, StateError, TensorData};
use crate::submit::Submitted;
use kiln_compiler::ir::{ArgKind, Axis, ConfigValue, DType, Output, Sizes};
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::path::Path;

pub use crate::batch::{HostBatch, HostValues};
pub use crate::step::{Gradients, OpenStep};

/// Anything that can go wrong in a session.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The model does not link.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The device cannot run it.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A rank of the mesh.
    #[error(transparent)]
    Ranks(#[from] RanksError),
    /// The state file.
    #[error(transparent)]
    State(#[from] StateError),
    /// The schedule.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// The optimizer.
    #[error(transparent)]
    Optimizer(#[from] OptimizerError),
    /// The root returns tensors.
    #[error(
        "K0711: layer `{0}` does not return `Loss`, so it cannot be trained; make it the child of a layer that does"
    )]
    NotALoss(String),
    /// The batch axis cannot be divided.
    #[error(
        "K0712: axis `{axis}` = {size} cannot be divided into {parts} parts (micro-batches × data ranks); legal numbers are {legal:?}"
    )]
    Indivisible {
        /// The batch axis.
        axis: String,
        /// Its size.
        size: usize,
        /// Parts asked for.
        parts: usize,
        /// Divisors of the size.
        legal: Vec<usize>,
    },
    /// The root's inputs do not share a leading axis.
    #[error("K0713: the inputs of `{0}` must share their first axis, the batch")]
    NoBatchAxis(String),
    /// A batch with another number of inputs.
    #[error("K0805: `{layer}` takes {wanted} inputs, the batch gives {found}")]
    Inputs {
        /// Root.
        layer: String,
        /// Its inputs.
        wanted: usize,
        /// The batch's.
        found: usize,
    },
    /// A batch with other numbers.
    #[error("K0805: input `{input}` of `{layer}` takes {wanted}, the batch gives {found}")]
    Kind {
        /// Root.
        layer: String,
        /// Which input.
        input: String,
        /// Floats or ids.
        wanted: &'static str,
        /// The other.
        found: &'static str,
    },
    /// A batch of another size.
    #[error("K0805: input `{input}` of `{layer}` needs {wanted} elements, the batch has {found}")]
    Batch {
        /// Root.
        layer: String,
        /// Which input.
        input: String,
        /// Elements needed.
        wanted: usize,
        /// Elements given.
        found: usize,
    },
    /// An id without an entry.
    #[error(transparent)]
    Id(#[from] IdError),
    /// A path without a parameter.
    #[error("K0836: the model has no parameter `{path}`; the nearest name is `{nearest}`")]
    NoParam {
        /// The path.
        path: String,
        /// The parameter whose path shares most with it.
        nearest: String,
    },
    /// Values of another length than the parameter's.
    #[error("K0837: parameter `{path}` has {wanted} elements, {found} were given")]
    ParamLength {
        /// Its path.
        path: String,
        /// Elements that it has.
        wanted: usize,
        /// Elements given.
        found: usize,
    },
    /// Not one target counts.
    #[error(
        "K0806: step {0}: every target is ignored, so the loss has no value; give a batch with at least one target"
    )]
    NoTargets(u64),
    /// A report of nothing.
    #[error(
        "K0838: no step has been submitted since the session began, resumed or failed; call `submit` or `step` first"
    )]
    NothingSubmitted,
    /// NaN or infinity in the loss.
    #[error(
        "K0807: step {step}: the loss is {loss}; the first value that is not finite is `{value}` ({operation} of layer `{path}`, {at})"
    )]
    NotFinite {
        /// Step.
        step: u64,
        /// Loss.
        loss: f64,
        /// Value's name.
        value: String,
        /// Operation.
        operation: String,
        /// Layer instance.
        path: String,
        /// `file:line` of the operation.
        at: String,
    },
    /// A state of another model.
    #[error(
        "K0808: the state was saved with {key} = {saved}, this session has {here}; use the same value or start a new run"
    )]
    Differs {
        /// What differs.
        key: String,
        /// In the file.
        saved: String,
        /// Here.
        here: String,
    },
}

/// Settings of a session; `build` plans and allocates.
#[derive(Clone, Debug)]
pub struct TrainerBuilder<L> {
    sizes: Sizes,
    config: BTreeMap<String, ConfigValue>,
    precision: DType,
    keep: Keep,
    seed: u64,
    target: Target,
    threads: usize,
    accumulate: usize,
    mesh: Mesh,
    optimizer: Optimizer,
    groups: Groups,
    schedule: Schedule,
    clip: Option<f64>,
    scaler: ScalerOptions,
    poison: bool,
    root: PhantomData<fn() -> L>,
}

impl<L: Layer> TrainerBuilder<L> {
    /// Precision that layers without `#[precision]` compute in.
    pub fn precision(mut self, dtype: DType) -> Self {
        self.precision = dtype;
        self
    }

    /// What layers without `#[checkpoint]` keep for backward.
    pub fn checkpoint(mut self, keep: Keep) -> Self {
        self.keep = keep;
        self
    }

    /// Value of a `#[config]` argument, by its name or as `layer.name`.
    pub fn config(mut self, name: &str, value: impl Into<ConfigValue>) -> Self {
        self.config.insert(name.to_owned(), value.into());
        self
    }

    /// Key of initial values and of all random streams.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Worker threads; 0 means one per processor. The result does not depend on it.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Micro-batches per step.
    pub fn accumulate(mut self, micro_batches: usize) -> Self {
        self.accumulate = micro_batches;
        self
    }

    /// Ranks, as threads of this process.
    pub fn mesh(mut self, mesh: Mesh) -> Self {
        self.mesh = mesh;
        self
    }

    /// Update rule.
    pub fn optimizer(mut self, optimizer: Optimizer) -> Self {
        self.optimizer = optimizer;
        self
    }

    /// Which parameters decay, where the rule by rank is not wanted.
    pub fn groups(mut self, groups: Groups) -> Self {
        self.groups = groups;
        self
    }

    /// Learning rate.
    pub fn schedule(mut self, schedule: Schedule) -> Self {
        self.schedule = schedule;
        self
    }

    /// Largest global norm of the gradients; larger ones are scaled down to it.
    pub fn clip(mut self, max_norm: f64) -> Self {
        self.clip = Some(max_norm);
        self
    }

    /// Dynamic loss scaling of f16 layers.
    pub fn loss_scaling(mut self, options: ScalerOptions) -> Self {
        self.scaler = options;
        self
    }

    /// Where to compute; the host by default.
    pub fn device(mut self, target: Target) -> Self {
        self.target = target;
        self
    }

    /// Fills each buffer with NaN before its birth and after its death: for tests of the plan.
    pub fn poison(mut self, poison: bool) -> Self {
        self.poison = poison;
        self
    }

    /// Links, plans and checks everything, then allocates and initialises.
    ///
    /// # Errors
    /// [`TrainError`] names the first thing that does not fit; nothing is allocated before all checks have passed.
    pub fn build(self) -> Result<Trainer<L>, TrainError> {
        self.schedule.check()?;
        match &self.optimizer {
            Optimizer::AdamW(_) | Optimizer::Sgd(_) => self.optimizer.check()?,
        }
        let TrainerBuilder { sizes, config, precision, keep, seed, mesh, .. } = self;
        let inherited =
            Inherited { config: config.clone(), precision, threads: self.threads, target: self.target.clone() };
        let options = LinkOptions { sizes: sizes.clone(), config, precision, keep, tensor: (1, 0) };
        let whole = link::link(L::DEF, &options)?;
        let root = &whole.types[whole.root.ty].layer;
        if root.output != Output::Loss {
            return Err(TrainError::NotALoss(root.name.clone()));
        }
        let batch_axis = batch_axis(root)?;
        let (batch, parts) = (sizes.of(batch_axis), self.accumulate * mesh.data);
        if parts == 0 || !batch.is_multiple_of(parts) {
            let legal = link::divisors(batch);
            return Err(TrainError::Indivisible { axis: batch_axis.to_string(), size: batch, parts, legal });
        }
        let local = micro_sizes(&sizes, batch_axis, parts);
        let scaled = whole.types.iter().any(|t| t.compute == DType::F16);
        let n_moments = self.optimizer.moments().len();
        let engine_options = |model: &Model| EngineOptions {
            target: self.target.clone(),
            threads: self.threads,
            seed,
            n_moments,
            decays: model.params.iter().map(|p| self.groups.of(&p.path, p.dims.len()) == Group::Decay).collect(),
            poison: self.poison,
        };
        let memory = self.target.memory();
        let plans =
            |model: &Model| (Some(plan::build(model, &local, memory)), plan::build_forward(model, &local, memory));
        let mut ranks = Ranks::new(L::DEF, &options, mesh, self.accumulate, engine_options, plans)?;
        ranks.initialise(seed)?;
        let scaler = scaled.then(|| LossScaler::new(self.scaler));
        Ok(Trainer {
            ranks,
            optimizer: self.optimizer,
            schedule: self.schedule,
            clip: self.clip,
            scaler,
            scaler_options: self.scaler,
            seed,
            inherited,
            step: 0,
            updates: 0,
            submitted: Submitted::default(),
            root: PhantomData,
        })
    }
}

/// Settings that another root over the same layers takes over.
struct Inherited {
    config: BTreeMap<String, ConfigValue>,
    precision: DType,
    threads: usize,
    target: Target,
}

/// The first axis of the root's inputs, which all must share.
fn batch_axis(root: &kiln_compiler::ir::Layer) -> Result<Axis, TrainError> {
    let mut first = root.args.iter().filter_map(|a| match &a.kind {
        ArgKind::Input(ty) => Some(ty.shape.first().copied()),
        _ => None,
    });
    let axis = first.next().flatten().ok_or_else(|| TrainError::NoBatchAxis(root.name.clone()))?;
    if first.all(|a| a == Some(axis)) { Ok(axis) } else { Err(TrainError::NoBatchAxis(root.name.clone())) }
}

/// A training session.
pub struct Trainer<L> {
    pub(crate) ranks: Ranks,
    pub(crate) optimizer: Optimizer,
    schedule: Schedule,
    pub(crate) clip: Option<f64>,
    scaler: Option<LossScaler>,
    scaler_options: ScalerOptions,
    seed: u64,
    inherited: Inherited,
    /// Steps done.
    pub(crate) step: u64,
    /// Optimizer steps done (skipped ones are not counted).
    pub(crate) updates: u64,
    pub(crate) submitted: Submitted,
    root: PhantomData<fn() -> L>,
}

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Number of this step, from 1.
    pub step: u64,
    /// Mean loss over all counted targets, in nats.
    pub loss: f64,
    /// Number of counted targets.
    pub count: f64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Learning rate.
    pub lr: f64,
    /// Loss scale; 1 without f16.
    pub loss_scale: f64,
    /// Whether the update was skipped because of an overflow.
    pub skipped: bool,
}

impl<L: Layer> Trainer<L> {
    /// A session of the root layer `L` with these sizes.
    #[expect(clippy::new_ret_no_self, reason = "a session is built in steps, and `new` is the field's word for it")]
    pub fn new(sizes: Sizes) -> TrainerBuilder<L> {
        TrainerBuilder {
            sizes,
            config: BTreeMap::new(),
            precision: DType::F32,
            keep: Keep::Everything,
            seed: 0,
            threads: 0,
            target: Target::Host,
            accumulate: 1,
            mesh: Mesh::ONE,
            optimizer: Optimizer::AdamW(AdamW::default()),
            groups: Groups::default(),
            schedule: Schedule::constant(DEFAULT_LR),
            clip: None,
            scaler: ScalerOptions::default(),
            poison: false,
            root: PhantomData,
        }
    }

    /// Trains on one batch: [`Trainer::submit`], then [`Trainer::report`].
    ///
    /// # Errors
    /// [`TrainError`]; after an error the weights are those before the step.
    pub fn step(&mut self, batch: &(impl HostBatch + ?Sized)) -> Result<StepReport, TrainError> {
        self.submit(batch)?;
        self.report()
    }

    /// Where backward starts: 1 without f16.
    pub fn loss_scale(&self) -> f32 {
        self.scaler.as_ref().map_or(1.0, LossScaler::scale)
    }

    /// Whether an overflow is possible and skips its step.
    pub(crate) fn scales_loss(&self) -> bool {
        self.scaler.is_some()
    }

    /// The factor that brings a gradient of this norm below the session's largest.
    pub(crate) fn clip_factor(&self, grad_norm: f64) -> f64 {
        self.clip.map_or(1.0, |max_norm| clip_factor(grad_norm, max_norm))
    }

    /// Counts the step and moves the loss scale.
    pub(crate) fn close_step(&mut self, found_inf: bool) {
        self.scaled(found_inf);
        self.step += 1;
    }

    /// Moves the loss scale.
    pub(crate) fn scaled(&mut self, found_inf: bool) {
        if let Some(scaler) = &mut self.scaler {
            scaler.update(found_inf);
        }
    }

    /// The error of a loss that is not finite; `found` is the first such value, by its step in the plan.
    pub(crate) fn not_finite(&self, step: u64, loss: f64, found: Option<(usize, String)>) -> TrainError {
        let plan = self.plan();
        let (at, value) = found.unwrap_or((plan.steps.len() - 1, "loss".to_owned()));
        let s = &plan.steps[at];
        TrainError::NotFinite {
            step,
            loss,
            value,
            operation: s.work.name(),
            path: s.path.to_string(),
            at: format!("{}:{}", s.file, s.line),
        }
    }

    /// Mean loss over batches, without training.
    ///
    /// # Errors
    /// [`TrainError`] for a batch that does not fit or counts no target.
    pub fn evaluate<'b, B: HostBatch + 'b>(
        &mut self,
        batches: impl IntoIterator<Item = &'b B>,
    ) -> Result<f64, TrainError> {
        let (mut sum, mut count) = (0.0f64, 0.0f64);
        for batch in batches {
            let inputs = batch.inputs();
            batch::check(self.model(), self.ranks.engine().plan(Mode::Evaluate), self.ranks.parts(), &inputs)?;
            let sums = self.ranks.run(Mode::Evaluate, &inputs, 0, 0, 1.0)?;
            sum += sums.loss;
            count += sums.count;
        }
        if count == 0.0 { Err(TrainError::NoTargets(self.step)) } else { Ok(sum / count) }
    }

    /// Inference with the weights of this moment: a session of another root over the same layers, with the precision, the
    /// configuration and the threads of this one.
    ///
    /// # Errors
    /// [`TrainError`] if the root does not link, or has parameters that this session has not.
    pub fn session<R: Layer>(&self, sizes: Sizes) -> Result<Session<R>, TrainError> {
        let Inherited { config, precision, threads, target } = &self.inherited;
        let mut session = Session::on(target.clone(), sizes, *precision, config.clone(), *threads)?;
        session.set_params(&self.state(&[])?)?;
        Ok(session)
    }

    /// The learning rate by step.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// Optimizer steps done: steps less those that an overflow skipped.
    pub fn updates_done(&self) -> u64 {
        self.updates
    }

    /// Steps done so far.
    pub fn steps_done(&self) -> u64 {
        self.step
    }

    /// The linked model.
    pub fn model(&self) -> &Model {
        self.ranks.model()
    }

    /// The plan of a training micro-batch.
    pub fn plan(&self) -> &Plan {
        self.ranks.engine().plan(Mode::Train)
    }

    /// The plan as text: every decision with its reason and `file:line`.
    pub fn explain(&self) -> String {
        explain::explain(self.model(), self.plan())
    }

    /// Bytes of the arena.
    pub fn peak_bytes(&self) -> usize {
        self.ranks.engine().bytes()
    }

    /// The largest owners of memory, largest first.
    pub fn owners(&self) -> Vec<(String, usize)> {
        self.ranks.engine().owners()
    }

    /// Where it computes.
    pub fn target(&self) -> &Target {
        &self.inherited.target
    }

    /// From now on the first rank's device records what its workers do, until [`Trainer::profiled`].
    ///
    /// # Errors
    /// [`DeviceError::Unsupported`] on other devices than the host.
    pub fn profile(&mut self) -> Result<(), TrainError> {
        match self.ranks.engine_mut().device_mut().record() {
            true => Ok(()),
            false => {
                let what = "records no profile: train with `--device host`, or time its kernels with `cargo xtask gpu`";
                Err(DeviceError::Unsupported { device: self.target().name(), what: what.to_owned() }.into())
            }
        }
    }

    /// Ends a profile: the trace and the table of the steps since [`Trainer::profile`], beside what the machine can do, which takes a
    /// second to measure. `None` if no profile was begun.
    ///
    /// # Errors
    /// [`DeviceError::Threads`] when the system refuses to start threads.
    pub fn profiled(&mut self) -> Result<Option<Profiled>, TrainError> {
        let Some(recording) = self.ranks.engine_mut().device_mut().recorded() else { return Ok(None) };
        let ceilings = ceilings(recording.workers()).map_err(DeviceError::Threads)?;
        let profile = Profile { model: self.model(), plan: self.plan(), recording };
        Ok(Some(Profiled::of(&profile, ceilings)))
    }

    /// The ranks of the mesh, to measure on their devices.
    pub fn ranks_mut(&mut self) -> &mut Ranks {
        &mut self.ranks
    }

    /// The ranks of the mesh.
    pub fn ranks(&self) -> &Ranks {
        &self.ranks
    }

    fn position(&self, path: &str) -> Result<usize, TrainError> {
        let params = &self.model().params;
        params.iter().position(|p| p.path == path).ok_or_else(|| {
            let shared = |other: &str| {
                let (a, b) = (path.bytes(), other.bytes());
                let from_end = a.clone().rev().zip(b.clone().rev()).take_while(|(a, b)| a == b).count();
                from_end.max(a.zip(b).take_while(|(a, b)| a == b).count())
            };
            let nearest = params.iter().max_by_key(|p| shared(&p.path)).map(|p| p.path.clone());
            TrainError::NoParam { path: path.to_owned(), nearest: nearest.unwrap_or_default() }
        })
    }

    /// Values of the whole parameter at `path`.
    ///
    /// # Errors
    /// [`TrainError::NoParam`], or [`TrainError::Device`] if the device has failed.
    pub fn param(&self, path: &str) -> Result<Vec<f32>, TrainError> {
        Ok(self.ranks.gather(Kind::Weight, self.position(path)?)?)
    }

    /// Sets the whole parameter at `path`.
    ///
    /// # Errors
    /// [`TrainError::NoParam`], [`TrainError::ParamLength`], or [`TrainError::Device`] if the device has failed.
    pub fn set_param(&mut self, path: &str, values: &[f32]) -> Result<(), TrainError> {
        self.set(Kind::Weight, path, values)?;
        Ok(self.ranks.write_shadows()?)
    }

    fn set(&mut self, kind: Kind, path: &str, values: &[f32]) -> Result<(), TrainError> {
        let p = self.position(path)?;
        let wanted = self.model().params[p].dims.iter().product::<usize>();
        if wanted != values.len() {
            return Err(TrainError::ParamLength { path: path.to_owned(), wanted, found: values.len() });
        }
        Ok(self.ranks.scatter(kind, p, values)?)
    }

    /// Gradient of the whole parameter at `path` after the last step: summed over targets and loss-scaled, as backward left it.
    ///
    /// # Errors
    /// As [`Trainer::param`].
    pub fn grad(&self, path: &str) -> Result<Vec<f32>, TrainError> {
        Ok(self.ranks.gather(Kind::Gradient, self.position(path)?)?)
    }

    /// Moment `name` of the whole parameter at `path`, by the names of [`Optimizer::moments`].
    ///
    /// # Errors
    /// As [`Trainer::param`].
    pub fn moment(&self, name: &str, path: &str) -> Result<Vec<f32>, TrainError> {
        let names = self.optimizer.moments();
        let k = names.iter().position(|m| *m == name).ok_or_else(|| {
            let full = |name: &str| format!("{OPTIMIZER_PREFIX}{name}.{path}");
            TrainError::NoParam { path: full(name), nearest: full(names[0]) }
        })?;
        Ok(self.ranks.gather(Kind::Moment(k), self.position(path)?)?)
    }

    /// Sets the whole gradient at `path`, loss-scaled sums as backward leaves them.
    pub(crate) fn set_grad(&mut self, path: &str, values: &[f32]) -> Result<(), TrainError> {
        self.set(Kind::Gradient, path, values)
    }

    /// The session as a state, with `extra` texts (a data cursor, for one).
    ///
    /// # Errors
    /// [`TrainError::Device`] if the device has failed.
    pub fn state(&self, extra: &[(&str, String)]) -> Result<State<'static>, TrainError> {
        let mut state = State::default();
        for (i, p) in self.model().params.iter().enumerate() {
            let values = self.ranks.gather(Kind::Weight, i)?;
            state.tensors.insert(p.path.clone(), TensorData::f32(p.dims.clone(), values));
            for (k, name) in self.optimizer.moments().iter().enumerate() {
                let moment = TensorData::f32(p.dims.clone(), self.ranks.gather(Kind::Moment(k), i)?);
                state.tensors.insert(format!("{OPTIMIZER_PREFIX}{name}.{}", p.path), moment);
            }
        }
        let mut meta = |k: &str, v: String| state.meta.insert(k.to_owned(), v);
        meta("step", self.step.to_string());
        meta("updates", self.updates.to_string());
        meta("seed", self.seed.to_string());
        meta("sizes", sizes_text(&self.model().sizes));
        if let Some(s) = &self.scaler {
            meta("loss_scale", s.scale().to_string());
            meta("growth_tracker", s.growth_tracker().to_string());
        }
        for (k, v) in extra {
            meta(k, v.clone());
        }
        Ok(state)
    }

    /// Saves durably: the same session gives the same bytes.
    ///
    /// # Errors
    /// [`TrainError::State`]; an existing file is then unchanged.
    pub fn save(&self, path: impl AsRef<Path>, extra: &[(&str, String)]) -> Result<(), TrainError> {
        Ok(self.state(extra)?.save(path.as_ref())?)
    }

    /// Continues from a state file; returns its texts. Bit-exact: weights, moments, steps, loss scale.
    ///
    /// # Errors
    /// [`TrainError`] names the first difference; the session is then unchanged.
    pub fn resume(&mut self, path: impl AsRef<Path>) -> Result<BTreeMap<String, String>, TrainError> {
        let state = State::load(path.as_ref())?;
        let here = sizes_text(&self.model().sizes);
        let saved: String = state.meta_value("sizes", "the sizes of the axes")?;
        if let Some((key, saved, here)) = first_difference(&saved, &here) {
            return Err(TrainError::Differs { key, saved, here });
        }
        let moments = self.optimizer.moments();
        let mut names: Vec<(String, &[usize])> = Vec::new();
        for p in &self.model().params {
            names.push((p.path.clone(), &p.dims));
            names.extend(moments.iter().map(|m| (format!("{OPTIMIZER_PREFIX}{m}.{}", p.path), p.dims.as_slice())));
        }
        state.check_fits("", names.iter().map(|(n, d)| (n.as_str(), *d)))?;
        let step = state.meta_value("step", "a number of steps")?;
        let updates = state.meta_value("updates", "a number of steps")?;
        let seed: u64 = state.meta_value("seed", "a number")?;
        if seed != self.seed {
            return Err(TrainError::Differs {
                key: "seed".into(),
                saved: seed.to_string(),
                here: self.seed.to_string(),
            });
        }
        let scaler = match &self.scaler {
            None => None,
            Some(_) => {
                let scale = state.meta_value("loss_scale", "a number")?;
                Some(LossScaler::restore(self.scaler_options, scale, state.meta_value("growth_tracker", "a number")?))
            }
        };
        let values = |name: &str| state.tensors.get(name).and_then(TensorData::as_f32).unwrap_or_default();
        let paths: Vec<String> = self.model().params.iter().map(|p| p.path.clone()).collect();
        for (i, path) in paths.iter().enumerate() {
            self.ranks.scatter(Kind::Weight, i, values(path))?;
            for (k, m) in moments.iter().enumerate() {
                self.ranks.scatter(Kind::Moment(k), i, values(&format!("{OPTIMIZER_PREFIX}{m}.{path}")))?;
            }
        }
        self.ranks.write_shadows()?;
        (self.step, self.updates, self.scaler) = (step, updates, scaler);
        self.submitted = Submitted::default();
        Ok(state.meta)
    }
}

/// PyTorch's default of Adam.
const DEFAULT_LR: f64 = 1e-3;
/// Names of moments in a state start with this; no parameter path can, since it would need a layer of that name.
const OPTIMIZER_PREFIX: &str = "optimizer.";
/// `B=8 S=256 ..`, by name.
pub fn sizes_text(sizes: &Sizes) -> String {
    sizes.iter().map(|(a, n)| format!("{a}={n}")).collect::<Vec<_>>().join(" ")
}

/// The first entry in which two `sizes_text`s differ: (name, there, here).
fn first_difference(saved: &str, here: &str) -> Option<(String, String, String)> {
    let parse = |text: &str| -> BTreeMap<String, String> {
        text.split(' ').filter_map(|e| e.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    };
    let (saved, here) = (parse(saved), parse(here));
    let names: std::collections::BTreeSet<&String> = saved.keys().chain(here.keys()).collect();
    names.into_iter().find(|n| saved.get(*n) != here.get(*n)).map(|n| {
        let shown = |m: &BTreeMap<String, String>| m.get(n).cloned().unwrap_or_else(|| "nothing".to_owned());
        (n.clone(), shown(&saved), shown(&here))
    })
}
