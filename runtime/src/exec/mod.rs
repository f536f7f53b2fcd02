//! Execute: an engine runs the plans of one rank on one device. Decides nothing: kernels, offsets and order come from the plan.
//!
//! What all devices share is here: places of tensors, initial values, whose memory is whose. What they compute is behind [`Device`].

pub mod comm;
pub mod inspect;
pub mod layout;
pub mod reference;

use crate::device::{Device, DeviceError, Target};
use crate::link::{Model, Param};
use crate::plan::{BufferId, Memory, Plan, Segment};
use crate::random;
use comm::Member;
use inspect::Inspection;
use kiln_compiler::ir::{DType, Init, Sizes};
use layout::{ArenaLayout, FlatLayout, ParamShape};
use std::num::NonZero;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// Which plan to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Forward and backward of a micro-batch.
    Train,
    /// Forward alone.
    Evaluate,
}

/// What the host gives to a step.
#[derive(Clone, Copy, Debug)]
pub enum HostInput<'a> {
    /// Ids.
    I32(&'a [i32]),
    /// Floats.
    F32(&'a [f32]),
}

impl HostInput<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            HostInput::I32(x) => x.len(),
            HostInput::F32(x) => x.len(),
        }
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<'a> HostInput<'a> {
    /// Part `i` of `parts` equal ones.
    pub fn part(&self, i: usize, parts: usize) -> HostInput<'a> {
        let n = self.len() / parts;
        match self {
            HostInput::I32(x) => HostInput::I32(&x[i * n..(i + 1) * n]),
            HostInput::F32(x) => HostInput::F32(&x[i * n..(i + 1) * n]),
        }
    }
}

/// Which run of a plan.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Training step: counter of random streams.
    pub step: u64,
    /// Micro-batch of this rank.
    pub micro: usize,
    /// Part of the whole batch: micro-batches and data ranks, counted together.
    pub part: usize,
    /// Where backward starts.
    pub loss_scale: f32,
}

/// How to build an [`Engine`].
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Where it computes.
    pub target: Target,
    /// Worker threads of the host; 0 means one per processor.
    pub threads: usize,
    /// Key of all random streams.
    pub seed: u64,
    /// Moments per trained element.
    pub n_moments: usize,
    /// Whether parameter `i` decays.
    pub decays: Vec<bool>,
    /// Inspect every run: fill each buffer with NaN at its birth and after its death.
    pub poison: bool,
}

/// What a device is given to run: plans whose buffers have no place yet.
pub struct Job {
    /// Forward and backward, for training.
    pub train: Option<Plan>,
    /// Forward alone.
    pub evaluate: Plan,
    /// Kernels that the macros emitted, by the hash of their region.
    pub kernels: Vec<&'static crate::layer::KernelDef>,
    /// Where parameters lie in the flat segments.
    pub flat: FlatLayout,
    /// Moments per trained element.
    pub n_moments: usize,
    /// Key of all random streams.
    pub seed: u64,
    /// Worker threads of the host; 0 means one per processor.
    pub threads: usize,
    /// This rank on mesh axis `tensor`.
    pub tensor: Member,
    /// Inspect every run.
    pub inspects: bool,
}

/// Plans of a device with every buffer at its place.
#[derive(Clone, Debug)]
pub struct Placed {
    /// Forward and backward, for training.
    pub train: Option<Arc<Plan>>,
    /// Forward alone.
    pub evaluate: Arc<Plan>,
    /// The arena's parts.
    pub layout: Arc<ArenaLayout>,
}

impl Job {
    /// Gives every buffer its place in an arena with so much scratch for kernels.
    pub fn place(mut self, workspace_bytes: usize, memory: Memory) -> Placed {
        let mut plans: Vec<&mut Plan> = self.train.iter_mut().chain([&mut self.evaluate]).collect();
        let layout = ArenaLayout::new(self.flat, self.n_moments, &mut plans, workspace_bytes, memory);
        Placed { train: self.train.map(Arc::new), evaluate: Arc::new(self.evaluate), layout: Arc::new(layout) }
    }
}

impl Placed {
    /// The plan of a mode.
    ///
    /// # Panics
    /// For training, on a device that was opened for inference.
    pub fn plan(&self, mode: Mode) -> &Arc<Plan> {
        match (mode, &self.train) {
            (Mode::Train, Some(p)) => p,
            (Mode::Train, None) => panic!("an inference engine has no training plan"),
            (Mode::Evaluate, _) => &self.evaluate,
        }
    }

    /// Where a buffer lies.
    pub fn slot(&self, mode: Mode, id: BufferId) -> Slot {
        let b = &self.plan(mode).buffers[id];
        Slot { offset: b.offset, elements: b.elements, dtype: b.dtype }
    }

    /// The largest owners of memory, largest first: name and bytes.
    pub fn owners(&self) -> Vec<(String, usize)> {
        let (layout, plan) = (&self.layout, self.train.as_ref().unwrap_or(&self.evaluate));
        let segment = layout.flat.len * size_of::<f32>();
        let mut list = vec![("parameters".to_owned(), segment), ("gradients".to_owned(), segment)];
        list.push(("optimizer moments".to_owned(), segment * layout.moments.len()));
        list.push(("workspace of kernels".to_owned(), layout.workspace_bytes));
        let temporary = plan.buffers.iter().filter(|b| b.segment == Segment::Temporary);
        list.extend(temporary.map(|b| (b.name.clone(), b.bytes())));
        list.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        list
    }
}

/// A tensor in the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its first byte.
    pub offset: usize,
    /// Number of elements.
    pub elements: usize,
    /// Their type.
    pub dtype: DType,
}

/// One of the f32 tensors that each parameter has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Master values.
    Weight,
    /// Gradient: a sum over targets times the loss scale, not yet divided.
    Gradient,
    /// Moment `k` of the optimizer.
    Moment(usize),
}

/// The plans of one rank on a device.
pub struct Engine {
    device: Box<dyn Device>,
}

impl Engine {
    /// Opens a device with `evaluate` and, for training, `train`: a kernel for every step, then the arena.
    ///
    /// # Errors
    /// [`DeviceError`] names the step that the device cannot run, or who needs how much memory.
    pub fn new(
        model: &Model,
        train: Option<Plan>,
        evaluate: Plan,
        options: &EngineOptions,
        tensor: Member,
    ) -> Result<Engine, DeviceError> {
        let memory = options.target.memory();
        let shape = |(p, &decays): (&Param, &bool)| ParamShape {
            len: p.len(),
            frozen: p.frozen,
            decays,
            split: p.split.is_some(),
        };
        let params: Vec<ParamShape> = model.params.iter().zip(&options.decays).map(shape).collect();
        let job = Job {
            train,
            evaluate,
            kernels: model.kernels().collect(),
            flat: FlatLayout::new(&params, memory),
            n_moments: options.n_moments,
            seed: options.seed,
            threads: options.threads,
            tensor,
            inspects: options.poison,
        };
        Ok(Engine { device: options.target.open(job)? })
    }

    /// The device.
    pub fn device(&self) -> &dyn Device {
        self.device.as_ref()
    }

    /// The device, to run something.
    pub fn device_mut(&mut self) -> &mut dyn Device {
        self.device.as_mut()
    }

    /// The arena's parts.
    pub fn layout(&self) -> &ArenaLayout {
        &self.device.placed().layout
    }

    /// The plan of a mode.
    pub fn plan(&self, mode: Mode) -> &Plan {
        self.device.placed().plan(mode)
    }

    /// Bytes of the arena and of tables that kernels read, which is all memory that a step uses.
    pub fn bytes(&self) -> usize {
        self.device.bytes()
    }

    /// The largest owners of memory, for errors and `explain`: name and bytes.
    pub fn owners(&self) -> Vec<(String, usize)> {
        self.device.placed().owners()
    }

    /// Copies a batch in; inputs in the order of the root's arguments.
    ///
    /// # Errors
    /// [`DeviceError`] if the device has failed.
    ///
    /// # Panics
    /// If an input has another length than its buffer: the trainer checks batches first.
    pub fn write_inputs(&mut self, mode: Mode, inputs: &[HostInput<'_>]) -> Result<(), DeviceError> {
        for (k, input) in inputs.iter().enumerate() {
            let placed = self.device.placed();
            let slot = placed.slot(mode, placed.plan(mode).inputs[k]);
            self.device.write(slot, *input)?;
        }
        Ok(())
    }

    /// Runs all steps of a plan.
    ///
    /// # Errors
    /// [`DeviceError`] if the device fails.
    pub fn run(&mut self, mode: Mode, run: Run) -> Result<(), DeviceError> {
        self.device.run(mode, run)
    }

    /// What inspected runs showed; `None` if the engine does not inspect.
    pub fn inspection(&self) -> Option<&Inspection> {
        self.device.inspection()
    }

    /// f32 values of an output of a plan.
    ///
    /// # Errors
    /// [`DeviceError`] if the device has failed.
    pub fn output(&self, mode: Mode, k: usize) -> Result<Vec<f32>, DeviceError> {
        let placed = self.device.placed();
        let slot = placed.slot(mode, placed.plan(mode).outputs[k]);
        let mut out = vec![0.0; slot.elements];
        self.device.read(slot, &mut out)?;
        Ok(out)
    }

    /// First element of an output; allocates nothing.
    ///
    /// # Errors
    /// [`DeviceError`] if the device has failed.
    pub fn output_scalar(&self, mode: Mode, k: usize) -> Result<f32, DeviceError> {
        let placed = self.device.placed();
        let slot = placed.slot(mode, placed.plan(mode).outputs[k]);
        let mut out = [0.0];
        self.device.read(Slot { elements: 1, ..slot }, &mut out)?;
        Ok(out[0])
    }

    fn flat(&self, kind: Kind, param: usize) -> Slot {
        let layout = self.layout();
        let segment = match kind {
            Kind::Weight => layout.params,
            Kind::Gradient => layout.grads,
            Kind::Moment(k) => layout.moments[k],
        };
        let offset = segment + layout.flat.offsets[param] * size_of::<f32>();
        Slot { offset, elements: layout.flat.lens[param], dtype: DType::F32 }
    }

    /// A tensor of parameter `param`, as this rank holds it.
    ///
    /// # Errors
    /// [`DeviceError`] if the device has failed.
    pub fn values(&self, kind: Kind, param: usize) -> Result<Vec<f32>, DeviceError> {
        let slot = self.flat(kind, param);
        let mut out = vec![0.0; slot.elements];
        self.device.read(slot, &mut out)?;
        Ok(out)
    }

    /// Sets a tensor of parameter `param`; after weights, [`Device::write_shadows`] is due.
    ///
    /// # Errors
    /// [`DeviceError`] if the device has failed.
    pub fn set_values(&mut self, kind: Kind, param: usize, values: &[f32]) -> Result<(), DeviceError> {
        let slot = self.flat(kind, param);
        self.device.write(slot, HostInput::F32(values))
    }

    /// Initial values: the same for any mesh, since they depend on the seed and the parameter's path alone.
    ///
    /// # Errors
    /// [`DeviceError`] if the device has failed.
    pub fn initialise(&mut self, model: &Model, seed: u64) -> Result<(), DeviceError> {
        let mut values = Vec::new();
        for (i, p) in model.params.iter().enumerate() {
            let key = random::stream_key(seed, &p.path, 0, random::Purpose::Init);
            values.resize(p.len(), 0.0);
            fill(&mut values, p, key);
            self.set_values(Kind::Weight, i, &values)?;
        }
        self.device.write_shadows()
    }
}

/// Fan of a weight: inputs are all axes but the last, as `x.matmul(w)` contracts the first.
fn fans(dims: &[usize]) -> (f64, f64) {
    let out = dims.last().copied().unwrap_or(1) as f64;
    let all: usize = dims.iter().product();
    (all as f64 / out, out)
}

/// Elements that one thread fills at a time.
const FILLED: usize = 1 << 16;

/// Fills this rank's part of a parameter: element by element what the whole tensor holds there, whatever the threads.
fn fill(values: &mut [f32], param: &Param, key: u64) {
    let (fan_in, fan_out) = fans(&param.dims);
    let at = |i: usize| param.global_index(i) as u64;
    match param.init {
        Init::Zeros => values.fill(0.0),
        Init::Ones => values.fill(1.0),
        Init::Normal(std) => normal(values, std, key, at),
        Init::Kaiming => normal(values, (2.0 / fan_in).sqrt(), key, at),
        Init::Uniform(a, b) => uniform(values, (a, b), key, at),
        Init::Xavier => {
            let a = (6.0 / (fan_in + fan_out)).sqrt();
            uniform(values, (-a, a), key, at);
        }
    }
}

/// Fills with normal numbers, by their place in the whole tensor.
fn normal(values: &mut [f32], std: f64, key: u64, at: impl Fn(usize) -> u64 + Sync) {
    each_part(values, |first, part| {
        // Neighbours come in pairs.
        let (mut pair, mut two) = (u64::MAX, [0.0; 2]);
        for (i, x) in part.iter_mut().enumerate() {
            let index = at(first + i);
            if index / 2 != pair {
                (pair, two) = (index / 2, random::normals(key, index / 2, 0));
            }
            *x = (f64::from(two[(index % 2) as usize]) * std) as f32;
        }
    });
}

/// Fills with numbers between two bounds, by their place in the whole tensor.
fn uniform(values: &mut [f32], (a, b): (f64, f64), key: u64, at: impl Fn(usize) -> u64 + Sync) {
    each_part(values, |first, part| {
        for (i, x) in part.iter_mut().enumerate() {
            *x = (a + (b - a) * f64::from(random::uniform(key, at(first + i), 0))) as f32;
        }
    });
}

/// Calls `f(first, part)` for parts of the values, on as many threads as there are processors.
fn each_part(values: &mut [f32], f: impl Fn(usize, &mut [f32]) + Sync) {
    let count = values.len().div_ceil(FILLED);
    let parts = Mutex::new(values.chunks_mut(FILLED).enumerate());
    let next = || parts.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        while let Some((i, part)) = next() {
            f(i * FILLED, part);
        }
    };
    let threads = thread::available_parallelism().map_or(1, NonZero::get).min(count);
    thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
}

/// Sizes as one micro-batch sees them: the batch axis divided.
pub fn micro_sizes(sizes: &Sizes, batch: kiln_compiler::ir::Axis, parts: usize) -> Sizes {
    sizes.iter().map(|(a, n)| if a == batch { (a, n / parts) } else { (a, n) }).collect()
}
