//! Launches of a training step that belong to no operation of a model: copies, the start of a run, gradient norms, optimizers.

use super::Memory;
use super::profile::{F32, U32};
use super::{Bound, Buffer, CubeDevice, CubeError, LibraryKernel};
use crate::device::{StepEnd, Update, mean};
use crate::exec::Run;
use crate::kernels::training::{REPORT, SQUARES_STRIDE};
use crate::optim::{AdamWStep, SgdStep};
use cubecl::ir::Type;
use kiln_compiler::ir::DType;
use std::time::{Duration, Instant};

/// Most cubes that share the squares of a range of gradients.
const SQUARES_CUBES: usize = 1024;
/// Elements of a unit, where there are few.
const SQUARES_EACH: usize = 64;

/// Where the streams of a plan stand, on the device.
pub struct Streams {
    /// Their constants.
    pub table: Buffer,
    /// What regions read.
    pub words: Buffer,
    /// Number of streams.
    pub n: usize,
}

/// A range of flat parameters: masters, gradients, and moments.
pub struct Range {
    /// Masters.
    pub params: Buffer,
    /// Gradients.
    pub grads: Buffer,
    /// One or two moments.
    pub moments: Vec<Buffer>,
    /// Weight decay applies.
    pub decays: bool,
}

fn f32s(buffer: &Buffer, width: usize) -> Bound<'_> {
    Bound { memory: &buffer.memory, len: buffer.len, ty: Type::new(F32).with_vector_size(width) }
}

fn words(memory: &Memory, len: usize) -> Bound<'_> {
    Bound { memory, len, ty: Type::new(U32) }
}

impl CubeDevice {
    /// Copies `len` words within the device.
    pub(super) fn copy_words(&self, from: &Memory, to: &Memory, len: usize) -> Result<(), CubeError> {
        let buffers = [words(from, len), words(to, len)];
        self.launch_units(LibraryKernel::CopyWords, len, &buffers, &[len], &[])
    }

    /// y = x or y += x, rounded to the type of y.
    pub(super) fn convert(&self, x: &Buffer, y: &Buffer, accumulate: bool) -> Result<(), CubeError> {
        let width = self.width_of(x.len);
        let kernel = LibraryKernel::Convert { types: [x.dtype, y.dtype], accumulate, width };
        let (buffers, vectors) = ([x, y].map(|b| self.bound(b)), x.len / width);
        let buffers = buffers.map(|b| Bound { ty: b.ty.with_vector_size(width), ..b });
        self.launch_units(kernel, vectors, &buffers, &[vectors], &[])
    }

    /// Mean time of `repeats` launches between two waits, after one that may compile.
    pub(super) fn time(
        &self,
        launch: impl Fn() -> Result<(), CubeError>,
        repeats: usize,
    ) -> Result<Duration, CubeError> {
        launch()?;
        self.sync()?;
        let begin = Instant::now();
        (0..repeats).try_for_each(|_| launch())?;
        self.sync()?;
        Ok(mean(begin.elapsed(), repeats))
    }

    /// Mean time of a copy of `elements` f32 from one buffer to another.
    ///
    /// # Errors
    /// [`CubeError`] if the device does not hold buffers of this size, or has failed.
    pub fn time_copy(&self, elements: usize, repeats: usize) -> Result<Duration, CubeError> {
        let (x, y) = (self.empty(DType::F32, elements)?, self.empty(DType::F32, elements)?);
        self.fill(&x, 1.0)?;
        self.time(|| self.convert(&x, &y, false), repeats)
    }

    /// y = value.
    pub(super) fn fill(&self, y: &Buffer, value: f32) -> Result<(), CubeError> {
        let width = self.width_of(y.len);
        let vectors = y.len / width;
        self.launch_units(LibraryKernel::Fill { width }, vectors, &[f32s(y, width)], &[vectors], &[value])
    }

    /// The widest vectors that cut `len` elements without rest.
    pub(super) fn width_of(&self, len: usize) -> usize {
        let fits = |w: &usize| len.is_multiple_of(*w);
        (0..=self.profile.shape.width.ilog2()).rev().map(|bits| 1 << bits).find(fits).unwrap_or(1)
    }

    /// Sets the streams and the loss scale of a run.
    pub(super) fn start(&self, streams: &Streams, scale: &Buffer, run: Run) -> Result<(), CubeError> {
        let Streams { table, words: places, n } = streams;
        let buffers = [words(&table.memory, table.len), words(&places.memory, places.len), f32s(scale, 1)];
        let (low, high) = (run.step as u32 as usize, (run.step >> 32) as usize);
        let indices = [*n, low, high, run.part];
        self.launch_units(LibraryKernel::Start, *n, &buffers, &indices, &[run.loss_scale])
    }

    /// Adds a micro-batch's loss and targets to the report.
    pub(super) fn collect(&self, [loss, count]: [&Buffer; 2], report: &Buffer, first: bool) -> Result<(), CubeError> {
        let buffers = [loss, count, report].map(|b| f32s(b, 1));
        self.launch_units(LibraryKernel::Collect { first }, 1, &buffers, &[], &[])
    }

    /// Cubes that sum the squares of a range.
    fn squares_cubes(&self, range: &Range) -> usize {
        let each = SQUARES_EACH * self.profile.shape.row_units as usize;
        range.grads.len.div_ceil(each).clamp(1, SQUARES_CUBES)
    }

    /// Numbers that the squares of all ranges leave.
    pub(super) fn squares_len(&self, ranges: &[Range]) -> usize {
        ranges.iter().map(|r| self.squares_cubes(r)).sum::<usize>() * SQUARES_STRIDE
    }

    /// Sums the squares of every range, each in parts; returns the number of places that hold parts.
    pub(super) fn squares(&self, ranges: &[Range], partial: &Buffer) -> Result<usize, CubeError> {
        let mut first = 0;
        for r in ranges {
            let cubes = self.squares_cubes(r);
            let width = self.width_of(r.grads.len);
            let buffers = [f32s(&r.grads, width), f32s(partial, 1)];
            self.launch_cubes(LibraryKernel::Squares { width }, cubes, &buffers, &[r.grads.len / width, first], &[])?;
            first += cubes;
        }
        Ok(first)
    }

    /// Ends a report with the norm of the gradient.
    pub(super) fn close(
        &self,
        partial: &Buffer,
        places: usize,
        report: &Buffer,
        end: &StepEnd,
    ) -> Result<(), CubeError> {
        let kernel = LibraryKernel::Close { skips_overflow: end.skips_overflow };
        let buffers = [f32s(partial, 1), f32s(report, 1)];
        let scalars = [1.0 / end.loss_scale, end.max_norm.map_or(0.0, |n| n as f32)];
        self.launch_cubes(kernel, 1, &buffers, &[places], &scalars)
    }

    /// Sets the factor of the gradient by hand.
    pub(super) fn set_factor(&self, report: &Buffer, factor: f32) -> Result<(), CubeError> {
        self.launch_units(LibraryKernel::Factor, 1, &[f32s(report, 1)], &[], &[factor])
    }

    /// One optimizer step over a range, with the factor of the report.
    pub(super) fn optimize(&self, range: &Range, report: &Buffer, update: &Update) -> Result<(), CubeError> {
        let width = self.width_of(range.params.len);
        let vectors = range.params.len / width;
        let mut buffers = vec![f32s(&range.params, width), f32s(&range.grads, width)];
        buffers.extend(range.moments.iter().map(|m| f32s(m, width)));
        buffers.push(f32s(report, 1));
        let group = Update::group(range.decays);
        let (kernel, scalars) = match update {
            Update::AdamW(s) => {
                let AdamWStep {
                    decay, one_minus_beta1, beta2, one_minus_beta2, step_size, inv_sqrt_bias2, eps, ..
                } = s[group];
                let scalars = vec![decay, one_minus_beta1, beta2, one_minus_beta2, step_size, inv_sqrt_bias2, eps];
                (LibraryKernel::AdamW { width }, scalars)
            }
            Update::Sgd(s) => {
                let SgdStep { weight_decay, momentum, nesterov, lr, .. } = s[group];
                (LibraryKernel::Sgd { nesterov, width }, vec![weight_decay, momentum, lr])
            }
        };
        self.launch_units(kernel, vectors, &buffers, &[vectors], &scalars)
    }

    /// A report that says nothing yet.
    pub(super) fn report(&self) -> Result<Buffer, CubeError> {
        self.upload(DType::F32, &[0.0; REPORT])
    }
}
