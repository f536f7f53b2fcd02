//! Steps that do not wait: on a GPU a step is enqueued and its report stays there until somebody asks, so a training loop waits once per
//! logging interval. The host has finished a step when the call returns; both give the same reports.

use crate::batch::{self, HostBatch};
use crate::device::StepEnd;
use crate::exec::{HostInput, Mode};
use crate::layer::Layer;
use crate::trainer::{StepReport, TrainError, Trainer};

/// Steps since the last report.
#[derive(Default)]
pub struct Submitted {
    /// The report of the last step, where it is known.
    known: Option<StepReport>,
    /// Batches of the steps since the last report: what a step that failed is searched with.
    batches: Vec<Batch>,
}

/// A batch of a submitted step.
struct Batch {
    step: u64,
    inputs: Vec<Values>,
}

enum Values {
    I32(Vec<i32>),
    F32(Vec<f32>),
}

impl Batch {
    fn new(step: u64, inputs: &[HostInput<'_>]) -> Batch {
        let values = |input: &HostInput<'_>| match input {
            HostInput::I32(x) => Values::I32(x.to_vec()),
            HostInput::F32(x) => Values::F32(x.to_vec()),
        };
        Batch { step, inputs: inputs.iter().map(values).collect() }
    }

    fn inputs(&self) -> Vec<HostInput<'_>> {
        fn view(values: &Values) -> HostInput<'_> {
            match values {
                Values::I32(x) => HostInput::I32(x),
                Values::F32(x) => HostInput::F32(x),
            }
        }
        self.inputs.iter().map(view).collect()
    }
}

impl<L: Layer> Trainer<L> {
    /// Trains on one batch, without waiting for a GPU: [`Trainer::report`] tells later what the last step did.
    ///
    /// On the host, and under f16 – whose loss scale depends on each step – the step is over when this returns.
    ///
    /// # Errors
    /// [`TrainError`] for a batch that does not fit; a loss that is not finite is an error of this call on the host and of
    /// [`Trainer::report`] on a GPU. Either way the weights are those before the step.
    pub fn submit(&mut self, batch: &(impl HostBatch + ?Sized)) -> Result<(), TrainError> {
        self.submitted.known = None;
        if !self.ranks.queues() {
            let mut step = self.begin_step();
            step.forward_backward(batch)?;
            self.submitted.known = Some(step.reduce()?.finish()?);
            return Ok(());
        }
        let inputs = batch.inputs();
        let ranks = &self.ranks;
        batch::check(ranks.model(), ranks.engine().plan(Mode::Train), ranks.parts(), &inputs)?;
        let step = self.steps_done();
        let end = self.step_end();
        self.ranks.submit(&inputs, step, &end)?;
        self.submitted.batches.push(Batch::new(step, &inputs));
        self.updates += 1;
        self.step += 1;
        if self.scales_loss() {
            self.submitted.known = Some(self.settle()?);
        }
        Ok(())
    }

    /// How the next step ends.
    fn step_end(&self) -> StepEnd {
        // The device clips and divides by the number of targets, which the host does not know yet.
        let update = self.optimizer.update(self.schedule().lr(self.steps_done()), self.updates_done() + 1, 1.0);
        StepEnd { loss_scale: self.loss_scale(), max_norm: self.clip, skips_overflow: self.scales_loss(), update }
    }

    /// Compiles every kernel of the session now rather than in the first step; `on_step` gets launches done and launches in all. The host has
    /// nothing to compile.
    ///
    /// # Errors
    /// [`TrainError::Device`] names the step whose kernel does not compile.
    pub fn warm(&mut self, mut on_step: impl FnMut(usize, usize)) -> Result<(), TrainError> {
        let end = self.step_end();
        Ok(self.ranks.warm(&end, &mut on_step)?)
    }

    /// What the last submitted step did; on a GPU this waits for it.
    ///
    /// # Errors
    /// [`TrainError::NotFinite`] or [`TrainError::NoTargets`] of the first submitted step that failed; the session then stands before that
    /// step. [`TrainError::NothingSubmitted`] if no step has been submitted since the last error.
    pub fn report(&mut self) -> Result<StepReport, TrainError> {
        match self.submitted.known {
            Some(report) => Ok(report),
            None if self.submitted.batches.is_empty() => Err(TrainError::NothingSubmitted),
            None => {
                let report = self.settle()?;
                self.submitted.known = Some(report);
                Ok(report)
            }
        }
    }

    /// Waits for the submitted steps and looks at what they left.
    fn settle(&mut self) -> Result<StepReport, TrainError> {
        let batches = std::mem::take(&mut self.submitted.batches);
        let report = self.ranks.report()?;
        if report.failed_steps > 0 {
            return Err(self.failed(&batches, report.failed_steps)?);
        }
        let (step, loss_scale) = (self.steps_done(), f64::from(self.loss_scale()));
        let skipped = !report.updated;
        if skipped {
            self.updates -= 1;
        }
        self.scaled(skipped);
        let mean = 1.0 / (report.count * loss_scale);
        Ok(StepReport {
            step,
            loss: report.loss / report.count,
            count: report.count,
            grad_norm: report.squares.sqrt() * mean,
            lr: self.schedule().lr(step - 1),
            loss_scale,
            skipped,
        })
    }

    /// Goes back to the first step that failed and says why it did.
    fn failed(&mut self, batches: &[Batch], failed_steps: u64) -> Result<TrainError, TrainError> {
        let (steps, loss_scale) = (self.steps_done(), self.loss_scale());
        self.ranks.forgive()?;
        self.step -= failed_steps;
        self.updates -= failed_steps;
        let first = steps - failed_steps;
        let Some(batch) = batches.iter().find(|b| b.step == first) else {
            return Ok(self.not_finite(first + 1, f64::NAN, None));
        };
        let inputs = batch.inputs();
        let sums = self.ranks.run(Mode::Train, &inputs, first, 0, loss_scale)?;
        if sums.count == 0.0 {
            return Ok(TrainError::NoTargets(first + 1));
        }
        let found = self.ranks.first_non_finite(Mode::Train, &inputs, first, 0, loss_scale)?;
        Ok(self.not_finite(first + 1, sums.loss / sums.count, found))
    }
}
