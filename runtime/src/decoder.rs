//! Decoder: a root whose positions meet in causal attention, computed one position after the other. Ids in, the newest logits out.

use crate::device::DeviceError;
use crate::device::host::decode::HostDecoder;
use crate::exec::layout::{FlatLayout, ParamShape};
use crate::exec::{Engine, Kind};
use crate::layer::Layer;
use crate::link::{Model, Param};
use crate::plan::decode::{DecodeRefusal, build_decode};
use crate::plan::{IdError, IdLimit, Memory};
use std::marker::PhantomData;

/// Why a decoder cannot be built, or does not take ids.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The root is none that can be decoded.
    #[error(transparent)]
    Refused(#[from] DecodeRefusal),
    /// The device cannot decode, or has failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// More positions than caches hold. Nothing was computed.
    #[error(
        "K0871: {pushed} more positions after {held} are more than the {capacity} that the sequence has; call `reset`, and push what shall be kept"
    )]
    Full {
        /// Positions that there may be.
        capacity: usize,
        /// Positions computed.
        held: usize,
        /// Positions of the push.
        pushed: usize,
    },
    /// Ids that are no whole positions. Nothing was computed.
    #[error(
        "K0872: {ids} ids are no whole positions of {rows} rows: give the ids of row 0, then those of row 1, .., and at least one each"
    )]
    Uneven {
        /// Ids given.
        ids: usize,
        /// Rows of a batch.
        rows: usize,
    },
    /// An id without an entry. Nothing was computed.
    #[error(transparent)]
    Id(#[from] IdError),
}

/// A root with caches of the keys and values of all positions so far. Each position costs as much as the whole of a forward pass costs
/// divided by its positions, and allocates nothing.
///
/// Numbers are those of [`crate::session::Session::forward`] up to the rounding of sums: products and attention add in another order.
pub struct Decoder<L> {
    device: HostDecoder,
    rows: usize,
    capacity: usize,
    position: usize,
    input: String,
    limit: Option<IdLimit>,
    /// One id for each row.
    ids: Vec<i32>,
    logits: Vec<f32>,
    root: PhantomData<fn() -> L>,
}

impl<L: Layer> Decoder<L> {
    /// Plans, allocates, and copies the parameters of a session's engine.
    pub(crate) fn new(model: &Model, engine: &Engine, threads: usize) -> Result<Decoder<L>, DecodeError> {
        let decode = build_decode(model, Memory::HOST)?;
        let plan = &decode.plan;
        let (input, limit) = (plan.buffers[plan.inputs[0]].name.clone(), plan.id_limits[0].clone());
        let (rows, capacity) = (decode.rows, decode.capacity);
        let shape = |p: &Param| ParamShape { len: p.len(), frozen: true, decays: false, split: false };
        let params: Vec<ParamShape> = model.params.iter().map(shape).collect();
        let mut device = HostDecoder::open(decode, FlatLayout::new(&params, Memory::HOST), threads)?;
        for i in 0..params.len() {
            device.set_param(i, &engine.values(Kind::Weight, i)?);
        }
        device.write_shadows();
        let logits = vec![0.0; device.output_len()];
        let ids = vec![0; rows];
        Ok(Decoder { device, rows, capacity, position: 0, input, limit, ids, logits, root: PhantomData })
    }
}

impl<L> Decoder<L> {
    /// Computes the positions of `ids` (`B`, n; row-major), which follow those of earlier calls, and returns the first output of the last
    /// of them (`B`, .. without the sequence).
    ///
    /// # Errors
    /// [`DecodeError::Full`] if they are more than are left, [`DecodeError::Uneven`] if they are no whole positions, [`DecodeError::Id`]
    /// if one of them has no entry. The decoder is then as it was.
    pub fn push(&mut self, ids: &[i32]) -> Result<&[f32], DecodeError> {
        let (rows, held) = (self.rows, self.position);
        let pushed = ids.len() / rows;
        if pushed == 0 || !ids.len().is_multiple_of(rows) {
            return Err(DecodeError::Uneven { ids: ids.len(), rows });
        }
        if pushed > self.remaining() {
            return Err(DecodeError::Full { capacity: self.capacity, held, pushed });
        }
        if let Some(limit) = &self.limit {
            limit.check(&self.input, ids)?;
        }
        for t in 0..pushed {
            for (row, id) in self.ids.iter_mut().enumerate() {
                *id = ids[row * pushed + t];
            }
            // Only what follows the last of them is asked for.
            let out = (t + 1 == pushed).then_some(self.logits.as_mut_slice());
            self.device.run(held + t, &self.ids, out);
            self.position += 1;
        }
        Ok(&self.logits)
    }

    /// Forgets all positions.
    pub fn reset(&mut self) {
        self.position = 0;
    }

    /// Positions computed since the start or the last [`Decoder::reset`].
    pub fn position(&self) -> usize {
        self.position
    }

    /// Positions that there may be: the size of the sequence in the session.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Positions that may follow.
    pub fn remaining(&self) -> usize {
        self.capacity - self.position
    }

    /// Bytes of parameters, intermediate values and caches.
    pub fn bytes(&self) -> usize {
        self.device.bytes()
    }
}
