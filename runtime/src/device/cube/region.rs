//! Regions: what a fused region needs for a launch is worked out once ([`Prepared`]), then launched over buffers.

use super::profile::{F32, U32};
use super::scratch::Scratch;
use super::{Barriers, Bound, Buffer, CubeDevice, CubeError, DefineFn, LibraryKernel, Profile, Program, Spec};
use crate::kernels;
use crate::layer::KernelDef;
use crate::plan::arena::align;
use cubecl::ir::Type;
use kiln_compiler::fuse::kernel::Kernel;
use kiln_compiler::fuse::{BufferArg, Index, IndexArg, Instr, Region, ScalarArg};
use kiln_compiler::ir::{Attr, Axis, DType, Sizes};
use kiln_compiler::ops::Scalar;
use std::sync::Arc;

/// Key and position of a random stream in one launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamState {
    /// Key of Philox.
    pub key: u64,
    /// Index of the first local element in the logical tensor.
    pub offset: u64,
}

/// This rank's part of an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Global index of its first element.
    pub offset: usize,
    /// Size of the whole axis.
    pub whole: usize,
}

/// What a model binds when it is linked.
pub struct Binding<'a> {
    /// Local sizes of all axes.
    pub sizes: &'a Sizes,
    /// Resolves the element types of layers.
    pub dtype: &'a dyn Fn(DType) -> DType,
    /// Which part of an axis this rank holds; `None`: all of it.
    pub part: &'a dyn Fn(Axis) -> Option<Part>,
}

/// Arguments of one run.
#[derive(Clone, Copy)]
pub struct RegionArgs<'a> {
    /// In the order of [`Region::inputs`].
    pub inputs: &'a [Buffer],
    /// In the order of [`Region::outputs`].
    pub outputs: &'a [Buffer],
    /// For each output whether to add to its old f32 values; empty if none is.
    pub accumulate: &'a [bool],
    /// Where the region's random streams stand ([`CubeDevice::random_words`]); none for a region without streams.
    pub random: Option<&'a Buffer>,
}

/// A region made ready for launches with fixed sizes and element types.
#[derive(Clone, Debug)]
pub struct Prepared {
    region: Arc<Region>,
    kernel: Arc<Kernel>,
    spec: Spec,
    define: DefineFn,
    extents: Vec<usize>,
    /// For each domain axis this rank's part.
    parts: Vec<Part>,
    sizes: Sizes,
    indices: Vec<usize>,
    scalars: Vec<f32>,
    cubes: usize,
    /// Teams that have rows; each leaves partial sums.
    owners: usize,
    /// Element types of inputs, then of outputs.
    dtypes: Vec<DType>,
}

impl Prepared {
    /// Lanes of its vectors.
    pub fn width(&self) -> usize {
        self.spec.width
    }

    /// Its kernel, when nothing is added to what is in memory.
    pub(super) fn kernel(&self) -> (&Spec, DefineFn) {
        (&self.spec, self.define)
    }

    /// Scratch that a run takes, in bytes.
    pub(super) fn scratch_bytes(&self) -> usize {
        let interior: usize = self.extents[self.region.rows..].iter().product();
        let columns =
            (0..self.region.outputs.len()).filter(|o| self.region.is_column_output(self.region.inputs.len() + o));
        columns.count() * align(self.partials() * interior * size_of::<f32>())
    }

    /// Rows of partial sums: one for every team of the launch.
    fn partials(&self) -> usize {
        self.cubes * self.spec.team().per_cube()
    }

    /// Number of elements of output `i`.
    fn output_len(&self, i: usize) -> usize {
        layout_len(&self.region, self.region.inputs.len() + i, &self.extents, &self.sizes)
    }
}

impl Profile {
    /// What a region needs for launches on such a device: without an emitted kernel its program is walked.
    ///
    /// # Errors
    /// [`CubeError`] if kernels cannot express it or a scalar is no number.
    pub fn prepare(
        &self,
        region: &Arc<Region>,
        emitted: Option<&KernelDef>,
        binding: &Binding<'_>,
    ) -> Result<Prepared, CubeError> {
        let sizes = binding.sizes;
        let dtypes: Vec<DType> = region.dtypes.iter().map(|&d| (binding.dtype)(d)).collect();
        let hash = region.hash();
        let name = emitted.map_or_else(|| format!("region_{hash:016x}"), |k| k.name.to_owned());
        let program = Kernel::of(region).map_err(|error| CubeError::Region { kernel: name.clone(), error })?;
        let program = Arc::new(program);
        let (walked, define): (_, DefineFn) = match emitted {
            Some(k) => (None, k.define),
            None => (Some(Program(program.clone())), kernels::define_program),
        };
        let extents = region.extents(sizes);
        // Vectors of 16 bytes where something is stored in two.
        let is_narrow = dtypes.iter().any(|&d| d.is_float() && self.storage(d).size() == 2);
        let widest = if is_narrow { self.shape.narrow_width } else { self.shape.width };
        let width = (1..=widest.ilog2())
            .rev()
            .map(|bits| 1 << bits)
            .find(|w| program.accepts_width(*w, &extents, region.rows))
            .unwrap_or(1);
        let Grid { cube_dim, row_units, turns, is_full, cubes, owners } = self.grid(region, &extents, width);
        let spec =
            Spec { hash, width, cube_dim, row_units, turns, is_full, program: walked, ..self.spec(name, &dtypes) };
        let stored = region.layouts().map(|l| dtypes[l.dtype]).collect();
        let whole = |a: &Axis| Part { offset: 0, whole: sizes.of(*a) };
        let parts = region.domain.iter().map(|a| (binding.part)(*a).unwrap_or_else(|| whole(a))).collect();
        let bind = |s| bind_scalar(&spec.name, s, binding);
        let scalars = region.scalars.iter().map(bind).collect::<Result<Vec<f32>, CubeError>>()?;
        let mut prepared = Prepared {
            region: region.clone(),
            kernel: program,
            spec,
            define,
            extents,
            parts,
            sizes: sizes.clone(),
            indices: Vec::new(),
            scalars,
            cubes,
            owners,
            dtypes: stored,
        };
        prepared.indices = prepared.index_arguments();
        Ok(prepared)
    }

    /// How a launch is shared among units.
    fn grid(&self, region: &Region, extents: &[usize], width: usize) -> Grid {
        let vectors = |n: usize| n.div_ceil(width);
        if !region.has_rows() {
            let (units, cube_dim) = (vectors(extents.iter().product()), self.shape.map_units);
            let cubes = units.div_ceil(cube_dim as usize).max(1);
            return Grid { cube_dim, row_units: cube_dim, turns: 0, is_full: false, cubes, owners: cubes };
        }
        let rows: usize = extents[..region.rows].iter().product();
        let interior = vectors(extents[region.rows..].iter().product());
        let (cube_dim, row_units) = match self.shape.plane.filter(|&p| interior <= PLANE_VECTORS * p as usize) {
            Some(plane) => (self.shape.row_units, plane),
            // The smallest device runs 32 units together; fewer would idle.
            None => {
                let units = (interior.next_power_of_two() as u64).clamp(32, u64::from(self.shape.row_units)) as u32;
                (units, units)
            }
        };
        let per_cube = (cube_dim / row_units) as usize;
        let has_columns = (0..region.outputs.len()).any(|o| region.is_column_output(region.inputs.len() + o));
        let most = if has_columns { self.shape.column_teams } else { self.max_cubes() * per_cube };
        let owners = rows.clamp(1, most);
        let cubes = owners.div_ceil(per_cube);
        // Surplus teams of the last cube have rows too, if there are any.
        let turns = Some(interior.div_ceil(row_units as usize))
            .filter(|&n| self.shape.plane.is_some() && n <= MAX_TURNS && n * width * work(region) <= MAX_UNROLLED);
        let turns = turns.unwrap_or(0);
        let is_full = turns > 0 && interior == turns * row_units as usize;
        Grid { cube_dim, row_units, turns, is_full, cubes, owners: (cubes * per_cube).min(rows.max(1)) }
    }
}

/// Parts of a sum over rows that units of a cube add beside each other.
const COLUMN_SLICES: usize = 32;

/// Vectors of a row that a unit of a plane takes at most; longer rows get a whole cube.
const PLANE_VECTORS: usize = 8;

/// Most turns of a walk that code is made for; more would not fit into registers.
const MAX_TURNS: usize = 8;

/// Most values of a walk that code is made for, in all turns, if each were computed in all lanes.
const MAX_UNROLLED: usize = 640;

/// Instructions of a region; a logarithm, a sine or a cosine for many, since its code is long.
fn work(region: &Region) -> usize {
    const LONG: usize = 16;
    let is_long = |i: &&Instr| matches!(i, Instr::Unary(Scalar::Log | Scalar::Sin | Scalar::Cos, _));
    region.code.len() + LONG * region.code.iter().filter(is_long).count()
}

/// A launch shared among units.
struct Grid {
    cube_dim: u32,
    row_units: u32,
    turns: usize,
    is_full: bool,
    cubes: usize,
    /// Teams that have rows.
    owners: usize,
}

impl CubeDevice {
    /// Makes a region ready and builds its kernel once.
    ///
    /// # Errors
    /// [`CubeError`] if kernels cannot express it.
    pub fn prepare(
        &self,
        region: &Arc<Region>,
        emitted: Option<&KernelDef>,
        binding: &Binding<'_>,
    ) -> Result<Prepared, CubeError> {
        let prepared = self.profile.prepare(region, emitted, binding)?;
        self.body(&prepared.spec, prepared.define)?;
        Ok(prepared)
    }

    /// Buffers for the outputs of a region, not initialised.
    pub fn outputs(&self, prepared: &Prepared) -> Result<Vec<Buffer>, CubeError> {
        let types = &prepared.dtypes[prepared.region.inputs.len()..];
        types.iter().enumerate().map(|(i, &dtype)| self.empty(dtype, prepared.output_len(i))).collect()
    }

    /// Runs one region; sums over rows leave partial sums in `scratch`.
    ///
    /// # Errors
    /// [`CubeError`] if the launch is refused.
    pub fn run_region(
        &self,
        prepared: &Prepared,
        args: &RegionArgs<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), CubeError> {
        let region = &prepared.region;
        let RegionArgs { inputs, outputs, random, .. } = *args;
        let spec = prepared.accumulating(args.accumulate)?;
        let name = &spec.name;
        check_count(name, "inputs", region.inputs.len(), inputs.len())?;
        check_count(name, "outputs", region.outputs.len(), outputs.len())?;
        let random_words = usize::from(!region.streams.is_empty());
        check_count(name, "buffers of random streams", random_words, usize::from(random.is_some()))?;
        for (i, buffer) in inputs.iter().chain(outputs).enumerate() {
            check_buffer(prepared, i, buffer)?;
        }
        let interior: usize = prepared.extents[region.rows..].iter().product();
        let mut partials: Vec<(usize, Buffer)> = Vec::new();
        for o in 0..outputs.len() {
            if region.is_column_output(region.inputs.len() + o) {
                partials.push((o, scratch.take(self, DType::F32, prepared.partials() * interior)?));
            }
        }
        let mut bound = Vec::new();
        for (buffer, arg) in prepared.kernel.buffers.iter().zip(region.abi().buffers) {
            let partial = |o: usize| partials.iter().find(|(p, _)| *p == o).map(|(_, b)| b);
            let (memory, len) = match arg {
                BufferArg::Input(i) => (&inputs[i].memory, inputs[i].len),
                BufferArg::Output(o) => (&outputs[o].memory, outputs[o].len),
                BufferArg::Partial(o) => {
                    let p = partial(o).expect("each sum over rows has its partial sums");
                    (&p.memory, p.len)
                }
                BufferArg::Random => {
                    let words = random.expect("the number of buffers was checked");
                    (&words.memory, words.len)
                }
            };
            let storage = match (buffer.dtype, arg) {
                (Some(slot), _) => prepared.spec.types[slot],
                (None, BufferArg::Random) => U32,
                (None, _) => F32,
            };
            let width = if buffer.vector { prepared.spec.width } else { 1 };
            bound.push(Bound { memory, len, ty: Type::new(storage).with_vector_size(width) });
        }
        self.launch(&spec, prepared.define, prepared.cubes, &bound, &prepared.indices, &prepared.scalars)?;
        for (o, partial) in &partials {
            let accumulate = args.accumulate.get(*o).copied().unwrap_or(false);
            self.sum_columns(prepared, *o, partial, &outputs[*o], accumulate)?;
        }
        Ok(())
    }

    /// Copies the places of a region's random streams to the device; none if it has no stream.
    ///
    /// # Errors
    /// [`CubeError`] if the device has failed, or another number of streams is given.
    pub fn random_words(
        &self,
        prepared: &Prepared,
        step: u64,
        streams: &[StreamState],
    ) -> Result<Option<Buffer>, CubeError> {
        check_count(&prepared.spec.name, "random streams", prepared.region.streams.len(), streams.len())?;
        if streams.is_empty() {
            return Ok(None);
        }
        let streams = prepared.stream_states(streams);
        let words = streams.iter().flat_map(|s| [s.key, s.offset]);
        let bytes: Vec<u8> = std::iter::once(step).chain(words).flat_map(u64::to_le_bytes).collect();
        let len = bytes.len() / size_of::<u32>();
        Ok(Some(Buffer { memory: self.send(&bytes)?, dtype: DType::I32, len }))
    }

    /// The second stage of a sum over rows.
    fn sum_columns(
        &self,
        prepared: &Prepared,
        output: usize,
        partial: &Buffer,
        out: &Buffer,
        accumulate: bool,
    ) -> Result<(), CubeError> {
        let to = prepared.dtypes[prepared.region.inputs.len() + output];
        let slices = match self.profile.shape.barriers {
            Barriers::Cheap => COLUMN_SLICES,
            Barriers::Dear => 1,
        };
        let kernel = LibraryKernel::ColumnSum { to, accumulate, slices };
        let buffers = [self.bound(partial), self.bound(out)];
        let interior = out.len;
        self.launch_units(kernel, interior * slices, &buffers, &[interior, prepared.owners], &[])
    }
}

impl Prepared {
    /// The integer arguments, in the order of the ABI.
    fn index_arguments(&self) -> Vec<usize> {
        let region = &self.region;
        let value = |arg: IndexArg| match arg {
            IndexArg::Extent(a) => self.extents[a],
            IndexArg::Extra(a) => self.sizes.of(region.extra_axes[a]),
            IndexArg::Stride { buffer, axis } => {
                layout_dims(region, buffer, &self.extents, &self.sizes)[axis + 1..].iter().product()
            }
            IndexArg::Offset(a) => self.parts[a].offset,
            IndexArg::StreamStride { stream, axis } => self.stream_stride(stream, axis),
        };
        region.abi().indices.into_iter().map(value).collect()
    }

    /// Distance of neighbours along an axis of a stream, in the logical tensor.
    fn stream_stride(&self, stream: usize, axis: usize) -> usize {
        self.region.streams[stream].axes[axis + 1..].iter().map(|&a| self.parts[a].whole).product()
    }

    /// Streams as the kernel reads them: their offset is that of this rank's first element.
    pub(super) fn stream_states(&self, streams: &[StreamState]) -> Vec<StreamState> {
        let first = |s: usize| -> u64 {
            let axes = self.region.streams[s].axes.iter().enumerate();
            axes.map(|(k, &a)| (self.parts[a].offset * self.stream_stride(s, k)) as u64).sum()
        };
        streams.iter().enumerate().map(|(s, state)| StreamState { offset: state.offset + first(s), ..*state }).collect()
    }

    /// The kernel that adds to these outputs.
    fn accumulating(&self, accumulate: &[bool]) -> Result<Spec, CubeError> {
        let mut spec = self.spec.clone();
        for (o, _) in accumulate.iter().enumerate().filter(|(_, add)| **add) {
            let dtype = self.dtypes[self.region.inputs.len() + o];
            if dtype != DType::F32 {
                let (buffer, got) = (self.region.inputs.len() + o, dtype.to_string());
                return Err(CubeError::Buffer {
                    kernel: spec.name,
                    buffer,
                    got,
                    needed: "f32, to be added to".to_owned(),
                });
            }
            // Sums over rows are added by their second stage.
            if !self.region.is_column_output(self.region.inputs.len() + o) {
                spec.accumulate |= 1 << o;
            }
        }
        Ok(spec)
    }
}

/// Sizes of the axes of buffer `i`.
fn layout_dims(region: &Region, i: usize, extents: &[usize], sizes: &Sizes) -> Vec<usize> {
    let mut extras = region.layouts().take(i).flat_map(|l| &l.axes).filter(|a| matches!(a, Index::Value(_))).count();
    let axes = region.layouts().nth(i).map(|l| l.axes.as_slice()).unwrap_or_default();
    let mut size = |index: &Index| match *index {
        Index::Domain(a) | Index::Rotated(a) => extents[a],
        Index::Value(_) => {
            extras += 1;
            sizes.of(region.extra_axes[extras - 1])
        }
    };
    axes.iter().map(&mut size).collect()
}

fn layout_len(region: &Region, i: usize, extents: &[usize], sizes: &Sizes) -> usize {
    layout_dims(region, i, extents, sizes).iter().product()
}

fn bind_scalar(kernel: &str, scalar: &ScalarArg, binding: &Binding<'_>) -> Result<f32, CubeError> {
    match scalar {
        ScalarArg::Literal(Attr::Float(x)) => Ok(*x as f32),
        ScalarArg::Literal(Attr::Int(x)) => Ok(*x as f32),
        ScalarArg::Literal(other) => Err(CubeError::Scalar { kernel: kernel.to_owned(), value: format!("{other:?}") }),
        ScalarArg::Size { axes, recip } => {
            let whole = |a: &Axis| (binding.part)(*a).map_or(binding.sizes.of(*a), |p| p.whole) as f64;
            let n: f64 = axes.iter().map(whole).product();
            Ok(if *recip { 1.0 / n } else { n } as f32)
        }
    }
}

fn check_count(kernel: &str, what: &'static str, needed: usize, got: usize) -> Result<(), CubeError> {
    match needed == got {
        true => Ok(()),
        false => Err(CubeError::Arguments { kernel: kernel.to_owned(), what, needed, got }),
    }
}

/// A wrong length would compute part of the output in silence.
fn check_buffer(prepared: &Prepared, i: usize, buffer: &Buffer) -> Result<(), CubeError> {
    let dtype = prepared.dtypes[i];
    let len = layout_len(&prepared.region, i, &prepared.extents, &prepared.sizes);
    let fits = prepared.region.is_segment_operand(i) || buffer.len == len;
    if fits && buffer.dtype == dtype {
        return Ok(());
    }
    Err(CubeError::Buffer {
        kernel: prepared.spec.name.clone(),
        buffer: i,
        got: format!("{} elements of {}", buffer.len, buffer.dtype),
        needed: format!("{len} elements of {dtype}"),
    })
}
