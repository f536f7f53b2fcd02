//! Launches of library operations: plans built once from shapes, whose runs enqueue one launch or a few and take
//! scratch where the caller says.
//!
//! In: axes, sizes and element types. Out: results with the bits that sizes alone determine. Never waits for the device.

use super::product::VendorDot;
use super::profile::U32;
use super::scratch::Scratch;
use super::{Barriers, Bound, Buffer, CubeDevice, CubeError, LibraryKernel, Memory};
use crate::kernels::library::{DOT_BLOCK, SORT_CHUNK};
use crate::plan::arena::align;
use cubecl::ir::Type;
use kiln_compiler::ir::{Axis, DType, Sizes};

/// Offsets of `dot_general`: for each index tuple of a group of axes the position in the operands and the result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DotTables {
    pub(super) batch: [Vec<u32>; 3],
    pub(super) row: [Vec<u32>; 2],
    pub(super) k: [Vec<u32>; 2],
    pub(super) col: [Vec<u32>; 2],
}

/// Positions of all index tuples of `axes`, row-major, in a contiguous tensor over `shape`.
fn offsets(axes: &[Axis], shape: &[Axis], sizes: &Sizes) -> Vec<u32> {
    let mut at = vec![0];
    for &axis in axes {
        let place = shape.iter().position(|&a| a == axis);
        let stride = place.map_or(0, |p| sizes.elements(&shape[p + 1..]));
        at = at.iter().flat_map(|&base| (0..sizes.of(axis)).map(move |i| base + (i * stride) as u32)).collect();
    }
    at
}

/// `0, step, 2·step, ..`
fn steps(n: usize, step: usize) -> Vec<u32> {
    (0..n).map(|i| (i * step) as u32).collect()
}

impl DotTables {
    /// The product of tensors over `a` and `b` that gives one over `c`: axes of both that are not in `c` are summed.
    ///
    /// # Errors
    /// The axis of `c` that neither operand has, or the axis of one operand alone that `c` lacks.
    pub fn new(a: &[Axis], b: &[Axis], c: &[Axis], sizes: &Sizes) -> Result<DotTables, Axis> {
        let group = |keep: &dyn Fn(&Axis) -> bool| -> Vec<Axis> { c.iter().copied().filter(|x| keep(x)).collect() };
        let batch = group(&|x| a.contains(x) && b.contains(x));
        let row = group(&|x| a.contains(x) && !b.contains(x));
        let col = group(&|x| b.contains(x) && !a.contains(x));
        let k: Vec<Axis> = a.iter().copied().filter(|x| b.contains(x) && !c.contains(x)).collect();
        let unknown = c.iter().find(|x| !a.contains(x) && !b.contains(x));
        let lost = a.iter().chain(b).find(|x| !(c.contains(x) || a.contains(x) && b.contains(x)));
        if let Some(&axis) = unknown.or(lost) {
            return Err(axis);
        }
        let at = |axes: &[Axis], shape: &[Axis]| offsets(axes, shape, sizes);
        Ok(DotTables {
            batch: [at(&batch, a), at(&batch, b), at(&batch, c)],
            row: [at(&row, a), at(&row, c)],
            k: [at(&k, a), at(&k, b)],
            col: [at(&col, b), at(&col, c)],
        })
    }

    /// Whether there is nothing to compute, or nothing to sum.
    pub(super) fn is_empty(&self) -> bool {
        self.extents().contains(&0)
    }

    /// batches, M, N, K.
    fn extents(&self) -> [usize; 4] {
        [self.batch[0].len(), self.row[0].len(), self.col[0].len(), self.k[0].len()]
    }

    /// Whether neighbours in memory of a and of b lie along the contracted axes.
    fn along_k(&self) -> [bool; 2] {
        self.k.each_ref().map(|k| k.len() > 1 && k[1] == k[0] + 1)
    }

    /// In the order that the kernel reads.
    fn words(&self) -> Vec<u8> {
        let [a, b, c] = &self.batch;
        let all = [a, b, c, &self.row[0], &self.row[1], &self.k[0], &self.k[1], &self.col[0], &self.col[1]];
        all.into_iter().flatten().flat_map(|x| x.to_le_bytes()).collect()
    }
}

/// A planned `dot_general`.
#[derive(Clone, Debug)]
pub struct Dot {
    way: Way,
    extents: [usize; 4],
    /// Whether neighbours of a and of b lie along the contracted axes.
    along_k: [bool; 2],
    types: [DType; 3],
    round: Option<DType>,
}

/// Who computes it.
#[derive(Clone, Debug)]
enum Way {
    /// The vendor's library.
    Vendor(Box<VendorDot>),
    /// Kiln's kernels, which read offsets from a table of so many words.
    Table(Memory, usize),
}

impl Dot {
    fn is_vendor(&self) -> bool {
        matches!(self.way, Way::Vendor(_))
    }

    /// Scratch that a run takes, in bytes.
    pub(super) fn scratch_bytes(&self) -> usize {
        match &self.way {
            Way::Vendor(dot) => dot.scratch_bytes(),
            Way::Table(..) => 0,
        }
    }
}

/// A planned `attention` or its derivative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attention {
    heads: usize,
    group: usize,
    s: usize,
    t: usize,
    pub(super) head: usize,
    pub(super) causal: bool,
}

/// A planned `linear_cross_entropy` or its derivative: products of chunks of rows.
#[derive(Clone, Debug)]
pub struct Loss {
    rows: usize,
    vocab: usize,
    /// What the cotangents of logits are rounded to: the operands' type for tensor cores, f32 elsewhere.
    gradient: DType,
    chunks: Vec<LossChunk>,
}

/// One chunk of rows: its logits, and its parts of x̄ and w̄.
#[derive(Clone, Debug)]
struct LossChunk {
    first: usize,
    rows: usize,
    logits: Dot,
    dx: Dot,
    dw: Dot,
}

/// What the derivative of the loss reads and writes beside the loss.
#[derive(Clone, Copy, Debug)]
pub struct LossBackward<'a> {
    /// s̄.
    pub d_sum: &'a Buffer,
    /// x̄.
    pub dx: &'a Buffer,
    /// w̄.
    pub dw: &'a Buffer,
    /// w̄ is added to.
    pub accumulate: bool,
}

/// A planned `sort_index`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sort {
    /// Number of ids.
    pub ids: usize,
    /// Ids are below it.
    pub bins: usize,
}

impl Sort {
    fn chunks(&self) -> usize {
        self.ids.div_ceil(SORT_CHUNK)
    }

    /// Scratch that a run takes, in bytes.
    pub(super) fn scratch_bytes(&self) -> usize {
        let numbers = |n: usize| align(n * size_of::<i32>());
        numbers(self.ids) + numbers(self.chunks() * self.bins) + numbers(self.bins)
    }
}

/// A planned move of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    rows: usize,
    x_row: usize,
    y_row: usize,
    from: usize,
    to: usize,
    len: usize,
    clear: bool,
}

impl Attention {
    /// Queries over prefix ++ \[R\]? ++ \[S, K\] and keys over prefix ++ \[T, K\].
    pub fn new(q: &[Axis], k: &[Axis], sizes: &Sizes, causal: bool) -> Attention {
        let last = |shape: &[Axis], from_end: usize| sizes.of(shape[shape.len() - from_end]);
        let heads = sizes.elements(&q[..q.len() - 2]);
        let groups = sizes.elements(&k[..k.len() - 2]);
        Attention { heads, group: heads / groups.max(1), s: last(q, 2), t: last(k, 2), head: last(q, 1), causal }
    }

    /// Whether query `i` sees key `j`.
    pub fn sees(&self, i: usize, j: usize) -> bool {
        !self.causal || j + self.s <= i + self.t
    }

    /// Heads, heads of a group, S and T.
    pub fn indices(&self) -> [usize; 4] {
        [self.heads, self.group, self.s, self.t]
    }

    /// Scratch that the derivative takes, in bytes.
    pub(super) fn scratch_bytes(&self) -> usize {
        align(self.heads * self.s * size_of::<f32>())
    }

    pub(super) fn scale(&self) -> f32 {
        (1.0 / (self.head as f64).sqrt()) as f32
    }
}

impl Loss {
    /// What the cotangents of logits are rounded to.
    pub fn gradient(&self) -> DType {
        self.gradient
    }

    fn logits_len(&self) -> usize {
        self.chunks.iter().map(|c| c.rows).max().unwrap_or(0) * self.vocab
    }

    /// Scratch that a run takes, in bytes.
    pub(super) fn scratch_bytes(&self) -> usize {
        let logits = align(self.logits_len() * size_of::<f32>());
        // The rounded cotangents are no wider than the logits.
        let rounded = if self.gradient == DType::F32 { 0 } else { logits };
        let dots = self.chunks.iter().flat_map(|c| [&c.logits, &c.dx, &c.dw]).map(Dot::scratch_bytes).sum::<usize>();
        logits + rounded + dots + 2 * align(self.rows * size_of::<f32>())
    }
}

impl Window {
    /// `len` positions of an axis with `inner` elements each, from position `from` of `x_size` to position `to` of `y_size`, for each of
    /// `outer` rows; `clear` writes zeros beside it.
    pub fn new(outer: usize, inner: usize, x: (usize, usize), y: (usize, usize), len: usize, clear: bool) -> Window {
        let ((x_size, from), (y_size, to)) = (x, y);
        Window {
            rows: outer,
            x_row: x_size * inner,
            y_row: y_size * inner,
            from: from * inner,
            to: to * inner,
            len: len * inner,
            clear,
        }
    }
}

impl CubeDevice {
    pub(super) fn bound<'a>(&self, buffer: &'a Buffer) -> Bound<'a> {
        Bound { memory: &buffer.memory, len: buffer.len, ty: Type::new(self.storage(buffer.dtype)) }
    }

    /// One unit for each of `units`.
    pub(super) fn launch_units(
        &self,
        kernel: LibraryKernel,
        units: usize,
        buffers: &[Bound<'_>],
        indices: &[usize],
        scalars: &[f32],
    ) -> Result<(), CubeError> {
        let spec = self.profile.library(&kernel);
        let cubes = units.div_ceil(spec.cube_dim as usize).max(1);
        self.launch(&spec, kernel.define(), cubes, buffers, indices, scalars)
    }

    /// Cubes whose units work together.
    pub(super) fn launch_cubes(
        &self,
        kernel: LibraryKernel,
        cubes: usize,
        buffers: &[Bound<'_>],
        indices: &[usize],
        scalars: &[f32],
    ) -> Result<(), CubeError> {
        self.launch(&self.profile.library(&kernel), kernel.define(), cubes, buffers, indices, scalars)
    }

    /// A table on the device; the same content is sent once.
    pub(super) fn table(&self, words: &[u8]) -> Result<Memory, CubeError> {
        let mut tables = self.tables.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(known) = tables.get(words) {
            return Ok(known.clone());
        }
        let table = self.send(words)?;
        tables.insert(words.into(), table.clone());
        Ok(table)
    }

    /// Finds out who computes a product, and uploads the table of offsets if Kiln's kernels do. `types` are those of a, b and c; sums are rounded to `round` before they are stored.
    ///
    /// # Errors
    /// [`CubeError`] if the device has failed.
    pub fn prepare_dot(&self, tables: &DotTables, types: [DType; 3], round: Option<DType>) -> Result<Dot, CubeError> {
        let way = match self.vendor_dot(tables, types, round)? {
            Some(dot) => Way::Vendor(Box::new(dot)),
            None => {
                let words = tables.words();
                Way::Table(self.table(&words)?, words.len() / size_of::<u32>())
            }
        };
        Ok(Dot { way, extents: tables.extents(), along_k: tables.along_k(), types, round })
    }

    /// c = a·b, or c += a·b.
    ///
    /// # Errors
    /// [`CubeError`] if the launch is refused.
    pub fn dot(
        &self,
        dot: &Dot,
        [a, b, c]: [&Buffer; 3],
        accumulate: bool,
        scratch: &mut Scratch,
    ) -> Result<(), CubeError> {
        let (table, len) = match &dot.way {
            Way::Vendor(vendor) => return self.run_vendor_dot(vendor, [a, b, c], accumulate, scratch),
            Way::Table(table, len) => (table, *len),
        };
        let table = Bound { memory: table, len, ty: Type::new(U32) };
        let buffers = [self.bound(a), self.bound(b), table, self.bound(c)];
        let [batches, m, n, _] = dot.extents;
        let tiles = |tile: usize| batches * m.div_ceil(tile) * n.div_ceil(tile);
        let Dot { types, round, along_k, .. } = *dot;
        match self.profile.shape.barriers {
            Barriers::Dear => {
                let kernel = LibraryKernel::DotGeneral { types, round, accumulate };
                self.launch_units(kernel, tiles(DOT_BLOCK), &buffers, &dot.extents, &[])
            }
            Barriers::Cheap => {
                let kernel = LibraryKernel::DotGeneralTiled { types, round, accumulate, along_k };
                let side = self.profile.square_side();
                self.launch_cubes(kernel, tiles(side * DOT_BLOCK).max(1), &buffers, &dot.extents, &[])
            }
        }
    }

    /// o and lse of q, k and v; o is rounded to `round` before it is stored.
    ///
    /// # Errors
    /// [`CubeError`] if the launch is refused.
    pub fn attention(
        &self,
        plan: &Attention,
        [q, k, v]: [&Buffer; 3],
        [o, lse]: [&Buffer; 2],
        round: Option<DType>,
    ) -> Result<(), CubeError> {
        if let Some(tiles) = self.attention_tiles(plan, &[q, k, v]) {
            return self.attention_by(tiles, plan, [q, k, v], [o, lse], round);
        }
        let types = [q.dtype, k.dtype, v.dtype, o.dtype];
        let Attention { head, causal, .. } = *plan;
        let kernel = LibraryKernel::Attention { types, round, head, causal };
        let buffers = [q, k, v, o, lse].map(|b| self.bound(b));
        let units = plan.heads * plan.s;
        self.launch_units(kernel, units, &buffers, &plan.indices(), &[plan.scale()])
    }

    /// q̄, k̄ and v̄ of q, k, v, o, lse and ō; each is rounded before it is stored.
    ///
    /// # Errors
    /// [`CubeError`] if a launch is refused.
    pub fn attention_vjp(
        &self,
        plan: &Attention,
        [q, k, v, o, lse, d_o]: [&Buffer; 6],
        [d_q, d_k, d_v]: [&Buffer; 3],
        rounds: [Option<DType>; 3],
        scratch: &mut Scratch,
    ) -> Result<(), CubeError> {
        let Attention { head, causal, .. } = *plan;
        let delta = scratch.take(self, DType::F32, plan.heads * plan.s)?;
        if let Some(tiles) = self.attention_tiles(plan, &[q, k, v, o, d_o]) {
            return self.attention_vjp_by(tiles, plan, [q, k, v, o, lse, d_o], [d_q, d_k, d_v], rounds, &delta);
        }
        let types = [q.dtype, k.dtype, o.dtype, d_q.dtype];
        let kernel = LibraryKernel::AttentionQueries { types, round: rounds[0], head, causal };
        let buffers = [q, k, v, o, lse, d_o, d_q, &delta].map(|b| self.bound(b));
        let (indices, scale) = (plan.indices(), [plan.scale()]);
        let units = plan.heads * plan.s;
        self.launch_units(kernel, units, &buffers, &indices, &scale)?;
        let types = [q.dtype, k.dtype, o.dtype, d_k.dtype];
        let kernel = LibraryKernel::AttentionKeys { types, rounds: [rounds[1], rounds[2]], head, causal };
        let buffers = [q, k, v, lse, d_o, &delta, d_k, d_v].map(|b| self.bound(b));
        let units = plan.heads / plan.group.max(1) * plan.t;
        self.launch_units(kernel, units, &buffers, &indices, &scale)
    }

    /// Plans the loss of `rows` rows of x against a `vocab` × D weight, all of the given types. `rounds` are those of x̄ and w̄.
    ///
    /// # Errors
    /// [`CubeError`] if the device has failed.
    pub fn prepare_loss(
        &self,
        [rows, vocab, d]: [usize; 3],
        [x, w, dx, dw]: [DType; 4],
        rounds: [Option<DType>; 2],
    ) -> Result<Loss, CubeError> {
        let most = (self.profile.shape.logits / vocab.max(1)).clamp(1, rows.max(1));
        let (mut chunks, mut gradient) = (Vec::new(), DType::F32);
        for first in (0..rows).step_by(most) {
            let n = most.min(rows - first);
            let start = (first * d) as u32;
            let logits = DotTables {
                batch: [vec![start], vec![0], vec![0]],
                row: [steps(n, d), steps(n, vocab)],
                k: [steps(d, 1), steps(d, 1)],
                col: [steps(vocab, d), steps(vocab, 1)],
            };
            let of_x = DotTables {
                batch: [vec![0], vec![0], vec![start]],
                row: [steps(n, vocab), steps(n, d)],
                k: [steps(vocab, 1), steps(vocab, d)],
                col: [steps(d, 1), steps(d, 1)],
            };
            let of_w = DotTables {
                batch: [vec![0], vec![start], vec![0]],
                row: [steps(vocab, 1), steps(vocab, d)],
                k: [steps(n, vocab), steps(n, d)],
                col: [steps(d, 1), steps(d, 1)],
            };
            let logits = self.prepare_dot(&logits, [x, w, DType::F32], None)?;
            gradient = if logits.is_vendor() { x } else { DType::F32 };
            chunks.push(LossChunk {
                first,
                rows: n,
                logits,
                dx: self.prepare_dot(&of_x, [gradient, w, dx], rounds[0])?,
                dw: self.prepare_dot(&of_w, [gradient, x, dw], rounds[1])?,
            });
        }
        Ok(Loss { rows, vocab, gradient, chunks })
    }

    /// sum, count and lse of x, w and targets.
    ///
    /// # Errors
    /// [`CubeError`] if a launch is refused.
    pub fn loss(
        &self,
        plan: &Loss,
        operands: [&Buffer; 3],
        [sum, count, lse]: [&Buffer; 3],
        scratch: &mut Scratch,
    ) -> Result<(), CubeError> {
        self.loss_chunks(plan, operands, lse, Some([sum, count]), None, scratch)
    }

    /// x̄ and w̄ of x, w, targets, lse and s̄; w̄ may be added to.
    ///
    /// # Errors
    /// [`CubeError`] if a launch is refused.
    pub fn loss_vjp(
        &self,
        plan: &Loss,
        [x, w, targets, lse, d_sum]: [&Buffer; 5],
        [dx, dw]: [&Buffer; 2],
        accumulate: bool,
        scratch: &mut Scratch,
    ) -> Result<(), CubeError> {
        let backward = LossBackward { d_sum, dx, dw, accumulate };
        self.loss_chunks(plan, [x, w, targets], lse, None, Some(backward), scratch)
    }

    /// Both at once, where s̄ is known: each chunk of logits is computed once (Hsu et al. 2024, "Liger Kernel").
    ///
    /// # Errors
    /// [`CubeError`] if a launch is refused.
    pub fn loss_with_vjp(
        &self,
        plan: &Loss,
        operands: [&Buffer; 3],
        [sum, count, lse]: [&Buffer; 3],
        backward: LossBackward<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), CubeError> {
        self.loss_chunks(plan, operands, lse, Some([sum, count]), Some(backward), scratch)
    }

    /// Chunk by chunk: logits; with `sums` their lse and losses; with `backward` their cotangents and products.
    fn loss_chunks(
        &self,
        plan: &Loss,
        [x, w, targets]: [&Buffer; 3],
        lse: &Buffer,
        sums: Option<[&Buffer; 2]>,
        backward: Option<LossBackward<'_>>,
        scratch: &mut Scratch,
    ) -> Result<(), CubeError> {
        let logits = scratch.take(self, DType::F32, plan.logits_len())?;
        let rounded = match (&backward, plan.gradient) {
            (None, _) | (_, DType::F32) => None,
            (Some(_), to) => Some(scratch.take(self, to, plan.logits_len())?),
        };
        let of_rows = match sums {
            Some(_) => Some([scratch.take(self, DType::F32, plan.rows)?, scratch.take(self, DType::F32, plan.rows)?]),
            None => None,
        };
        let width = self.width_of(plan.vocab);
        let vectors = |b: &Buffer| self.bound(b).ty.with_vector_size(width);
        for (i, chunk) in plan.chunks.iter().enumerate() {
            self.dot(&chunk.logits, [x, w, &logits], false, scratch)?;
            let of_logits = Bound { ty: vectors(&logits), ..self.bound(&logits) };
            let [of_targets, of_lse] = [targets, lse].map(|b| self.bound(b));
            let indices = [chunk.first, chunk.rows, plan.vocab / width];
            let mut buffers = vec![of_logits, of_targets, of_lse];
            if let Some(of_rows) = &of_rows {
                buffers.extend(of_rows.iter().map(|b| self.bound(b)));
            }
            let cubes = chunk.rows.clamp(1, self.profile.max_cubes());
            let rows = || self.launch_cubes(LibraryKernel::LossRows { width }, cubes, &buffers, &indices, &[]);
            let Some(LossBackward { d_sum, dx, dw, accumulate }) = backward else {
                rows()?;
                continue;
            };
            let of_rounded = rounded.as_ref().map(|b| Bound { ty: vectors(b), ..self.bound(b) });
            if let (Some(_), Some(of_rounded)) = (&of_rows, of_rounded) {
                buffers.extend([self.bound(d_sum), of_rounded]);
                let kernel = LibraryKernel::LossRowsRounded { to: plan.gradient, width };
                // One cube for each multiprocessor: their rows fit into the cache.
                let cubes = self.profile.processors().clamp(1, chunk.rows.max(1));
                self.launch_cubes(kernel, cubes, &buffers, &indices, &[])?;
            } else {
                if of_rows.is_some() {
                    rows()?;
                }
                let mut buffers = vec![of_logits, of_targets, of_lse, self.bound(d_sum)];
                buffers.extend(of_rounded);
                let kernel = match of_rounded {
                    None => LibraryKernel::LossGradient { width },
                    Some(_) => LibraryKernel::LossGradientRounded { to: plan.gradient, width },
                };
                self.launch_units(kernel, chunk.rows * plan.vocab / width, &buffers, &indices, &[])?;
            }
            let d_logits = rounded.as_ref().unwrap_or(&logits);
            self.dot(&chunk.dx, [d_logits, w, dx], false, scratch)?;
            self.dot(&chunk.dw, [d_logits, x, dw], accumulate || i > 0, scratch)?;
        }
        let (Some([sum, count]), Some([losses, counts])) = (sums, &of_rows) else { return Ok(()) };
        let buffers = [losses, counts, sum, count].map(|b| self.bound(b));
        self.launch_cubes(LibraryKernel::LossSum, 1, &buffers, &[plan.rows], &[])
    }

    /// order, starts and ends of ids below `bins`.
    ///
    /// # Errors
    /// [`CubeError`] if a launch is refused.
    pub fn sort_index(
        &self,
        plan: &Sort,
        ids: &Buffer,
        [order, starts, ends]: [&Buffer; 3],
        scratch: &mut Scratch,
    ) -> Result<(), CubeError> {
        let Sort { ids: n, bins } = *plan;
        let chunks = plan.chunks();
        let rank = scratch.take(self, DType::I32, n)?;
        let counts = scratch.take(self, DType::I32, chunks * bins)?;
        let totals = scratch.take(self, DType::I32, bins)?;
        // Zeros are zeros as i32, too.
        self.fill(&Buffer { dtype: DType::F32, ..counts.clone() }, 0.0)?;
        let [ids, order, starts, ends] = [ids, order, starts, ends].map(|b| self.bound(b));
        let [rank, counts, totals] = [&rank, &counts, &totals].map(|b| self.bound(b));
        self.launch_units(LibraryKernel::SortRanks, n, &[ids, rank, counts, order], &[n, bins], &[])?;
        self.launch_units(LibraryKernel::SortOffsets, bins, &[counts, totals], &[bins, chunks], &[])?;
        self.launch_cubes(LibraryKernel::SortStarts, 1, &[totals, starts, ends], &[bins], &[])?;
        self.launch_units(LibraryKernel::SortPlaces, n, &[ids, rank, counts, starts, order], &[n, bins], &[])
    }

    /// Moves a window of x into y.
    ///
    /// # Errors
    /// [`CubeError`] if the launch is refused.
    pub fn window(&self, plan: &Window, x: &Buffer, y: &Buffer) -> Result<(), CubeError> {
        let Window { rows, x_row, y_row, from, to, len, clear } = *plan;
        let kernel = LibraryKernel::Window { types: [x.dtype, y.dtype], clear };
        let buffers = [self.bound(x), self.bound(y)];
        let indices = [rows, x_row, y_row, from, to, len];
        self.launch_units(kernel, rows * y_row, &buffers, &indices, &[])
    }
}
