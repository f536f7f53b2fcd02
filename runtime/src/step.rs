//! One training step taken apart: backward passes add up gradients, ranks reduce them once, one update uses them. The order is in
//! the types, so no pass can follow the reduction and no update can come before it.

use crate::batch::{self, HostBatch};
use crate::exec::Mode;
use crate::layer::Layer;
use crate::ranks::Sums;
use crate::trainer::{StepReport, TrainError, Trainer};

/// A step that has begun: gradients add up. Dropping it changes no weight.
pub struct OpenStep<'t, L> {
    trainer: &'t mut Trainer<L>,
    sums: Sums,
    passes: usize,
    /// The first value of a pass that is not finite, if its loss is not.
    broken: Option<(usize, String)>,
}

/// The gradients of a step, summed over its passes and over ranks. Dropping them changes no weight and counts no step.
pub struct Gradients<'t, L> {
    trainer: &'t mut Trainer<L>,
    sums: Sums,
}

impl<L: Layer> Trainer<L> {
    /// Begins a step by hand; [`Trainer::step`] is made of the same calls.
    ///
    /// ```no_run
    /// # use kiln::{layer::Layer, trainer::{Trainer, TrainError}, batch::HostBatch};
    /// use kiln::optim::clip_factor;
    ///
    /// # fn one_step<L: Layer>(trainer: &mut Trainer<L>, micro_batches: &[Vec<f32>]) -> Result<(), TrainError> {
    /// let lr = trainer.schedule().lr(trainer.steps_done());
    /// let mut step = trainer.begin_step();
    /// for batch in micro_batches {
    ///     step.forward_backward(batch)?;
    /// }
    /// let mut gradients = step.reduce()?;
    /// let clip = clip_factor(gradients.norm()?, 1.0);
    /// gradients.update(lr, clip)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn begin_step(&mut self) -> OpenStep<'_, L> {
        OpenStep { trainer: self, sums: Sums::default(), passes: 0, broken: None }
    }
}

impl<'t, L: Layer> OpenStep<'t, L> {
    /// Forward and backward of one batch; its gradients are added to those of this step's earlier passes. Returns the mean loss
    /// of the batch, NaN if no target of it counts.
    ///
    /// Every batch has the sizes of the session. Random streams go on from pass to pass, so n passes over the parts of a batch
    /// draw what one pass over the whole batch would.
    ///
    /// # Errors
    /// [`TrainError`] for a batch that does not fit; the gradients are then those of the earlier passes.
    pub fn forward_backward(&mut self, batch: &(impl HostBatch + ?Sized)) -> Result<f64, TrainError> {
        let inputs = batch.inputs();
        let ranks = &self.trainer.ranks;
        batch::check(ranks.model(), ranks.engine().plan(Mode::Train), ranks.parts(), &inputs)?;
        let scale = self.trainer.loss_scale();
        let (step, pass) = (self.trainer.step, self.passes);
        let one = self.trainer.ranks.run(Mode::Train, &inputs, step, pass, scale)?;
        if !one.loss.is_finite() && self.broken.is_none() {
            // Looked for now, while the inputs are there.
            self.broken = self.trainer.ranks.first_non_finite(Mode::Train, &inputs, step, pass, scale)?;
        }
        self.passes += 1;
        self.sums.loss += one.loss;
        self.sums.count += one.count;
        Ok(one.loss / one.count)
    }

    /// Sums the gradients over data ranks.
    ///
    /// # Errors
    /// [`TrainError::NoTargets`] if no target of any pass counts, [`TrainError::NotFinite`] if the loss is not finite.
    pub fn reduce(self) -> Result<Gradients<'t, L>, TrainError> {
        let OpenStep { trainer, sums, broken, .. } = self;
        let number = trainer.step + 1;
        if sums.count == 0.0 {
            return Err(TrainError::NoTargets(number));
        }
        let loss = sums.loss / sums.count;
        if !loss.is_finite() {
            return Err(trainer.not_finite(number, loss, broken));
        }
        trainer.ranks.reduce_grads()?;
        Ok(Gradients { trainer, sums })
    }
}

impl<L: Layer> Gradients<'_, L> {
    /// Mean loss over all counted targets of the step, in nats.
    pub fn loss(&self) -> f64 {
        self.sums.loss / self.sums.count
    }

    /// Number of counted targets.
    pub fn count(&self) -> f64 {
        self.sums.count
    }

    /// Global norm of the gradient of the mean loss.
    ///
    /// # Errors
    /// [`TrainError::Device`] if the device fails.
    pub fn norm(&mut self) -> Result<f64, TrainError> {
        Ok(self.trainer.ranks.grad_sum_of_squares()?.sqrt() * self.mean_factor())
    }

    /// Whether every gradient is finite; under f16 an overflow makes one infinite.
    ///
    /// # Errors
    /// [`TrainError::Device`] if the device fails.
    pub fn is_finite(&mut self) -> Result<bool, TrainError> {
        Ok(self.trainer.ranks.grads_finite()?)
    }

    /// Gradient of the mean loss by the parameter at `path`.
    ///
    /// # Errors
    /// [`TrainError::NoParam`], or [`TrainError::Device`] if the device fails.
    pub fn get(&self, path: &str) -> Result<Vec<f32>, TrainError> {
        let factor = self.mean_factor();
        let mean = |x: f32| (f64::from(x) * factor) as f32;
        Ok(self.trainer.grad(path)?.into_iter().map(mean).collect())
    }

    /// Sets the gradient of the mean loss by the parameter at `path`.
    ///
    /// # Errors
    /// [`TrainError::NoParam`], [`TrainError::ParamLength`], or [`TrainError::Device`] if the device fails.
    pub fn set(&mut self, path: &str, values: &[f32]) -> Result<(), TrainError> {
        let factor = 1.0 / self.mean_factor();
        let sums: Vec<f32> = values.iter().map(|x| (f64::from(*x) * factor) as f32).collect();
        self.trainer.set_grad(path, &sums)
    }

    /// Ends the step as the session's settings say: an overflow under f16 skips it, otherwise clip, then one optimizer step at the
    /// schedule's rate.
    ///
    /// # Errors
    /// [`TrainError::Device`] if the device fails.
    pub fn finish(mut self) -> Result<StepReport, TrainError> {
        let (loss, count, grad_norm) = (self.loss(), self.count(), self.norm()?);
        let (step, lr) = (self.trainer.step + 1, self.trainer.schedule().lr(self.trainer.step));
        let loss_scale = f64::from(self.trainer.loss_scale());
        let skipped = self.trainer.scales_loss() && !self.is_finite()?;
        match skipped {
            true => self.skip(),
            false => {
                let clip = self.trainer.clip_factor(grad_norm);
                self.update(lr, clip)?;
            }
        }
        Ok(StepReport { step, loss, count, grad_norm, lr, loss_scale, skipped })
    }

    /// One optimizer step with this learning rate, on `factor` times the gradient of the mean loss: 1, or
    /// [`crate::optim::clip_factor`]. Under f16 the loss scale counts a clean step.
    ///
    /// # Errors
    /// [`TrainError::Device`] if the device fails.
    pub fn update(self, lr: f64, factor: f64) -> Result<(), TrainError> {
        let grad_factor = self.mean_factor() * factor;
        let trainer = self.trainer;
        trainer.updates += 1;
        trainer.ranks.update(trainer.optimizer, lr, trainer.updates, grad_factor)?;
        trainer.close_step(false);
        Ok(())
    }

    /// Counts the step and leaves weights and moments as they are; under f16 the loss scale backs off.
    pub fn skip(self) {
        self.trainer.close_step(true);
    }

    /// Backward leaves the sum over targets, times the loss scale.
    fn mean_factor(&self) -> f64 {
        1.0 / (self.sums.count * f64::from(self.trainer.loss_scale()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optim::clip_factor;
    use crate::prelude::*;
    use crate::ranks::Mesh;
    use crate::schedule::Schedule;
    use crate::session::Session;
    use crate::trainer::TrainerBuilder;
    use kiln_compiler::ir::DType;

    axes! { B: "batch", P: "features", H: "hidden", C: "classes" }

    /// Draws random numbers, so that a pass at a wrong place of the batch shows.
    #[layer]
    fn net(
        x: Tensor<B, P>,
        #[param(init = xavier)] w1: Tensor<P, H>,
        #[param(init = xavier)] w2: Tensor<H, C>,
    ) -> Tensor<B, C> {
        x.matmul(w1).tanh().dropout(0.25).matmul(w2)
    }

    #[layer]
    fn classify(x: Tensor<B, P>, class: Ids<B>, #[sub] net: Net) -> Loss {
        net.forward(x).cross_entropy(class)
    }

    #[layer]
    fn logits(x: Tensor<B, P>, #[sub] net: Net) -> Tensor<B, C> {
        net.forward(x)
    }

    const FEATURES: usize = 3;
    const MAX_NORM: f64 = 0.05;

    fn trainer(rows: usize) -> TrainerBuilder<Classify> {
        Trainer::<Classify>::new(sizes! { B = rows, P = FEATURES, H = 5, C = 4 })
            .schedule(Schedule::linear(0.1, 0.0, 4))
            .clip(MAX_NORM)
            .threads(1)
    }

    /// Rows `from..from + rows` of one endless table, some of whose targets are ignored.
    fn rows(from: usize, rows: usize) -> (Vec<f32>, Vec<i32>) {
        let x = (from * FEATURES..(from + rows) * FEATURES).map(|i| (i as f32 * 0.7).sin()).collect();
        let class = (from..from + rows).map(|i| if i % 3 == 1 { -1 } else { (i % 4) as i32 }).collect();
        (x, class)
    }

    fn weights(trainer: &Trainer<Classify>) -> Vec<Vec<u32>> {
        let bits = |path| trainer.param(path).unwrap().into_iter().map(f32::to_bits).collect();
        ["net.w1", "net.w2"].map(bits).into()
    }

    /// The loop that a user writes.
    fn step_by_hand(trainer: &mut Trainer<Classify>, batches: &[(Vec<f32>, Vec<i32>)]) -> (f64, f64) {
        let lr = trainer.schedule().lr(trainer.steps_done());
        let mut step = trainer.begin_step();
        for batch in batches {
            step.forward_backward(batch).unwrap();
        }
        let mut gradients = step.reduce().unwrap();
        let (loss, norm) = (gradients.loss(), gradients.norm().unwrap());
        gradients.update(lr, clip_factor(norm, MAX_NORM)).unwrap();
        (loss, norm)
    }

    fn hand_made_passes_are_micro_batches(mesh: Mesh) {
        let mut whole = trainer(8).accumulate(2).mesh(mesh).build().unwrap();
        let mut parts = trainer(4).mesh(mesh).build().unwrap();
        for step in 0..3 {
            let report = whole.step(&rows(8 * step, 8)).unwrap();
            let by_hand = step_by_hand(&mut parts, &[rows(8 * step, 4), rows(8 * step + 4, 4)]);
            assert_eq!((report.loss, report.grad_norm), by_hand);
            assert!(report.grad_norm > MAX_NORM, "clipping takes part");
        }
        assert_eq!(weights(&whole), weights(&parts));
        assert_eq!(whole.steps_done(), parts.steps_done());
    }

    #[test]
    fn the_plain_loop_is_the_step() {
        hand_made_passes_are_micro_batches(Mesh::ONE);
    }

    #[test]
    fn data_ranks_reduce_once_per_step() {
        hand_made_passes_are_micro_batches(Mesh { data: 2, tensor: 1 });
    }

    #[test]
    fn only_an_update_changes_weights() {
        let mut trainer = trainer(4).build().unwrap();
        let before = weights(&trainer);
        let mut step = trainer.begin_step();
        step.forward_backward(&rows(0, 4)).unwrap();
        step.reduce().unwrap();
        assert_eq!((trainer.steps_done(), weights(&trainer)), (0, before.clone()));
        let mut step = trainer.begin_step();
        step.forward_backward(&rows(0, 4)).unwrap();
        step.reduce().unwrap().skip();
        assert_eq!((trainer.steps_done(), weights(&trainer)), (1, before.clone()));
        step_by_hand(&mut trainer, &[rows(4, 4)]);
        assert_ne!(weights(&trainer), before);
    }

    #[test]
    fn gradients_are_those_of_the_mean() {
        let mut trainer = trainer(4).build().unwrap();
        let mut step = trainer.begin_step();
        step.forward_backward(&rows(0, 4)).unwrap();
        let mut gradients = step.reduce().unwrap();
        assert!(gradients.is_finite().unwrap());
        let squares = |path| gradients.get(path).unwrap().iter().map(|g| f64::from(*g).powi(2)).sum::<f64>();
        let norm = (squares("net.w1") + squares("net.w2")).sqrt();
        let reported = gradients.norm().unwrap();
        assert!((norm / reported - 1.0).abs() < 1e-6, "{norm} is not {reported}");
        assert!(
            gradients.get("net.w3").unwrap_err().to_string().starts_with("K0836: the model has no parameter `net.w3`")
        );
    }

    #[test]
    fn a_step_without_targets_is_refused() {
        let mut trainer = trainer(4).build().unwrap();
        let nothing = (vec![0.0f32; 4 * FEATURES], vec![-1; 4]);
        assert!(matches!(trainer.begin_step().reduce(), Err(TrainError::NoTargets(1))));
        assert!(matches!(trainer.step(&nothing), Err(TrainError::NoTargets(1))));
        let mut step = trainer.begin_step();
        assert!(step.forward_backward(&nothing).unwrap().is_nan());
        step.forward_backward(&rows(0, 4)).unwrap();
        step.reduce().unwrap();
    }

    #[layer]
    fn turned(x: Tensor<B, P, H>, rope: Rope<P, H>) -> Tensor<B, P, H> {
        x.rope(rope)
    }

    #[test]
    fn a_root_has_no_rope() {
        let error =
            Session::<Turned>::new(sizes! { B = 2, P = 3, H = 4 }, DType::F32, Default::default(), 1).err().unwrap();
        assert!(error.to_string().starts_with("K0710: the root `turned` takes a `Rope` as `rope`"), "{error}");
    }

    #[test]
    fn batches_that_do_not_fit_are_refused() {
        let mut trainer = trainer(4).build().unwrap();
        let (x, class) = rows(0, 4);
        let message = |r: Result<_, TrainError>| r.map(|_: crate::trainer::StepReport| ()).unwrap_err().to_string();
        assert_eq!(message(trainer.step(&x)), "K0805: `classify` takes 2 inputs, the batch gives 1");
        assert_eq!(
            message(trainer.step(&(&x, &x))),
            "K0805: input `class` of `classify` takes ids, the batch gives floats"
        );
        assert_eq!(
            message(trainer.step(&(&x[1..], &class))),
            "K0805: input `x` of `classify` needs 12 elements, the batch has 11"
        );
        let mut session = trainer.session::<Logits>(sizes! { B = 2, P = FEATURES, H = 5, C = 4 }).unwrap();
        assert_eq!(session.forward(&[0.5; 2 * FEATURES]).unwrap().len(), 8);
        assert_eq!(
            session.forward(&class).unwrap_err().to_string(),
            "K0805: input `x` of `logits` takes floats, the batch gives ids"
        );
    }
}
