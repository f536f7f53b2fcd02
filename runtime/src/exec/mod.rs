//! Execute: runs a plan's steps in order on the host. Decides nothing: kernels, offsets and order come from the plan.

pub mod comm;
pub mod inspect;
pub mod kernel;
pub mod memory;
pub mod reference;

use crate::device::host::optim::{self, Shadow};
use crate::device::host::pool::Pool;
use crate::link::{Model, Param};
use crate::optim::{AdamWStep, SgdStep};
use crate::plan::{BufferId, Plan, Segment};
use crate::random;
use comm::Member;
use inspect::{Inspected, Inspection};
use kernel::{Kernel, KernelError, RunCx};
use kiln_compiler::ir::{DType, Init, Sizes};
use memory::{Arena, ArenaLayout, FlatLayout, OutOfMemory, ParamShape};

/// Why an engine cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No memory.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
    /// A step that this device cannot run.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The system refuses threads.
    #[error("K0802: cannot start worker threads: {0}")]
    Threads(std::io::Error),
}

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

/// One plan with a kernel for every step.
struct Prepared {
    plan: Plan,
    kernels: Vec<Kernel>,
}

/// A device with its arena and the plans that share it.
pub struct Engine {
    /// The arena's parts.
    pub layout: ArenaLayout,
    arena: Arena,
    train: Option<Prepared>,
    evaluate: Prepared,
    /// All shadows, over the whole segment of masters.
    shadows: Vec<Shadow>,
    /// For each trained range its shadows, which the optimizer writes.
    trained_shadows: Vec<Vec<Shadow>>,
    pool: Pool,
    tensor: Member,
    /// Present where every run is inspected.
    inspection: Option<Inspection>,
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
    /// Worker threads; 0 means one per processor.
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

impl Engine {
    /// Allocates the arena of `evaluate` and, for training, `train`, and prepares a kernel for every step.
    pub fn new(
        model: &Model,
        train: Option<Plan>,
        evaluate: Plan,
        options: &EngineOptions,
        tensor: Member,
    ) -> Result<Engine, EngineError> {
        let pool = Pool::new(options.threads).map_err(EngineError::Threads)?;
        let (mut train, mut evaluate) = (train, evaluate);
        let shape = |(p, &decays): (&Param, &bool)| ParamShape {
            len: p.len(),
            frozen: p.frozen,
            decays,
            split: p.split.is_some(),
        };
        let params: Vec<ParamShape> = model.params.iter().zip(&options.decays).map(shape).collect();
        let flat = FlatLayout::new(&params);
        let prepare = |p: &Plan| kernel::prepare(p, pool.threads(), options);
        let kernels = (train.as_ref().map(prepare).transpose()?, prepare(&evaluate)?);
        let workspace = kernels.0.iter().flatten().chain(&kernels.1).map(Kernel::workspace_len).max().unwrap_or(0);
        let mut plans: Vec<&mut Plan> = train.iter_mut().chain([&mut evaluate]).collect();
        let layout = ArenaLayout::new(flat, options.n_moments, &mut plans, workspace * size_of::<f32>());
        let arena = Arena::new(layout.total, || owners(&layout, train.as_ref().unwrap_or(&evaluate)))?;
        let train = train.zip(kernels.0).map(|(plan, kernels)| Prepared { plan, kernels });
        let evaluate = Prepared { plan: evaluate, kernels: kernels.1 };
        let inspection = options.poison.then(Inspection::default);
        let shadows = shadows(&layout, &arena);
        let trained_shadows = layout.flat.trained.iter().map(|r| within(&shadows, r)).collect();
        Ok(Engine { layout, arena, train, evaluate, shadows, trained_shadows, pool, tensor, inspection })
    }

    fn prepared(&self, mode: Mode) -> &Prepared {
        match (mode, &self.train) {
            (Mode::Train, Some(p)) => p,
            (Mode::Train, None) => panic!("an inference engine has no training plan"),
            (Mode::Evaluate, _) => &self.evaluate,
        }
    }

    /// The plan of a mode.
    pub fn plan(&self, mode: Mode) -> &Plan {
        &self.prepared(mode).plan
    }

    /// Bytes of the arena, which is all memory that a step uses.
    pub fn bytes(&self) -> usize {
        self.layout.total
    }

    /// Copies a batch in; inputs in the order of the root's arguments.
    ///
    /// # Panics
    /// If an input has another length than its buffer: the trainer checks batches first.
    pub fn write_inputs(&mut self, mode: Mode, inputs: &[HostInput<'_>]) {
        for (k, input) in inputs.iter().enumerate() {
            let b = &self.prepared(mode).plan.buffers[self.prepared(mode).plan.inputs[k]];
            let (offset, elements) = (b.offset, b.elements);
            let (bytes, dtype) = (b.bytes(), b.dtype);
            match input {
                HostInput::I32(x) => self.arena.i32s_mut(offset, elements).copy_from_slice(x),
                HostInput::F32(x) => kernel::buf(&self.arena, offset, bytes, dtype).store(0, x),
            }
        }
    }

    /// Runs all steps of a plan.
    pub fn run(&mut self, mode: Mode, run: Run) {
        let Run { loss_scale, .. } = run;
        if let Some(b) = self.plan(mode).loss_scale {
            let offset = self.plan(mode).buffers[b].offset;
            self.arena.f32s_mut(offset, 1)[0] = loss_scale;
        }
        let mut inspection = self.inspection.take();
        let p = self.prepared(mode);
        let cx = self.context(p, run);
        match &mut inspection {
            None => p.kernels.iter().zip(&p.plan.steps).for_each(|(k, s)| k.run(&cx, s)),
            Some(seen) => inspected(p, &cx, seen),
        }
        self.inspection = inspection;
    }

    /// What inspected runs showed; `None` if the engine does not inspect.
    pub fn inspection(&self) -> Option<&Inspection> {
        self.inspection.as_ref()
    }

    fn context<'a>(&'a self, p: &'a Prepared, run: Run) -> RunCx<'a> {
        let Run { step, micro, part, .. } = run;
        let (arena, layout, pool, plan, tensor) = (&self.arena, &self.layout, &self.pool, &p.plan, &self.tensor);
        RunCx { arena, layout, pool, plan, step, micro, part, tensor }
    }

    /// Runs all of a plan's steps and returns the first one whose result is not finite, with the value's name.
    pub fn first_non_finite(&mut self, mode: Mode, run: Run) -> Option<(usize, String)> {
        let p = self.prepared(mode);
        let cx = self.context(p, run);
        let broken = |o: BufferId| {
            let b = &p.plan.buffers[o];
            b.dtype.is_float() && !(0..b.elements).all(|e| cx.buffer(o).get(e).is_finite())
        };
        let mut found = None;
        for (i, (k, s)) in p.kernels.iter().zip(&p.plan.steps).enumerate() {
            k.run(&cx, s);
            if found.is_none() {
                let first = s.outputs.iter().find(|&&o| broken(o));
                found = first.map(|&o| (i, p.plan.buffers[o].name.clone()));
            }
        }
        found
    }

    /// f32 values of an output of a plan.
    pub fn output(&self, mode: Mode, k: usize) -> Vec<f32> {
        let p = self.prepared(mode);
        self.read(p, p.plan.outputs[k])
    }

    /// First element of an output; allocates nothing.
    pub fn output_scalar(&self, mode: Mode, k: usize) -> f32 {
        let p = self.prepared(mode);
        let b = &p.plan.buffers[p.plan.outputs[k]];
        kernel::buf(&self.arena, b.offset, b.bytes(), b.dtype).get(0)
    }

    fn read(&self, p: &Prepared, id: BufferId) -> Vec<f32> {
        let b = &p.plan.buffers[id];
        let mut out = vec![0.0; b.elements];
        kernel::buf(&self.arena, b.offset, b.bytes(), b.dtype).load(0, &mut out);
        out
    }

    /// Values of a flat segment that starts at byte `segment`, for one parameter.
    fn flat(&self, segment: usize, param: usize) -> &[f32] {
        let flat = &self.layout.flat;
        self.arena.f32s(segment + flat.offsets[param] * size_of::<f32>(), flat.lens[param])
    }

    fn flat_mut(&mut self, segment: usize, param: usize) -> &mut [f32] {
        let flat = &self.layout.flat;
        let (offset, len) = (segment + flat.offsets[param] * size_of::<f32>(), flat.lens[param]);
        self.arena.f32s_mut(offset, len)
    }

    /// A parameter's master values.
    pub fn param(&self, p: usize) -> &[f32] {
        self.flat(self.layout.params, p)
    }

    /// A parameter's master values, to be set; call [`Engine::write_shadows`] afterwards.
    pub fn param_mut(&mut self, p: usize) -> &mut [f32] {
        self.flat_mut(self.layout.params, p)
    }

    /// A parameter's gradient: a sum over targets times the loss scale, not yet divided.
    pub fn grad(&self, p: usize) -> &[f32] {
        self.flat(self.layout.grads, p)
    }

    /// A parameter's gradient, to be set.
    pub fn grad_mut(&mut self, p: usize) -> &mut [f32] {
        self.flat_mut(self.layout.grads, p)
    }

    /// Moment `k` of a parameter.
    pub fn moment(&self, k: usize, p: usize) -> &[f32] {
        self.flat(self.layout.moments[k], p)
    }

    /// Moment `k` of a parameter, to be set.
    pub fn moment_mut(&mut self, k: usize, p: usize) -> &mut [f32] {
        self.flat_mut(self.layout.moments[k], p)
    }

    /// All gradients of trained parameters as one slice, padding (zeros) included.
    pub fn grads(&self) -> &[f32] {
        self.arena.f32s(self.layout.grads, self.trained_len())
    }

    /// As [`Engine::grads`], to be reduced over ranks.
    pub fn grads_mut(&mut self) -> &mut [f32] {
        let len = self.trained_len();
        self.arena.f32s_mut(self.layout.grads, len)
    }

    fn trained_len(&self) -> usize {
        self.layout.flat.trained.last().map_or(0, |r| r.end)
    }

    /// Initial values: the same for any mesh, since they depend on the seed and the parameter's path alone.
    pub fn initialise(&mut self, model: &Model, seed: u64) {
        for (i, p) in model.params.iter().enumerate() {
            let key = random::stream_key(seed, &p.path, 0, random::Purpose::Init);
            fill(self.param_mut(i), p, key);
        }
        self.write_shadows();
    }

    /// Writes every shadow from its master.
    pub fn write_shadows(&mut self) {
        let all = memory::Range { start: 0, end: self.layout.flat.len, decays: false, split: false };
        optim::write_shadows(&self.pool, self.part(self.layout.params, &all), &self.shadows);
    }

    /// Sums of squares of the gradients, by a fixed tree: of parameters that all ranks hold, and of this rank's parts.
    pub fn grad_sums_of_squares(&self) -> (f64, f64) {
        let mut sums = (0.0, 0.0);
        for r in &self.layout.flat.trained {
            let sum = optim::sum_of_squares(&self.pool, self.part(self.layout.grads, r));
            if r.split { sums.1 += sum } else { sums.0 += sum }
        }
        sums
    }

    /// Whether all gradients are finite.
    pub fn grads_finite(&self) -> bool {
        self.layout.flat.trained.iter().all(|r| optim::all_finite(&self.pool, self.part(self.layout.grads, r)))
    }

    /// One AdamW step over each trained range; `scalars` gives those of the decaying and the other group.
    pub fn adamw(&mut self, scalars: impl Fn(bool) -> AdamWStep) {
        let (p, g, m, v) = (self.layout.params, self.layout.grads, self.layout.moments[0], self.layout.moments[1]);
        for (r, shadows) in self.layout.flat.trained.iter().zip(&self.trained_shadows) {
            let part = |segment: usize| self.part(segment, r);
            optim::adamw(&self.pool, &scalars(r.decays), part(p), part(g), [part(m), part(v)], shadows);
        }
    }

    /// One momentum step over each trained range.
    pub fn sgd(&mut self, scalars: impl Fn(bool) -> SgdStep) {
        let (p, g, m) = (self.layout.params, self.layout.grads, self.layout.moments[0]);
        for (r, shadows) in self.layout.flat.trained.iter().zip(&self.trained_shadows) {
            let part = |segment: usize| self.part(segment, r);
            optim::sgd(&self.pool, &scalars(r.decays), part(p), part(g), part(m), shadows);
        }
    }

    fn part(&self, segment: usize, r: &memory::Range) -> crate::device::host::buffer::Buf {
        const F32: usize = size_of::<f32>();
        kernel::buf(&self.arena, segment + r.start * F32, (r.end - r.start) * F32, DType::F32)
    }

    /// The largest owners of memory, for errors and `explain`: name and bytes.
    pub fn owners(&self) -> Vec<(String, usize)> {
        owners(&self.layout, self.train.as_ref().map_or(&self.evaluate.plan, |p| &p.plan))
    }
}

/// Every shadow of a layout, counted from the start of the masters.
fn shadows(layout: &ArenaLayout, arena: &Arena) -> Vec<Shadow> {
    let shadow = |&(p, dtype, offset): &(usize, DType, usize)| Shadow {
        first: layout.flat.offsets[p],
        to: kernel::buf(arena, offset, layout.flat.lens[p] * dtype.bytes(), dtype),
    };
    layout.shadows.iter().map(shadow).collect()
}

/// Those of a range, counted from its start.
fn within(shadows: &[Shadow], r: &memory::Range) -> Vec<Shadow> {
    let inside = shadows.iter().filter(|s| (r.start..r.end).contains(&s.first));
    inside.map(|s| Shadow { first: s.first - r.start, ..*s }).collect()
}

/// Runs all steps with every buffer poisoned outside of its life.
fn inspected(p: &Prepared, cx: &RunCx<'_>, seen: &mut Inspection) {
    let run = Inspected { arena: cx.arena, layout: cx.layout, plan: &p.plan, micro: cx.micro };
    run.begin(seen);
    for (i, (k, s)) in p.kernels.iter().zip(&p.plan.steps).enumerate() {
        run.before(i);
        k.run(cx, s);
        run.after(i, seen);
    }
}

/// Segments and the largest temporaries of a plan.
fn owners(layout: &ArenaLayout, plan: &Plan) -> Vec<(String, usize)> {
    let segment = layout.flat.len * size_of::<f32>();
    let mut list = vec![("parameters".to_owned(), segment), ("gradients".to_owned(), segment)];
    list.push(("optimizer moments".to_owned(), segment * layout.moments.len()));
    list.push(("workspace of kernels".to_owned(), layout.workspace_bytes));
    let temporary = plan.buffers.iter().filter(|b| b.segment == Segment::Temporary);
    list.extend(temporary.map(|b| (b.name.clone(), b.bytes())));
    list.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    list
}

/// Fan of a weight: inputs are all axes but the last, as `x.matmul(w)` contracts the first.
fn fans(dims: &[usize]) -> (f64, f64) {
    let out = dims.last().copied().unwrap_or(1) as f64;
    let all: usize = dims.iter().product();
    (all as f64 / out, out)
}

/// Fills this rank's part of a parameter: element by element what the whole tensor holds there.
fn fill(values: &mut [f32], param: &Param, key: u64) {
    let (fan_in, fan_out) = fans(&param.dims);
    let normal = |std: f64| move |i: u64| (f64::from(random::normal(key, i, 0)) * std) as f32;
    let uniform = |a: f64, b: f64| move |i: u64| (a + (b - a) * f64::from(random::uniform(key, i, 0))) as f32;
    let mut set = |f: &dyn Fn(u64) -> f32| {
        values.iter_mut().enumerate().for_each(|(i, x)| *x = f(param.global_index(i) as u64));
    };
    match param.init {
        Init::Zeros => set(&|_| 0.0),
        Init::Ones => set(&|_| 1.0),
        Init::Normal(std) => set(&normal(std)),
        Init::Uniform(a, b) => set(&uniform(a, b)),
        Init::Xavier => {
            let a = (6.0 / (fan_in + fan_out)).sqrt();
            set(&uniform(-a, a));
        }
        Init::Kaiming => set(&normal((2.0 / fan_in).sqrt())),
    }
}

/// Sizes as one micro-batch sees them: the batch axis divided.
pub fn micro_sizes(sizes: &Sizes, batch: kiln_compiler::ir::Axis, parts: usize) -> Sizes {
    sizes.iter().map(|(a, n)| if a == batch { (a, n / parts) } else { (a, n) }).collect()
}
