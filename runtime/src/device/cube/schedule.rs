//! A plan on a CubeCL device: each step becomes a launch over buffers of the arena, bound once; a run enqueues them and waits for nothing.

use super::arena::Arena;
use super::library::{Attention, Dot, DotTables, Loss, LossBackward, Sort, Window};
use super::region::{Binding, Part, Prepared, RegionArgs, StreamState};
use super::scratch::Scratch;
use super::training::{Range, Streams};
use super::{Buffer, CubeDevice, CubeError, Recording, Work as Launching};
use crate::device::{Copied, Device, DeviceError, Queue, Report, StepEnd, Update};
use crate::exec::comm::Member;
use crate::exec::inspect::Inspection;
use crate::exec::{HostInput, Job, Mode, Placed, Run, Slot};
use crate::kernels::training::{SQUARES_STRIDE, START_WORDS, report};
use crate::plan::arena::align;
use crate::plan::{self, Plan, Step, Work, Write};
use crate::user_op;
use kiln_compiler::ir::{Attrs, Axis, DType, Sizes, Type};
use kiln_compiler::ops;
use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

/// What a step launches, without its buffers.
enum Operation {
    Region(Box<Prepared>),
    Dot(Dot, Write),
    Attention(Attention, Option<DType>),
    AttentionVjp(Attention, [Option<DType>; 3]),
    Loss(Loss),
    LossVjp(Loss, Write),
    Sort(Sort),
    /// One window of each operand.
    Windows(Vec<Window>),
    Convert(Write),
}

impl Operation {
    fn scratch_bytes(&self) -> usize {
        match self {
            Operation::Region(p) => p.scratch_bytes(),
            Operation::AttentionVjp(p, _) => p.scratch_bytes(),
            Operation::Loss(p) | Operation::LossVjp(p, _) => p.scratch_bytes(),
            Operation::Dot(p, _) => p.scratch_bytes(),
            Operation::Sort(p) => p.scratch_bytes(),
            Operation::Attention(..) | Operation::Windows(_) | Operation::Convert(_) => 0,
        }
    }
}

impl Operation {
    /// Whether later micro-batches take another kernel.
    fn differs_later(&self) -> bool {
        match self {
            Operation::Dot(_, w) | Operation::LossVjp(_, w) | Operation::Convert(w) => w.adds(0) != w.adds(1),
            Operation::Region(_)
            | Operation::Attention(..)
            | Operation::AttentionVjp(..)
            | Operation::Loss(_)
            | Operation::Sort(_)
            | Operation::Windows(_) => false,
        }
    }
}

/// A step ready to be launched.
struct Launch {
    operation: Operation,
    inputs: Vec<Buffer>,
    outputs: Vec<Buffer>,
    random: Option<Buffer>,
    order: Order,
}

/// When a launch runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// In its place.
    Own,
    /// Together with a later one.
    Later,
    /// Together with an earlier one, which waited for it.
    With(usize),
}

/// A plan ready to run.
struct Program {
    launches: Vec<Launch>,
    streams: Option<Streams>,
    /// Where backward starts.
    loss_scale: Buffer,
    outputs: Vec<Buffer>,
    /// Of a first micro-batch, and of later ones, whose gradients are added.
    recordings: [Recorded; 2],
}

/// What is known of launches that are always the same.
#[derive(Default)]
enum Recorded {
    /// Nothing has run yet: kernels may have to be compiled.
    #[default]
    Fresh,
    /// They have run once.
    Ran,
    /// They are replayed.
    Kept(Box<dyn Recording>),
    /// The device cannot keep them.
    Never,
}

/// The plans of one session on a device.
pub struct Schedule {
    device: Arc<CubeDevice>,
    placed: Placed,
    arena: Arena,
    train: Option<Program>,
    evaluate: Program,
    ranges: Vec<Range>,
    /// Master and shadow of each parameter that has one.
    shadows: Vec<(Buffer, Buffer)>,
    casts: Recorded,
    squares: Buffer,
    report: Buffer,
}

impl Schedule {
    /// Makes a kernel for every step, then allocates the arena.
    ///
    /// # Errors
    /// [`DeviceError`] names the step that has no kernel, or who needs how much memory.
    pub fn open(device: Arc<CubeDevice>, job: Job) -> Result<Self, DeviceError> {
        if job.inspects {
            let what = "does not inspect memory; `poison` needs the host".to_owned();
            return Err(DeviceError::Unsupported { device: device.name(), what });
        }
        job.train.iter().chain([&job.evaluate]).try_for_each(|p| user_op::require_host(p, device.name()))?;
        let prepare = |p: &Plan| -> Result<Vec<Operation>, DeviceError> {
            p.steps.iter().map(|s| prepared(&device, p, s, &job).map_err(|e| at(s, e))).collect()
        };
        let train = job.train.as_ref().map(prepare).transpose()?;
        let evaluate = prepare(&job.evaluate)?;
        let scratch = train.iter().flatten().chain(&evaluate).map(Operation::scratch_bytes).max().unwrap_or(0);
        let (memory, seed) = (device.memory(), job.seed);
        let placed = job.place(align(scratch.max(1)), memory);
        let arena = Arena::new(&device, &placed, memory)?;
        let bind = |mode: Mode, operations: Vec<Operation>| bound(&device, &placed, &arena, mode, operations, seed);
        let train = train.map(|operations| bind(Mode::Train, operations)).transpose()?;
        let evaluate = bind(Mode::Evaluate, evaluate)?;
        let layout = &placed.layout;
        let part = |segment: usize, r: &crate::exec::layout::Range| {
            let offset = segment + r.start * size_of::<f32>();
            arena.buffer(&device, Slot { offset, elements: r.end - r.start, dtype: DType::F32 })
        };
        let range = |r: &crate::exec::layout::Range| Range {
            params: part(layout.params, r),
            grads: part(layout.grads, r),
            moments: layout.moments.iter().map(|&m| part(m, r)).collect(),
            decays: r.decays,
        };
        let ranges: Vec<Range> = layout.flat.trained.iter().map(range).collect();
        let shadow = |&(p, dtype, offset): &(usize, DType, usize)| {
            let elements = layout.flat.lens[p];
            let master = layout.params + layout.flat.offsets[p] * size_of::<f32>();
            let buffer = |offset, dtype| arena.buffer(&device, Slot { offset, elements, dtype });
            (buffer(master, DType::F32), buffer(offset, dtype))
        };
        let shadows = layout.shadows.iter().map(shadow).collect();
        let squares = device.empty(DType::F32, device.squares_len(&ranges).max(SQUARES_STRIDE)).map_err(failure)?;
        let report = device.report().map_err(failure)?;
        let mut schedule = Schedule {
            device,
            placed,
            arena,
            train,
            evaluate,
            ranges,
            shadows,
            casts: Recorded::Fresh,
            squares,
            report,
        };
        schedule.clear()?;
        Ok(schedule)
    }

    /// Zeros in the persistent segments: paddings are read by norms and updates.
    fn clear(&mut self) -> Result<(), DeviceError> {
        for r in &self.ranges {
            for buffer in [&r.params, &r.grads].into_iter().chain(&r.moments) {
                self.device.fill(buffer, 0.0).map_err(failure)?;
            }
        }
        Ok(())
    }

    fn program(&self, mode: Mode) -> &Program {
        match (mode, &self.train) {
            (Mode::Train, Some(p)) => p,
            (Mode::Train, None) => panic!("an inference device has no training plan"),
            (Mode::Evaluate, _) => &self.evaluate,
        }
    }

    fn program_mut(&mut self, mode: Mode) -> &mut Program {
        match (mode, &mut self.train) {
            (Mode::Train, Some(p)) => p,
            (Mode::Train, None) => panic!("an inference device has no training plan"),
            (Mode::Evaluate, _) => &mut self.evaluate,
        }
    }

    fn start(&self, mode: Mode, run: Run) -> Result<(), DeviceError> {
        let program = self.program(mode);
        match &program.streams {
            Some(streams) => self.device.start(streams, &program.loss_scale, run),
            None => self.device.fill(&program.loss_scale, run.loss_scale),
        }
        .map_err(failure)
    }

    fn launch(&self, launch: &Launch, micro: usize) -> Result<(), CubeError> {
        let device = &*self.device;
        let (inputs, outputs) = (&launch.inputs, &launch.outputs);
        let input = |i: usize| &inputs[i];
        let output = |i: usize| &outputs[i];
        let mut scratch = self.scratch();
        match &launch.operation {
            Operation::Region(prepared) => {
                let args = RegionArgs { inputs, outputs, accumulate: &[], random: launch.random.as_ref() };
                device.run_region(prepared, &args, &mut scratch)
            }
            Operation::Dot(dot, write) => {
                device.dot(dot, [input(0), input(1), output(0)], write.adds(micro), &mut scratch)
            }
            Operation::Attention(plan, round) => {
                device.attention(plan, [input(0), input(1), input(2)], [output(0), output(1)], *round)
            }
            Operation::AttentionVjp(plan, rounds) => {
                let operands = [input(0), input(1), input(2), input(3), input(4), input(5)];
                device.attention_vjp(plan, operands, [output(0), output(1), output(2)], *rounds, &mut scratch)
            }
            Operation::Loss(plan) => {
                let results = [output(0), output(1), output(2)];
                device.loss(plan, [input(0), input(1), input(2)], results, &mut scratch)
            }
            Operation::LossVjp(plan, write) => {
                let operands = [input(0), input(1), input(2), input(3), input(4)];
                device.loss_vjp(plan, operands, [output(0), output(1)], write.adds(micro), &mut scratch)
            }
            Operation::Sort(plan) => device.sort_index(plan, input(0), [output(0), output(1), output(2)], &mut scratch),
            Operation::Windows(windows) => {
                windows.iter().zip(inputs).try_for_each(|(window, x)| device.window(window, x, output(0)))
            }
            Operation::Convert(write) => device.convert(input(0), output(0), write.adds(micro)),
        }
    }

    /// A launch of a run: those that wait for a later one run with it.
    fn launch_in_order(&self, mode: Mode, launch: &Launch, micro: usize) -> Result<(), CubeError> {
        let earlier = match launch.order {
            Order::Own => return self.launch(launch, micro),
            Order::Later => return Ok(()),
            Order::With(earlier) => &self.program(mode).launches[earlier],
        };
        let Operation::LossVjp(plan, write) = &launch.operation else {
            panic!("only the derivative of a loss runs with its loss")
        };
        let ([x, w, targets, _, d_sum], [dx, dw]) = (launch.inputs.as_slice(), launch.outputs.as_slice()) else {
            panic!("the derivative of a loss has five operands and two results")
        };
        let backward = LossBackward { d_sum, dx, dw, accumulate: write.adds(micro) };
        let results = std::array::from_fn(|i| &earlier.outputs[i]);
        self.device.loss_with_vjp(plan, [x, w, targets], results, backward, &mut self.scratch())
    }

    /// The plan's scratch, all of it.
    fn scratch(&self) -> Scratch {
        let layout = &self.placed.layout;
        Scratch::within(self.arena.at(layout.workspace, layout.workspace_bytes))
    }

    /// Runs launches that are always the same: one by one the first time, from then on as they were kept, if the device can.
    fn replayed(&self, recorded: Recorded, launches: Launching<'_>) -> (Recorded, Result<(), CubeError>) {
        let replay = |recording: Box<dyn Recording>| {
            let outcome = self.device.launched(recording.replay());
            (Recorded::Kept(recording), outcome)
        };
        match recorded {
            Recorded::Kept(recording) => replay(recording),
            Recorded::Never => (Recorded::Never, launches()),
            Recorded::Fresh => match launches() {
                Ok(()) => (Recorded::Ran, Ok(())),
                failed => (Recorded::Fresh, failed),
            },
            Recorded::Ran => match self.device.record(launches) {
                Ok(Some(recording)) => replay(recording),
                Ok(None) => (Recorded::Never, launches()),
                Err(e) => (Recorded::Fresh, Err(e)),
            },
        }
    }

    fn optimize(&mut self, update: &Update) -> Result<(), CubeError> {
        self.ranges.iter().try_for_each(|r| self.device.optimize(r, &self.report, update))?;
        self.cast_shadows()
    }

    fn cast_shadows(&mut self) -> Result<(), CubeError> {
        let casts = std::mem::take(&mut self.casts);
        let mut all =
            || self.shadows.iter().try_for_each(|(master, shadow)| self.device.convert(master, shadow, false));
        let (casts, outcome) = self.replayed(casts, &mut all);
        self.casts = casts;
        outcome
    }

    /// Launches of a plan with their steps, in order.
    fn launches(&self, mode: Mode) -> impl Iterator<Item = (&Launch, &Step)> {
        self.program(mode).launches.iter().zip(&self.placed.plan(mode).steps)
    }

    /// Words that a tensor fills.
    fn words(&self, slot: Slot) -> usize {
        (slot.elements * self.device.storage(slot.dtype).size()).div_ceil(size_of::<u32>())
    }
}

impl Device for Schedule {
    fn placed(&self) -> &Placed {
        &self.placed
    }

    fn bytes(&self) -> usize {
        let streams = self.train.iter().chain([&self.evaluate]).filter_map(|p| p.streams.as_ref());
        let words = streams.map(|s| s.table.len + s.words.len).sum::<usize>() + self.squares.len + self.report.len;
        self.placed.layout.total + self.device.table_bytes() + words * size_of::<u32>()
    }

    fn write(&mut self, to: Slot, values: HostInput<'_>) -> Result<(), DeviceError> {
        assert_eq!(values.len(), to.elements, "values of another length than their slot");
        if values.is_empty() {
            return Ok(());
        }
        let wide: Vec<f64> = match values {
            HostInput::I32(x) => x.iter().map(|&x| f64::from(x)).collect(),
            HostInput::F32(x) => x.iter().map(|&x| f64::from(x)).collect(),
        };
        let sent = self.device.upload(to.dtype, &wide).map_err(failure)?;
        let buffer = self.arena.buffer(&self.device, to);
        self.device.copy_words(&sent.memory, &buffer.memory, self.words(to)).map_err(failure)
    }

    fn read(&self, from: Slot, out: &mut [f32]) -> Result<(), DeviceError> {
        assert_eq!(out.len(), from.elements, "values of another length than their slot");
        let values = self.device.download(&self.arena.buffer(&self.device, from)).map_err(failure)?;
        out.iter_mut().zip(values).for_each(|(to, x)| *to = x as f32);
        Ok(())
    }

    fn run(&mut self, mode: Mode, run: Run) -> Result<(), DeviceError> {
        self.start(mode, run)?;
        let which = usize::from(run.micro > 0);
        let recorded = std::mem::take(&mut self.program_mut(mode).recordings[which]);
        let refused = Cell::new(None);
        let mut all = || {
            self.launches(mode).enumerate().try_for_each(|(i, (launch, _))| {
                self.launch_in_order(mode, launch, run.micro).inspect_err(|_| refused.set(Some(i)))
            })
        };
        let (recorded, outcome) = self.replayed(recorded, &mut all);
        self.program_mut(mode).recordings[which] = recorded;
        outcome.map_err(|e| match refused.get() {
            Some(i) => at(&self.placed.plan(mode).steps[i], e),
            None => failure(e),
        })
    }

    fn first_non_finite(&mut self, mode: Mode, run: Run) -> Result<Option<(usize, String)>, DeviceError> {
        self.start(mode, run)?;
        let plan = self.placed.plan(mode);
        let mut found = None;
        for (i, (launch, step)) in self.launches(mode).enumerate() {
            self.launch(launch, run.micro).map_err(|e| at(step, e))?;
            for (buffer, &id) in launch.outputs.iter().zip(&step.outputs) {
                if found.is_none() && buffer.dtype.is_float() {
                    let values = self.device.download(buffer).map_err(|e| at(step, e))?;
                    let is_broken = !values.iter().all(|x| x.is_finite());
                    found = is_broken.then(|| (i, plan.buffers[id].name.clone()));
                }
            }
        }
        Ok(found)
    }

    fn write_shadows(&mut self) -> Result<(), DeviceError> {
        self.cast_shadows().map_err(failure)
    }

    fn gradient_squares(&mut self) -> Result<(f64, f64), DeviceError> {
        let places = self.device.squares(&self.ranges, &self.squares).map_err(failure)?;
        let parts = self.device.download(&self.squares).map_err(failure)?;
        let broken = |part: &&[f64]| part[1] > 0.0;
        let parts = || parts.chunks_exact(SQUARES_STRIDE).take(places);
        let sum = if parts().any(|p| broken(&p)) { f64::NAN } else { parts().map(|p| p[0]).sum() };
        Ok((sum, 0.0))
    }

    fn gradients_finite(&mut self) -> Result<bool, DeviceError> {
        Ok(self.gradient_squares()?.0.is_finite())
    }

    fn update(&mut self, update: &Update) -> Result<(), DeviceError> {
        let factor = match update {
            Update::AdamW(s) => s[0].grad_factor,
            Update::Sgd(s) => s[0].grad_factor,
        };
        self.device.set_factor(&self.report, factor).map_err(failure)?;
        self.optimize(update).map_err(failure)
    }

    fn reduce_gradients(&mut self, over: &Member) -> Result<(), DeviceError> {
        match over.comm.size() {
            1 => Ok(()),
            n => {
                let what = format!("does not sum gradients over {n} ranks; more ranks need `--device host`");
                Err(DeviceError::Unsupported { device: self.device.name(), what })
            }
        }
    }

    fn warm(&mut self, end: Option<&StepEnd>, on_step: &mut dyn FnMut(usize, usize)) -> Result<(), DeviceError> {
        let modes = [self.train.as_ref().map(|_| Mode::Train), Some(Mode::Evaluate)];
        let modes: Vec<Mode> = modes.into_iter().flatten().collect();
        // The optimizer is one more.
        let all = modes.iter().map(|&m| self.program(m).launches.len()).sum::<usize>() + 1;
        let mut done = 0;
        for mode in modes {
            // Ids that every table has.
            for &input in &self.placed.plan(mode).inputs {
                let slot = self.placed.slot(mode, input);
                let zeros = Slot { elements: self.words(slot), dtype: DType::F32, ..slot };
                self.device.fill(&self.arena.buffer(&self.device, zeros), 0.0).map_err(failure)?;
            }
            self.start(mode, Run { step: 0, micro: 0, part: 0, loss_scale: 1.0 })?;
            for (launch, step) in self.launches(mode) {
                let mut micro_batches = 0..=usize::from(launch.operation.differs_later());
                micro_batches.try_for_each(|m| self.launch(launch, m)).map_err(|e| at(step, e))?;
                self.device.sync().map_err(|e| at(step, e))?;
                done += 1;
                on_step(done, all);
            }
        }
        if let Some(end) = end {
            self.collect(true)?;
            self.collect(false)?;
            // A report that says that the last step failed: the optimizer leaves weights alone.
            self.device.fill(&self.report, 1.0).map_err(failure)?;
            self.end_step(end)?;
            self.forgive()?;
        }
        self.device.sync().map_err(failure)?;
        on_step(all, all);
        Ok(())
    }

    fn time_steps(&mut self, mode: Mode, run: Run, repeats: usize) -> Result<Vec<Duration>, DeviceError> {
        self.start(mode, run)?;
        self.device.sync().map_err(failure)?;
        let timed = |(launch, step): (&Launch, &Step)| {
            if launch.order == Order::Later {
                return Ok(Duration::ZERO);
            }
            let launch = || self.launch_in_order(mode, launch, run.micro);
            self.device.time(launch, repeats).map_err(|e| at(step, e))
        };
        self.launches(mode).map(timed).collect()
    }

    fn copied(&self) -> Copied {
        self.device.copied()
    }

    fn inspection(&self) -> Option<&Inspection> {
        None
    }

    fn queue(&mut self) -> Option<&mut dyn Queue> {
        Some(self)
    }
}

impl Queue for Schedule {
    fn collect(&mut self, first: bool) -> Result<(), DeviceError> {
        let outputs = &self.program(Mode::Train).outputs;
        self.device.collect([&outputs[0], &outputs[1]], &self.report, first).map_err(failure)
    }

    fn end_step(&mut self, end: &StepEnd) -> Result<(), DeviceError> {
        let places = self.device.squares(&self.ranges, &self.squares).map_err(failure)?;
        self.device.close(&self.squares, places, &self.report, end).map_err(failure)?;
        self.optimize(&end.update).map_err(failure)
    }

    fn report(&mut self) -> Result<Report, DeviceError> {
        let r = self.device.download(&self.report).map_err(failure)?;
        Ok(Report {
            loss: r[report::LOSS],
            count: r[report::COUNT],
            squares: if r[report::BROKEN] > 0.0 { f64::NAN } else { r[report::SQUARES] },
            updated: r[report::UPDATES] > 0.0,
            failed_steps: r[report::FAILED] as u64,
        })
    }

    fn forgive(&mut self) -> Result<(), DeviceError> {
        self.device.set_factor(&self.report, 0.0).map_err(failure)
    }
}

/// Operations of a plan with their buffers.
fn bound(
    device: &CubeDevice,
    placed: &Placed,
    arena: &Arena,
    mode: Mode,
    operations: Vec<Operation>,
    seed: u64,
) -> Result<Program, DeviceError> {
    let plan = placed.plan(mode);
    let buffer = |id: usize| arena.buffer(device, placed.slot(mode, id));
    let mut launches = Vec::new();
    let (mut words, mut table): (Vec<u64>, Vec<u32>) = (Vec::new(), Vec::new());
    let mut regions: Vec<Option<(usize, usize)>> = Vec::new();
    for (operation, step) in operations.into_iter().zip(&plan.steps) {
        let mut region_words = None;
        if let (Operation::Region(prepared), Work::Region { region, .. }) = (&operation, &step.work)
            && !region.streams.is_empty()
        {
            let streams: Vec<(u64, u64)> = region.streams.iter().map(|s| plan.stream(step, region, s, seed)).collect();
            let states: Vec<StreamState> = streams.iter().map(|&(key, _)| StreamState { key, offset: 0 }).collect();
            let states = prepared.stream_states(&states);
            // A region's words begin where a buffer may begin.
            words.resize((words.len() * 8).next_multiple_of(super::ALIGNMENT) / 8, 0);
            let first = words.len() * 2;
            words.push(0);
            for (s, (state, (_, each))) in states.iter().zip(&streams).enumerate() {
                words.extend([state.key, state.offset]);
                let halves = |x: u64| [x as u32, (x >> 32) as u32];
                table.extend([first as u32, s as u32]);
                table.extend(halves(state.offset));
                table.extend(halves(*each));
            }
            region_words = Some((first, words.len() * 2 - first));
        }
        regions.push(region_words);
        let inputs = step.inputs.iter().map(|&b| buffer(b)).collect();
        let outputs = step.outputs.iter().map(|&b| buffer(b)).collect();
        launches.push(Launch { operation, inputs, outputs, random: None, order: Order::Own });
    }
    for (loss, derivative) in plan.losses_with_derivatives() {
        launches[loss].order = Order::Later;
        launches[derivative].order = Order::With(loss);
    }
    let streams = match table.is_empty() {
        true => None,
        false => {
            let n = table.len() / START_WORDS;
            let bytes: Vec<u8> = table.iter().flat_map(|x| x.to_le_bytes()).collect();
            let table = Buffer { memory: device.send(&bytes).map_err(failure)?, dtype: DType::I32, len: table.len() };
            let bytes: Vec<u8> = words.iter().flat_map(|x| x.to_le_bytes()).collect();
            let words =
                Buffer { memory: device.send(&bytes).map_err(failure)?, dtype: DType::I32, len: words.len() * 2 };
            for (launch, region) in launches.iter_mut().zip(&regions) {
                launch.random = region.map(|(first, len)| Buffer {
                    memory: words.memory.slice(first * 4, len * 4),
                    dtype: DType::I32,
                    len,
                });
            }
            Some(Streams { table, words, n })
        }
    };
    let loss_scale = match plan.loss_scale {
        Some(b) => buffer(b),
        None => device.empty(DType::F32, 1).map_err(failure)?,
    };
    let outputs = plan.outputs.iter().map(|&b| buffer(b)).collect();
    Ok(Program { launches, streams, loss_scale, outputs, recordings: Default::default() })
}

/// What a step launches.
fn prepared(device: &CubeDevice, plan: &Plan, step: &Step, job: &Job) -> Result<Operation, CubeError> {
    match &step.work {
        Work::Accumulate(write) => Ok(Operation::Convert(*write)),
        // More than one rank is refused before.
        Work::AllReduce { .. } => Ok(Operation::Convert(Write::Store)),
        Work::Region { region, dtypes } => {
            let dtype = |d: DType| region.dtypes.iter().zip(dtypes).find(|(s, _)| **s == d).map_or(d, |(_, r)| *r);
            let part = |axis: Axis| {
                let split = step.split.filter(|s| s.axis == axis);
                split.map(|s| Part { offset: s.offset, whole: s.whole })
            };
            let hash = region.hash();
            let emitted = job.kernels.iter().copied().find(|k| k.hash == hash);
            let binding = Binding { sizes: &step.sizes, dtype: &dtype, part: &part };
            Ok(Operation::Region(Box::new(device.prepare(region, emitted, &binding)?)))
        }
        Work::Library { op, attrs, inputs, outputs, rounds, write } => {
            // A result may be stored wider than its type says: gradients are f32.
            let stored = |types: &[Type], buffers: &[usize]| -> Vec<Type> {
                types.iter().zip(buffers).map(|(t, &b)| t.with(plan.buffers[b].dtype)).collect()
            };
            let (inputs, outputs) = (&stored(inputs, &step.inputs), &stored(outputs, &step.outputs));
            let library = Library { op: op.name, attrs, inputs, outputs, rounds, write, sizes: &step.sizes };
            let unknown = || CubeError::Operation { operation: ops::word(op, attrs).to_owned() };
            library.prepared(device)?.ok_or_else(unknown)
        }
    }
}

/// A library operation of a step.
struct Library<'a> {
    op: &'a str,
    attrs: &'a Attrs,
    inputs: &'a [Type],
    outputs: &'a [Type],
    rounds: &'a [Vec<DType>],
    write: &'a [Write],
    sizes: &'a Sizes,
}

impl Library<'_> {
    fn round(&self, i: usize) -> Option<DType> {
        self.rounds[i].first().copied()
    }

    fn prepared(&self, device: &CubeDevice) -> Result<Option<Operation>, CubeError> {
        let Library { attrs, inputs, outputs, write, sizes, .. } = *self;
        Ok(Some(match self.op {
            "dot_general" => {
                let shape = |t: &Type| t.shape.clone();
                let (a, b, c) = (shape(&inputs[0]), shape(&inputs[1]), shape(&outputs[0]));
                let tables = DotTables::new(&a, &b, &c, sizes)
                    .map_err(|axis| CubeError::Operation { operation: format!("dot_general over `{axis}`") })?;
                let types = [inputs[0].dtype, inputs[1].dtype, outputs[0].dtype];
                Operation::Dot(device.prepare_dot(&tables, types, self.round(0))?, write[0])
            }
            "attention" | "attention_vjp" => {
                let plan = Attention::new(&inputs[0].shape, &inputs[1].shape, sizes, attrs.flag("causal"));
                match self.op {
                    "attention" => Operation::Attention(plan, self.round(0)),
                    _ => Operation::AttentionVjp(plan, std::array::from_fn(|i| self.round(i))),
                }
            }
            "linear_cross_entropy" | "linear_cross_entropy_vjp" => {
                let (x, w) = (&inputs[0], &inputs[1]);
                let [vocab, d] = [sizes.of(w.shape[0]), sizes.of(w.shape[1])];
                let rows = sizes.elements(&x.shape[..x.shape.len() - 1]);
                let is_vjp = self.op == "linear_cross_entropy_vjp";
                let (results, rounds) = match is_vjp {
                    true => ([outputs[0].dtype, outputs[1].dtype], [self.round(0), self.round(1)]),
                    false => ([x.dtype, DType::F32], [None; 2]),
                };
                let types = [x.dtype, w.dtype, results[0], results[1]];
                let plan = device.prepare_loss([rows, vocab, d], types, rounds)?;
                if is_vjp { Operation::LossVjp(plan, write[1]) } else { Operation::Loss(plan) }
            }
            "sort_index" => {
                Operation::Sort(Sort { ids: sizes.elements(&inputs[0].shape), bins: sizes.of(attrs.axis("axis")) })
            }
            "slice" | "pad" | "concat" => Operation::Windows(self.windows()),
            _ => return Ok(None),
        }))
    }

    /// The windows that `slice`, `pad` and `concat` move.
    fn windows(&self) -> Vec<Window> {
        let (shape, sizes, attrs) = (&self.inputs[0].shape, self.sizes, self.attrs);
        let (axis, to) = (attrs.axis("axis"), attrs.axis("to"));
        let at = shape.iter().position(|&a| a == axis).unwrap_or(0);
        let (outer, inner) = (sizes.elements(&shape[..at]), sizes.elements(&shape[at + 1..]));
        let (n, result) = (sizes.of(axis), sizes.of(to));
        match self.op {
            "slice" => {
                let start = plan::position(attrs, "start", sizes);
                vec![Window::new(outer, inner, (n, start), (result, 0), result, true)]
            }
            "pad" => {
                let before = plan::position(attrs, "before", sizes);
                vec![Window::new(outer, inner, (n, 0), (result, before), n, true)]
            }
            _ => {
                let other = sizes.of(attrs.axis("other"));
                let first = Window::new(outer, inner, (n, 0), (result, 0), n, false);
                vec![first, Window::new(outer, inner, (other, 0), (result, n), other, false)]
            }
        }
    }
}

/// A refusal with the place of its step.
pub(super) fn at(step: &Step, error: CubeError) -> DeviceError {
    match error {
        CubeError::Failed(why) | CubeError::Poisoned(why) => DeviceError::Failed(why),
        error => DeviceError::Refused {
            at: format!("{}:{}", step.file, step.line),
            path: step.path.to_string(),
            why: error.to_string(),
        },
    }
}

fn failure(error: CubeError) -> DeviceError {
    match error {
        CubeError::Failed(why) | CubeError::Poisoned(why) => DeviceError::Failed(why),
        error => DeviceError::Launch(error.to_string()),
    }
}
