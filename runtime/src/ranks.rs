//! Ranks: the engines of a mesh as threads of one process, and what a step asks of all of them together.

use crate::device::{Copied, DeviceError, Queue, Report, StepEnd, Target};
use crate::exec::comm::{Comm, Member};
use crate::exec::{Engine, EngineOptions, HostInput, Kind, Mode, Run};
use crate::link::{self, LinkError, LinkOptions, Model};
use crate::optim::Optimizer;
use crate::plan::Plan;
use std::sync::Arc;

/// Sizes of the mesh axes that are in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mesh {
    /// Ranks that share the batch.
    pub data: usize,
    /// Ranks that share the layers with `#[shard(tensor)]`.
    pub tensor: usize,
}

impl Mesh {
    /// One rank.
    pub const ONE: Mesh = Mesh { data: 1, tensor: 1 };

    /// Number of ranks.
    pub fn world_size(self) -> usize {
        self.data * self.tensor
    }
}

/// One rank.
struct Rank {
    model: Model,
    engine: Engine,
    data: Member,
}

/// All ranks: rank (d, t) is number d·tensor + t.
pub struct Ranks {
    mesh: Mesh,
    accumulate: usize,
    all: Vec<Rank>,
    comms: Vec<Arc<Comm>>,
}

/// What one step computed, before the update.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sums {
    /// Sum of the loss.
    pub loss: f64,
    /// Counted targets.
    pub count: f64,
}

/// Plans of one rank.
pub type Plans = (Option<Plan>, Plan);

impl Ranks {
    /// Links and plans every rank, compares their plans, then allocates. `plans` makes a rank's plans from its model.
    ///
    /// # Errors
    /// [`RanksError`]; nothing is allocated before all ranks have planned the same steps.
    pub fn new(
        root: &'static crate::layer::LayerDef,
        link_options: &LinkOptions,
        mesh: Mesh,
        accumulate: usize,
        engine_options: impl Fn(&Model) -> EngineOptions,
        plans: impl Fn(&Model) -> Plans,
    ) -> Result<Ranks, RanksError> {
        if let Some((axis, _)) = [("data", mesh.data), ("tensor", mesh.tensor)].into_iter().find(|(_, n)| *n == 0) {
            return Err(RanksError::NoRanks(axis));
        }
        let group = |n: usize| Arc::new(Comm::new(n));
        let data: Vec<Arc<Comm>> = (0..mesh.tensor).map(|_| group(mesh.data)).collect();
        let tensor: Vec<Arc<Comm>> = (0..mesh.data).map(|_| group(mesh.tensor)).collect();
        let planned = planned(root, link_options, mesh, plans)?;
        check_same(&planned)?;
        let mut all = Vec::new();
        for (rank, (model, (train, evaluate))) in planned.into_iter().enumerate() {
            let (d, t) = (rank / mesh.tensor, rank % mesh.tensor);
            let mut options = engine_options(&model);
            options.threads = threads_of(options.threads, mesh.world_size());
            if mesh.world_size() > 1 && !matches!(options.target, Target::Host) {
                let what = "runs one rank; more ranks need `--device host`".to_owned();
                return Err(DeviceError::Unsupported { device: options.target.name(), what }.into());
            }
            let engine = Engine::new(&model, train, evaluate, &options, Member { comm: tensor[d].clone(), rank: t })?;
            all.push(Rank { model, engine, data: Member { comm: data[t].clone(), rank: d } });
        }
        let comms = data.into_iter().chain(tensor).collect();
        Ok(Ranks { mesh, accumulate, all, comms })
    }

    /// Number of parts into which the batch is cut: data ranks times micro-batches.
    pub fn parts(&self) -> usize {
        self.mesh.data * self.accumulate
    }

    /// Number of ranks.
    pub fn world_size(&self) -> usize {
        self.all.len()
    }

    /// The model of rank 0.
    pub fn model(&self) -> &Model {
        &self.all[0].model
    }

    /// The engine of rank 0.
    pub fn engine(&self) -> &Engine {
        &self.all[0].engine
    }

    /// The engine of rank 0, to run something on its device.
    pub fn engine_mut(&mut self) -> &mut Engine {
        &mut self.all[0].engine
    }

    /// The engine of a rank.
    pub fn engine_of(&self, rank: usize) -> &Engine {
        &self.all[rank].engine
    }

    /// Bytes that ranks have given to collectives so far, per rank.
    pub fn collective_bytes(&self) -> u64 {
        self.comms.first().map_or(0, |c| c.bytes()) + self.comms.last().map_or(0, |c| c.bytes())
    }

    /// Runs `f` on every rank at once; the results in the order of ranks.
    fn each<T: Send>(&mut self, f: impl Fn(usize, &mut Rank) -> T + Sync) -> Vec<T> {
        if let [only] = self.all.as_mut_slice() {
            return vec![f(0, only)];
        }
        std::thread::scope(|scope| {
            let f = &f;
            let threads: Vec<_> =
                self.all.iter_mut().enumerate().map(|(i, rank)| scope.spawn(move || f(i, rank))).collect();
            let joined = threads.into_iter().map(|t| t.join());
            joined.map(|r| r.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
        })
    }

    /// As [`Ranks::each`], for what can fail; the first failure in the order of ranks.
    fn try_each<T: Send>(
        &mut self,
        f: impl Fn(usize, &mut Rank) -> Result<T, DeviceError> + Sync,
    ) -> Result<Vec<T>, DeviceError> {
        self.each(f).into_iter().collect()
    }

    /// Bytes copied between the host and the devices of all ranks so far.
    pub fn copied(&self) -> Copied {
        let sum = |a: Copied, b: Copied| Copied { h2d: a.h2d + b.h2d, d2h: a.d2h + b.d2h };
        self.all.iter().map(|r| r.engine.device().copied()).fold(Copied::default(), sum)
    }

    /// Initial values on every rank.
    ///
    /// # Errors
    /// [`DeviceError`] if a device fails.
    pub fn initialise(&mut self, seed: u64) -> Result<(), DeviceError> {
        self.try_each(|_, r| r.engine.initialise(&r.model, seed)).map(|_| ())
    }

    /// Runs a plan over a whole batch, whose inputs hold `parts()` parts one after another. Training sums each rank's gradients
    /// over its micro-batches, and over earlier runs of the step: this is run number `pass` of it, and run 0 overwrites.
    ///
    /// # Errors
    /// [`DeviceError`] if a device fails.
    pub fn run(
        &mut self,
        mode: Mode,
        inputs: &[HostInput<'_>],
        step: u64,
        pass: usize,
        loss_scale: f32,
    ) -> Result<Sums, DeviceError> {
        let (mesh, accumulate, parts) = (self.mesh, self.accumulate, self.parts_of(step, pass, loss_scale));
        let sums = self.try_each(|i, r| {
            let mut sums = Sums::default();
            for micro in 0..accumulate {
                let run = parts.write(mode, inputs, micro, i, r)?;
                r.engine.run(mode, run)?;
                sums.loss += f64::from(r.engine.output_scalar(mode, 0)?);
                sums.count += f64::from(r.engine.output_scalar(mode, 1)?);
            }
            Ok(sums)
        })?;
        let of_data = sums.iter().step_by(mesh.tensor);
        Ok(of_data.fold(Sums::default(), |a, b| Sums { loss: a.loss + b.loss, count: a.count + b.count }))
    }

    fn parts_of(&self, step: u64, pass: usize, loss_scale: f32) -> Parts {
        Parts { mesh: self.mesh, accumulate: self.accumulate, step, pass, loss_scale }
    }

    /// Sums the gradients over data ranks, once after the last run of a step.
    ///
    /// # Errors
    /// [`DeviceError`] if a device fails.
    pub fn reduce_grads(&mut self) -> Result<(), DeviceError> {
        self.try_each(|_, r| r.engine.device_mut().reduce_gradients(&r.data)).map(|_| ())
    }

    /// Sum of squares of the whole gradient: parts are summed over their ranks, what all ranks hold is counted once.
    ///
    /// # Errors
    /// [`DeviceError`] if a device fails.
    pub fn grad_sum_of_squares(&mut self) -> Result<f64, DeviceError> {
        let tensor = self.mesh.tensor;
        let sums = self.try_each(|_, r| r.engine.device_mut().gradient_squares())?;
        Ok(sums[0].0 + sums[..tensor].iter().map(|s| s.1).sum::<f64>())
    }

    /// Whether all gradients of all ranks are finite.
    ///
    /// # Errors
    /// [`DeviceError`] if a device fails.
    pub fn grads_finite(&mut self) -> Result<bool, DeviceError> {
        Ok(self.try_each(|_, r| r.engine.device_mut().gradients_finite())?.into_iter().all(|finite| finite))
    }

    /// One optimizer step on every rank.
    ///
    /// # Errors
    /// [`DeviceError`] if a device fails.
    pub fn update(&mut self, optimizer: Optimizer, lr: f64, t: u64, grad_factor: f64) -> Result<(), DeviceError> {
        let update = optimizer.update(lr, t, grad_factor);
        self.try_each(|_, r| r.engine.device_mut().update(&update)).map(|_| ())
    }

    /// Whether steps can be submitted without waiting.
    pub fn queues(&mut self) -> bool {
        self.all.len() == 1 && self.all[0].engine.device_mut().queue().is_some()
    }

    /// The device of the only rank, which queues.
    fn queue(&mut self) -> &mut dyn Queue {
        self.all[0].engine.device_mut().queue().expect("callers ask `queues` first")
    }

    /// Compiles every kernel of rank 0's device, the only one with kernels to compile.
    ///
    /// # Errors
    /// [`DeviceError`] names the step whose kernel does not compile.
    pub fn warm(&mut self, end: &StepEnd, on_step: &mut dyn FnMut(usize, usize)) -> Result<(), DeviceError> {
        self.all[0].engine.device_mut().warm(Some(end), on_step)
    }

    /// Enqueues a whole training step.
    ///
    /// # Errors
    /// [`DeviceError`] if the device fails.
    pub fn submit(&mut self, inputs: &[HostInput<'_>], step: u64, end: &StepEnd) -> Result<(), DeviceError> {
        let parts = self.parts_of(step, 0, end.loss_scale);
        for micro in 0..self.accumulate {
            let run = parts.write(Mode::Train, inputs, micro, 0, &mut self.all[0])?;
            self.all[0].engine.run(Mode::Train, run)?;
            self.queue().collect(micro == 0)?;
        }
        self.queue().end_step(end)
    }

    /// Waits, and reads the report of the last submitted step.
    ///
    /// # Errors
    /// [`DeviceError`] if the device has failed.
    pub fn report(&mut self) -> Result<Report, DeviceError> {
        self.queue().report()
    }

    /// Lets weights change again after a failed step.
    ///
    /// # Errors
    /// [`DeviceError`] if the device fails.
    pub fn forgive(&mut self) -> Result<(), DeviceError> {
        self.queue().forgive()
    }

    /// Does run `pass` of a step again and returns the first value that is not finite, of the first micro-batch that has one: its
    /// step in the plan and its name.
    ///
    /// # Errors
    /// [`DeviceError`] if a device fails.
    pub fn first_non_finite(
        &mut self,
        mode: Mode,
        inputs: &[HostInput<'_>],
        step: u64,
        pass: usize,
        loss_scale: f32,
    ) -> Result<Option<(usize, String)>, DeviceError> {
        let parts = self.parts_of(step, pass, loss_scale);
        for micro in 0..self.accumulate {
            // All ranks run all steps, or those that find nothing would wait at a collective for the one that did.
            let found = self.try_each(|i, r| {
                let run = parts.write(mode, inputs, micro, i, r)?;
                r.engine.device_mut().first_non_finite(mode, run)
            })?;
            if let Some(first) = found.into_iter().flatten().min_by_key(|(step, _)| *step) {
                return Ok(Some(first));
            }
        }
        Ok(None)
    }

    /// A whole tensor of parameter `p`, put together from the ranks' parts.
    ///
    /// # Errors
    /// [`DeviceError`] if a device fails.
    pub fn gather(&self, kind: Kind, p: usize) -> Result<Vec<f32>, DeviceError> {
        let whole: usize = self.model().params[p].dims.iter().product();
        let mut out = vec![0.0; whole];
        for r in &self.all[..self.mesh.tensor] {
            for (i, x) in r.engine.values(kind, p)?.into_iter().enumerate() {
                out[r.model.params[p].global_index(i)] = x;
            }
        }
        Ok(out)
    }

    /// Sets a tensor of parameter `p` on every rank; after weights, [`Ranks::write_shadows`] is due.
    ///
    /// # Errors
    /// [`DeviceError`] if a device fails.
    pub fn scatter(&mut self, kind: Kind, p: usize, whole: &[f32]) -> Result<(), DeviceError> {
        for r in &mut self.all {
            let param = &r.model.params[p];
            let part: Vec<f32> = (0..param.len()).map(|i| whole[param.global_index(i)]).collect();
            r.engine.set_values(kind, p, &part)?;
        }
        Ok(())
    }

    /// Writes the shadows of every rank from its masters.
    ///
    /// # Errors
    /// [`DeviceError`] if a device fails.
    pub fn write_shadows(&mut self) -> Result<(), DeviceError> {
        self.try_each(|_, r| r.engine.device_mut().write_shadows()).map(|_| ())
    }
}

/// How a batch is cut in one run of a step.
#[derive(Clone, Copy)]
struct Parts {
    mesh: Mesh,
    accumulate: usize,
    step: u64,
    pass: usize,
    loss_scale: f32,
}

impl Parts {
    /// Writes rank `i`'s part of micro-batch `micro` into its engine; returns the run, counted as the whole step counts.
    fn write(
        self,
        mode: Mode,
        inputs: &[HostInput<'_>],
        micro: usize,
        i: usize,
        rank: &mut Rank,
    ) -> Result<Run, DeviceError> {
        let parts = self.mesh.data * self.accumulate;
        let part = micro * self.mesh.data + i / self.mesh.tensor;
        let slices: Vec<HostInput<'_>> = inputs.iter().map(|x| x.part(part, parts)).collect();
        rank.engine.write_inputs(mode, &slices)?;
        let Parts { step, pass, loss_scale, .. } = self;
        Ok(Run { step, micro: pass * self.accumulate + micro, part: pass * parts + part, loss_scale })
    }
}

/// Why ranks cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum RanksError {
    /// An axis without ranks.
    #[error("K0714: mesh axis `{0}` has 0 ranks; it needs at least 1")]
    NoRanks(&'static str),
    /// Ranks that would wait for each other for ever.
    #[error(
        "K0815: the plan of rank {rank} differs from that of rank 0: `{here}`, there `{there}`; all ranks must run the same steps"
    )]
    PlansDiffer {
        /// Which rank.
        rank: usize,
        /// The first line that differs.
        here: String,
        /// What rank 0 has in its place.
        there: String,
    },
    /// The model does not link.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The device cannot run it.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Model and plans of every rank, in the order of ranks.
fn planned(
    root: &'static crate::layer::LayerDef,
    link_options: &LinkOptions,
    mesh: Mesh,
    plans: impl Fn(&Model) -> Plans,
) -> Result<Vec<(Model, Plans)>, RanksError> {
    let plan_rank = |rank: usize| -> Result<(Model, Plans), RanksError> {
        let options = LinkOptions { tensor: (mesh.tensor, rank % mesh.tensor), ..link_options.clone() };
        let model = link::link(root, &options)?;
        let plans = plans(&model);
        Ok((model, plans))
    };
    (0..mesh.world_size()).map(plan_rank).collect()
}

/// Refuses plans that differ from rank 0's in anything but the part of an axis that a rank holds.
fn check_same(planned: &[(Model, Plans)]) -> Result<(), RanksError> {
    if planned.len() == 1 {
        return Ok(());
    }
    let plans = |i: usize| {
        let (train, evaluate) = &planned[i].1;
        train.iter().chain([evaluate])
    };
    let hashes = |i: usize| plans(i).map(Plan::hash).collect::<Vec<u64>>();
    let first = hashes(0);
    let Some(rank) = (1..planned.len()).find(|&i| hashes(i) != first) else { return Ok(()) };
    let lines = |i: usize| plans(i).flat_map(Plan::lines).collect::<Vec<String>>();
    let (here, there) = (lines(rank), lines(0));
    let at = here.iter().zip(&there).position(|(a, b)| a != b).unwrap_or(here.len().min(there.len()));
    let line = |list: &[String]| list.get(at).cloned().unwrap_or_else(|| "nothing".to_owned());
    Err(RanksError::PlansDiffer { rank, here: line(&here), there: line(&there) })
}

/// Threads of one rank: its share, at least one.
fn threads_of(threads: usize, ranks: usize) -> usize {
    let all = match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    };
    (all / ranks).max(1)
}
