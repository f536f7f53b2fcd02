//! Session: inference over saved parameters. A root layer, sizes and a state file become a function.

use crate::batch::{self, HostBatch};
use crate::decoder::{DecodeError, Decoder};
use crate::device::Target;
use crate::exec::comm::Member;
use crate::exec::{Engine, EngineOptions, Kind, Mode, Run};
use crate::layer::Layer;
use crate::link::{self, Keep, LinkOptions, Model};
use crate::plan;
use crate::state::{State, TensorData};
use crate::trainer::TrainError;
use kiln_compiler::ir::{ConfigValue, DType, Sizes};
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::path::Path;

/// An inference session of the root layer `L`.
pub struct Session<L> {
    model: Model,
    engine: Engine,
    target: Target,
    threads: usize,
    root: PhantomData<fn() -> L>,
}

impl<L: Layer> Session<L> {
    /// Plans forward for these sizes and loads the parameters from a state file; other tensors of it are not read.
    ///
    /// # Errors
    /// [`TrainError`] names the first parameter that is missing or has another shape.
    pub fn load(path: impl AsRef<Path>, sizes: Sizes) -> Result<Session<L>, TrainError> {
        let state = State::load(path.as_ref())?;
        let mut session = Session::new(sizes, DType::F32, BTreeMap::new(), 0)?;
        session.set_params(&state)?;
        Ok(session)
    }

    /// A session on the host with initial parameters, to be set by [`Session::set_params`].
    ///
    /// # Errors
    /// [`TrainError`] if the model does not link or fit.
    pub fn new(
        sizes: Sizes,
        precision: DType,
        config: BTreeMap<String, ConfigValue>,
        threads: usize,
    ) -> Result<Session<L>, TrainError> {
        Session::on(Target::Host, sizes, precision, config, threads)
    }

    /// As [`Session::new`], on another device; `threads` are the host's.
    ///
    /// # Errors
    /// [`TrainError`] if the model does not link or the device cannot run it.
    pub fn on(
        target: Target,
        sizes: Sizes,
        precision: DType,
        config: BTreeMap<String, ConfigValue>,
        threads: usize,
    ) -> Result<Session<L>, TrainError> {
        let options = LinkOptions { sizes: sizes.clone(), config, precision, keep: Keep::Everything, tensor: (1, 0) };
        let model = link::link(L::DEF, &options)?;
        let forward = plan::build_forward(&model, &sizes, target.memory());
        let decays = vec![false; model.params.len()];
        let options = EngineOptions { target: target.clone(), threads, seed: 0, n_moments: 0, decays, poison: false };
        let mut engine = Engine::new(&model, None, forward, &options, Member::alone())?;
        engine.initialise(&model, 0)?;
        Ok(Session { model, engine, target, threads, root: PhantomData })
    }

    /// Takes the parameters of a state.
    ///
    /// # Errors
    /// [`TrainError::State`] names the first that is missing or has another shape; nothing is then changed.
    pub fn set_params(&mut self, state: &State<'_>) -> Result<(), TrainError> {
        let own: std::collections::BTreeSet<&str> = self.model.params.iter().map(|p| p.path.as_str()).collect();
        let tensors = state.tensors.iter().filter(|(n, _)| own.contains(n.as_str()));
        let kept = State { tensors: tensors.map(|(n, t)| (n.clone(), t.clone())).collect(), meta: BTreeMap::new() };
        kept.check_fits("", self.model.params.iter().map(|p| (p.path.as_str(), p.dims.as_slice())))?;
        for (i, p) in self.model.params.iter().enumerate() {
            let values = kept.tensors.get(&p.path).and_then(TensorData::as_f32).unwrap_or_default();
            self.engine.set_values(Kind::Weight, i, values)?;
        }
        Ok(self.engine.device_mut().write_shadows()?)
    }

    /// Runs forward and returns the first output, row-major.
    ///
    /// # Errors
    /// [`TrainError::Inputs`], [`TrainError::Kind`] or [`TrainError::Batch`] if the batch is not what the root takes.
    pub fn forward(&mut self, batch: &(impl HostBatch + ?Sized)) -> Result<Vec<f32>, TrainError> {
        let inputs = batch.inputs();
        batch::check(&self.model, self.engine.plan(Mode::Evaluate), 1, &inputs)?;
        self.engine.write_inputs(Mode::Evaluate, &inputs)?;
        self.engine.run(Mode::Evaluate, Run { step: 0, micro: 0, part: 0, loss_scale: 1.0 })?;
        Ok(self.engine.output(Mode::Evaluate, 0)?)
    }

    /// A decoder with the parameters of this moment, which computes one position after the other and keeps keys and values. It is
    /// independent of the session, which may be dropped or run on. There may be as many positions as the sequence has in the session's
    /// sizes.
    ///
    /// # Errors
    /// [`DecodeError::Refused`] if positions meet in something else than `attend(.., Causal)`, or the root takes more than ids or returns
    /// no value for each position; [`DecodeError::Device`] if the session is not on the host, or memory or threads are refused.
    pub fn decoder(&self) -> Result<Decoder<L>, DecodeError> {
        match &self.target {
            Target::Host => Decoder::new(&self.model, &self.engine, self.threads),
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            Target::Gpu(_) => {
                let what = "does not decode: make the session on the host".to_owned();
                Err(crate::device::DeviceError::Unsupported { device: self.target.name(), what }.into())
            }
        }
    }
}
