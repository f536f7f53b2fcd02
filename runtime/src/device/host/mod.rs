//! Kernels of the host device: pure functions over views of an arena, planned once and run without allocating.
//!
//! Every kernel has a plan (built from shapes) and a `run`, which allocates nothing except in [`user_op`]. Scratch is passed in; its size comes from the plan. Results have the
//! same bits for any number of threads: work is split over outputs only, and reductions follow trees fixed by shapes.
//!
//! [`HostDevice`] makes a kernel for every step of a plan and runs them in order over its [`arena`].
//!
//! Reading order: [`step`] (from plan to kernels) → [`cpu`] (which instructions) → [`pool`] (who runs) → [`buffer`] (what memory) → `micro` (inner loop of products) →
//! [`gemm`] → [`tile`], [`attention`], [`loss`], [`optim`], [`scatter`], [`copy`], [`user_op`].
//!
//! [`decode`] runs a plan of one position for one position after the other, with [`row_product`] and [`attention_decode`], on a [`team`].

// `multiversion!` hands every body its arithmetic; those that only copy or compare have no use for it.
#![allow(clippy::extra_unused_type_parameters)]

pub mod arena;
pub mod attention;
pub mod attention_decode;
pub mod buffer;
pub mod ceilings;
pub mod copy;
pub mod cpu;
pub mod decode;
pub mod gemm;
mod inspected;
pub mod loss;
pub mod math;
mod micro;
pub mod optim;
#[cfg(test)]
mod oracle;
mod pack;
pub mod pool;
pub mod row_product;
pub mod scatter;
mod share;
pub mod step;
pub mod team;
pub mod tile;
mod transpose;
pub mod user_op;

use super::{Copied, Device, DeviceError, StepEnd, Update, mean};
use crate::exec::comm::Member;
use crate::exec::inspect::Inspection;
use crate::exec::layout::{ArenaLayout, Range};
use crate::exec::{HostInput, Job, Mode, Placed, Run, Slot};
use crate::plan::{BufferId, Memory, Plan};
use crate::profile::{Recording, What};
use arena::Arena;
use buffer::Buf;
use inspected::Inspected;
use kiln_compiler::ir::DType;
use optim::Shadow;
use pool::Pool;
use std::time::{Duration, Instant};
use step::{Kernel, RunCx};

/// The CPU with its arena, workers and prepared plans.
pub struct HostDevice {
    placed: Placed,
    arena: Arena,
    train: Vec<Kernel>,
    evaluate: Vec<Kernel>,
    /// All shadows, over the whole segment of masters.
    shadows: Vec<Shadow>,
    /// For each trained range its shadows, which the optimizer writes.
    trained_shadows: Vec<Vec<Shadow>>,
    pool: Pool,
    tensor: Member,
    /// Present where every run is inspected.
    inspection: Option<Inspection>,
    /// Present while a profile is made.
    recording: Option<Recording>,
}

impl HostDevice {
    /// Prepares a kernel for every step, then allocates the arena.
    ///
    /// # Errors
    /// [`DeviceError`] names the step without a kernel, or who needs how much memory.
    pub fn open(job: Job) -> Result<HostDevice, DeviceError> {
        let pool = Pool::new(job.threads).map_err(DeviceError::Threads)?;
        let prepare = |p: &Plan| step::prepare(p, pool.threads(), job.seed);
        let train = job.train.as_ref().map(prepare).transpose()?.unwrap_or_default();
        let evaluate = prepare(&job.evaluate)?;
        let workspace = train.iter().chain(&evaluate).map(Kernel::workspace_len).max().unwrap_or(0);
        let (tensor, inspection) = (job.tensor.clone(), job.inspects.then(Inspection::default));
        let placed = job.place(workspace * size_of::<f32>(), Memory::HOST);
        let arena = Arena::new(placed.layout.total, &pool, || placed.owners())?;
        let shadows = shadows(&placed.layout, &arena);
        let trained_shadows = placed.layout.flat.trained.iter().map(|r| within(&shadows, r)).collect();
        Ok(HostDevice {
            placed,
            arena,
            train,
            evaluate,
            shadows,
            trained_shadows,
            pool,
            tensor,
            inspection,
            recording: None,
        })
    }

    fn context<'a>(&'a self, plan: &'a Plan, run: Run) -> RunCx<'a> {
        let Run { step, micro, part, .. } = run;
        let (arena, layout, pool, tensor) = (&self.arena, &*self.placed.layout, &self.pool, &self.tensor);
        RunCx { arena, layout, pool, plan, step, micro, part, tensor, apart: false }
    }

    fn kernels(&self, mode: Mode) -> &[Kernel] {
        match mode {
            Mode::Train => &self.train,
            Mode::Evaluate => &self.evaluate,
        }
    }

    fn part(&self, segment: usize, r: &Range) -> Buf {
        const F32: usize = size_of::<f32>();
        self.arena.buf(segment + r.start * F32, (r.end - r.start) * F32, DType::F32)
    }

    /// All gradients of trained parameters as one slice, padding (zeros) included.
    fn gradients_mut(&mut self) -> &mut [f32] {
        let layout = &self.placed.layout;
        let len = layout.flat.trained.last().map_or(0, |r| r.end);
        self.arena.f32s_mut(layout.grads, len)
    }

    /// One optimizer step over all trained parameters, and their shadows.
    fn updated(&self, update: &Update) {
        let ArenaLayout { params, grads, moments, flat, .. } = &*self.placed.layout;
        for (r, shadows) in flat.trained.iter().zip(&self.trained_shadows) {
            let (part, group) = (|segment: usize| self.part(segment, r), Update::group(r.decays));
            let (p, g) = (part(*params), part(*grads));
            match update {
                Update::AdamW(s) => {
                    optim::adamw(&self.pool, &s[group], p, g, [part(moments[0]), part(moments[1])], shadows);
                }
                Update::Sgd(s) => optim::sgd(&self.pool, &s[group], p, g, part(moments[0]), shadows),
            }
        }
    }

    fn buf(&self, slot: Slot) -> Buf {
        self.arena.buf(slot.offset, slot.elements * slot.dtype.bytes(), slot.dtype)
    }
}

impl Device for HostDevice {
    fn placed(&self) -> &Placed {
        &self.placed
    }

    fn write(&mut self, to: Slot, values: HostInput<'_>) -> Result<(), DeviceError> {
        match values {
            HostInput::I32(x) => self.arena.i32s_mut(to.offset, to.elements).copy_from_slice(x),
            HostInput::F32(x) => self.buf(to).store(0, x),
        }
        Ok(())
    }

    fn read(&self, from: Slot, out: &mut [f32]) -> Result<(), DeviceError> {
        self.buf(from).load(0, out);
        Ok(())
    }

    fn run(&mut self, mode: Mode, run: Run) -> Result<(), DeviceError> {
        let plan = self.placed.plan(mode).clone();
        if let Some(b) = plan.loss_scale {
            self.arena.f32s_mut(plan.buffers[b].offset, 1)[0] = run.loss_scale;
        }
        let mut inspection = self.inspection.take();
        let mut recording = self.recording.take();
        let cx = self.context(&plan, run);
        let kernels = self.kernels(mode);
        self.pool.lead(|| match (&mut inspection, &mut recording) {
            (Some(seen), _) => inspected(kernels, &cx, seen),
            (None, Some(recording)) if mode == Mode::Train => {
                // What runs together with another step is part of that one.
                let alone = |(_, (k, _)): &(usize, (&Kernel, _))| !matches!(k, Kernel::Loss(_, true));
                for (i, (k, s)) in kernels.iter().zip(&plan.steps).enumerate().filter(alone) {
                    recorded(recording, &self.pool, What::Step(i), || k.run(&cx, s));
                }
            }
            (None, _) => kernels.iter().zip(&plan.steps).for_each(|(k, s)| k.run(&cx, s)),
        });
        self.recording = recording;
        self.inspection = inspection;
        Ok(())
    }

    fn first_non_finite(&mut self, mode: Mode, run: Run) -> Result<Option<(usize, String)>, DeviceError> {
        let plan = self.placed.plan(mode).clone();
        let cx = RunCx { apart: true, ..self.context(&plan, run) };
        let broken = |o: BufferId| {
            let b = &plan.buffers[o];
            b.dtype.is_float() && !(0..b.elements).all(|e| cx.buffer(o).get(e).is_finite())
        };
        let mut found = None;
        for (i, (k, s)) in self.kernels(mode).iter().zip(&plan.steps).enumerate() {
            k.run(&cx, s);
            if found.is_none() {
                let first = s.outputs.iter().find(|&&o| broken(o));
                found = first.map(|&o| (i, plan.buffers[o].name.clone()));
            }
        }
        Ok(found)
    }

    fn write_shadows(&mut self) -> Result<(), DeviceError> {
        let all = Range { start: 0, end: self.placed.layout.flat.len, decays: false, split: false };
        optim::write_shadows(&self.pool, self.part(self.placed.layout.params, &all), &self.shadows);
        Ok(())
    }

    fn gradient_squares(&mut self) -> Result<(f64, f64), DeviceError> {
        let mut sums = (0.0, 0.0);
        for r in &self.placed.layout.flat.trained {
            let sum = optim::sum_of_squares(&self.pool, self.part(self.placed.layout.grads, r));
            if r.split { sums.1 += sum } else { sums.0 += sum }
        }
        Ok(sums)
    }

    fn gradients_finite(&mut self) -> Result<bool, DeviceError> {
        let layout = &self.placed.layout;
        Ok(layout.flat.trained.iter().all(|r| optim::all_finite(&self.pool, self.part(layout.grads, r))))
    }

    fn record(&mut self) -> bool {
        self.pool.note(true);
        self.recording = Some(Recording::new(self.pool.threads()));
        true
    }

    fn recorded(&mut self) -> Option<Recording> {
        self.pool.note(false);
        self.recording.take()
    }

    fn update(&mut self, update: &Update) -> Result<(), DeviceError> {
        let mut recording = self.recording.take();
        match &mut recording {
            None => self.updated(update),
            Some(recording) => recorded(recording, &self.pool, What::Update, || self.updated(update)),
        }
        self.recording = recording;
        Ok(())
    }

    fn reduce_gradients(&mut self, over: &Member) -> Result<(), DeviceError> {
        over.all_reduce(self.gradients_mut());
        Ok(())
    }

    fn warm(&mut self, _: Option<&StepEnd>, _: &mut dyn FnMut(usize, usize)) -> Result<(), DeviceError> {
        // Everything was compiled with the program.
        Ok(())
    }

    fn time_steps(&mut self, mode: Mode, run: Run, repeats: usize) -> Result<Vec<Duration>, DeviceError> {
        let plan = self.placed.plan(mode).clone();
        let cx = self.context(&plan, run);
        let timed = |(kernel, step): (&Kernel, &crate::plan::Step)| {
            kernel.run(&cx, step);
            let begin = Instant::now();
            (0..repeats).for_each(|_| kernel.run(&cx, step));
            mean(begin.elapsed(), repeats)
        };
        Ok(self.pool.lead(|| self.kernels(mode).iter().zip(&plan.steps).map(timed).collect()))
    }

    fn copied(&self) -> Copied {
        Copied::default()
    }

    fn inspection(&self) -> Option<&Inspection> {
        self.inspection.as_ref()
    }
}

/// Does a part of a training step, and records who was busy with it when.
fn recorded(recording: &mut Recording, pool: &Pool, what: What, part: impl FnOnce()) {
    // Loops between the parts belong to none.
    pool.take_notes(|_, _| {});
    let begin = Instant::now();
    part();
    recording.add(what, begin, Instant::now(), |note| pool.take_notes(note));
}

/// Runs all steps with every buffer poisoned outside of its life.
fn inspected(kernels: &[Kernel], cx: &RunCx<'_>, seen: &mut Inspection) {
    let run = Inspected { arena: cx.arena, layout: cx.layout, plan: cx.plan, micro: cx.micro };
    run.begin(seen);
    for (i, (k, s)) in kernels.iter().zip(&cx.plan.steps).enumerate() {
        run.before(i);
        k.run(cx, s);
        run.after(i, seen);
    }
}

/// Every shadow of a layout, counted from the start of the masters.
fn shadows(layout: &ArenaLayout, arena: &Arena) -> Vec<Shadow> {
    let shadow = |&(p, dtype, offset): &(usize, DType, usize)| Shadow {
        first: layout.flat.offsets[p],
        to: arena.buf(offset, layout.flat.lens[p] * dtype.bytes(), dtype),
    };
    layout.shadows.iter().map(shadow).collect()
}

/// Those of a range, counted from its start.
fn within(shadows: &[Shadow], r: &Range) -> Vec<Shadow> {
    let inside = shadows.iter().filter(|s| (r.start..r.end).contains(&s.first));
    inside.map(|s| Shadow { first: s.first - r.start, ..*s }).collect()
}
