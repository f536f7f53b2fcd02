//! CubeCL devices: regions in, launches out, through one dynamic launcher for all kernels and every CubeCL runtime.
//!
//! CubeCL's server answers nothing to a launch and only logs what fails on its thread: an unsupported type or a failed allocation
//! gives zeros. So each launch is checked here before it is sent ([`CubeError`]), kernels are built once on the caller's thread,
//! and a device that has failed refuses further work.

mod library;

pub use library::{Attention, Dot, DotTables, Loss, Window};

use crate::kernels::{self, Rounding};
use crate::layer::KernelDef;
use cubecl::ir::{ElemType, FloatKind, IntKind, StorageType, Type, UIntKind};
use cubecl::prelude::*;
use cubecl::server::Handle;
use kiln_compiler::fuse::kernel::{Kernel, KernelError, MAX_DTYPES};
use kiln_compiler::fuse::{BufferArg, Index, IndexArg, Region, ScalarArg};
use kiln_compiler::ir::{Attr, Axis, DType, Sizes};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use thiserror::Error;

/// Builds a kernel: registers its arguments in order and expands its body.
pub type DefineFn = fn(&mut KernelBuilder, &Spec);

/// Why a device could not be opened or a launch was refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CubeError {
    /// No driver or no adapter.
    #[error("no {0} adapter: its driver is not installed, or it shows no device")]
    NoAdapter(&'static str),
    /// A region that kernels cannot express.
    #[error("kernel `{kernel}`: {error}")]
    Region {
        /// Name of the kernel.
        kernel: String,
        /// Why.
        error: KernelError,
    },
    /// The body of a kernel panicked while it was built.
    #[error("kernel `{kernel}` could not be built: {message}")]
    Build {
        /// Name of the kernel.
        kernel: String,
        /// What it said.
        message: String,
    },
    /// A limit of the device.
    #[error("kernel `{kernel}` needs {what} {needed}, the device allows {allowed}")]
    Limit {
        /// Name of the kernel.
        kernel: String,
        /// Which limit.
        what: &'static str,
        /// What the kernel needs.
        needed: u64,
        /// What the device has.
        allowed: u64,
    },
    /// An element type that the device does not store.
    #[error("kernel `{kernel}` stores {ty}, which the device does not")]
    Type {
        /// Name of the kernel.
        kernel: String,
        /// The type.
        ty: String,
    },
    /// A buffer at an offset that the device cannot bind.
    #[error("kernel `{kernel}`: buffer {buffer} begins at byte {offset}, which is no multiple of {alignment}")]
    Alignment {
        /// Name of the kernel.
        kernel: String,
        /// Position in the arguments.
        buffer: usize,
        /// Offset in bytes.
        offset: u64,
        /// What the device needs.
        alignment: u64,
    },
    /// A buffer that does not hold what the kernel reads or writes.
    #[error("kernel `{kernel}`: buffer {buffer} has {got}, the kernel needs {needed}")]
    Buffer {
        /// Name of the kernel.
        kernel: String,
        /// Position in the arguments.
        buffer: usize,
        /// What it has.
        got: String,
        /// What is needed.
        needed: String,
    },
    /// The number of arguments is wrong.
    #[error("kernel `{kernel}` takes {needed} {what}, {got} were given")]
    Arguments {
        /// Name of the kernel.
        kernel: String,
        /// Kind of argument.
        what: &'static str,
        /// How many are needed.
        needed: usize,
        /// How many were given.
        got: usize,
    },
    /// A scalar that linking should have made a number.
    #[error("kernel `{kernel}`: scalar {value} is no number")]
    Scalar {
        /// Name of the kernel.
        kernel: String,
        /// What it is.
        value: String,
    },
    /// The device reported a failure.
    #[error("the device failed: {0}")]
    Failed(String),
    /// The device failed earlier; what it holds since then is not to be trusted.
    #[error("the device has failed before: {0}")]
    Poisoned(String),
}

/// Everything that changes the code of a kernel; nothing else may be read while it is built, because it is the key under which
/// CubeCL keeps the compiled kernel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Spec {
    /// Entry point; never empty.
    pub name: String,
    /// Content of the body: the structural hash of its region.
    pub hash: u64,
    /// What the placeholders F0.. stand for.
    pub types: [StorageType; MAX_DTYPES],
    /// What the slots' values are rounded to.
    pub roundings: [Rounding; MAX_DTYPES],
    /// Lanes of a vector.
    pub width: usize,
    /// Units of a cube.
    pub cube_dim: u32,
    /// By bit, the outputs that are added to what is in memory.
    pub accumulate: u32,
    /// Sizes and choices that the code of a library kernel is made for.
    pub constants: [usize; 2],
    /// The program, for a region without an emitted kernel.
    pub program: Option<Program>,
}

/// A program that is walked when the kernel is built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program(pub Arc<Kernel>);

impl std::hash::Hash for Program {
    /// Nothing: the hash of the region is in the spec, and equality compares programs in full.
    fn hash<H: std::hash::Hasher>(&self, _: &mut H) {}
}

impl Spec {
    /// What slot `i` is rounded to.
    pub fn rounding(&self, i: usize) -> Rounding {
        self.roundings[i]
    }
}

/// Contiguous elements on a device.
#[derive(Clone, Debug)]
pub struct Buffer {
    handle: Handle,
    /// Element type; the device may store it wider.
    pub dtype: DType,
    /// Number of elements.
    pub len: usize,
}

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
    /// In the order of [`Region::streams`].
    pub streams: &'a [StreamState],
    /// Number of the training step, for random streams.
    pub step: u64,
}

/// How launches are shaped on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Units per cube of a map.
    pub map_units: u32,
    /// Most units per cube of a row kernel; a power of two.
    pub row_units: u32,
    /// Most cubes that share the rows of a sum over rows: each holds a partial sum.
    pub column_cubes: usize,
    /// Widest vector.
    pub width: usize,
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
    scalars: Vec<f32>,
    cubes: usize,
    /// Element types of inputs, then of outputs.
    dtypes: Vec<DType>,
}

impl Prepared {
    /// Lanes of its vectors.
    pub fn width(&self) -> usize {
        self.spec.width
    }

    /// Number of elements of output `i`.
    fn output_len(&self, i: usize) -> usize {
        layout_len(&self.region, self.region.inputs.len() + i, &self.extents, &self.sizes)
    }
}

/// A device of a CubeCL runtime.
pub struct CubeDevice<R: Runtime> {
    client: ComputeClient<R>,
    shape: Shape,
    failure: Mutex<Option<String>>,
}

struct DynKernel<R: Runtime> {
    settings: KernelSettings,
    client: ComputeClient<R>,
    spec: Spec,
    define: DefineFn,
}

impl<R: Runtime> KernelMetadata for DynKernel<R> {
    fn id(&self) -> KernelId {
        KernelId::new::<Self>()
            .address_type(self.settings.address_type)
            .cube_dim(self.settings.cube_dim)
            .info(self.spec.clone())
    }

    fn address_type(&self) -> StorageType {
        self.settings.address_type.unsigned_type()
    }
}

impl<R: Runtime> CubeKernel for DynKernel<R> {
    fn define(&self) -> KernelDefinition {
        let mut builder = KernelBuilder::default();
        builder.runtime_properties(R::target_properties());
        builder.device_properties(self.client.properties());
        kernels::register(&mut builder.scope, &self.spec.types, self.spec.width);
        self.settings.address_type.register(&mut builder.scope);
        (self.define)(&mut builder, &self.spec);
        builder.build(self.settings.clone())
    }
}

/// One buffer argument of a launch.
struct Bound<'a> {
    handle: &'a Handle,
    /// Elements, not vectors.
    len: usize,
    ty: Type,
}

impl<R: Runtime> CubeDevice<R> {
    /// A device over an open client.
    pub fn new(client: ComputeClient<R>, shape: Shape) -> Self {
        CubeDevice { client, shape, failure: Mutex::new(None) }
    }

    /// How the device stores an element type: as it is, or wider where it has no such storage.
    pub fn storage(&self, dtype: DType) -> StorageType {
        let wanted = match dtype {
            DType::F32 => FloatKind::F32,
            DType::Bf16 => FloatKind::BF16,
            DType::F16 => FloatKind::F16,
            DType::I32 => return StorageType::Scalar(ElemType::Int(IntKind::I32)),
            DType::Bool => return StorageType::Scalar(ElemType::UInt(UIntKind::U32)),
            DType::Compute | DType::Sub(_) => panic!("{dtype} is resolved when a model is linked"),
        };
        let native = StorageType::Scalar(ElemType::Float(wanted));
        if self.client.properties().supports_type(native) {
            return native;
        }
        StorageType::Scalar(ElemType::Float(FloatKind::F32))
    }

    /// Copies values to the device, rounded to `dtype`.
    pub fn upload(&self, dtype: DType, values: &[f64]) -> Result<Buffer, CubeError> {
        self.check_healthy()?;
        let storage = self.storage(dtype);
        let rounded = values.iter().map(|&x| kiln_compiler::interp::round(dtype, x));
        let bytes: Vec<u8> = match storage {
            StorageType::Scalar(ElemType::Float(FloatKind::F32)) => {
                rounded.flat_map(|x| (x as f32).to_le_bytes()).collect()
            }
            StorageType::Scalar(ElemType::Float(FloatKind::F16)) => {
                rounded.flat_map(|x| half::f16::from_f64(x).to_le_bytes()).collect()
            }
            StorageType::Scalar(ElemType::Float(FloatKind::BF16)) => {
                rounded.flat_map(|x| half::bf16::from_f64(x).to_le_bytes()).collect()
            }
            StorageType::Scalar(ElemType::Int(IntKind::I32)) => {
                rounded.flat_map(|x| (x as i32).to_le_bytes()).collect()
            }
            StorageType::Scalar(ElemType::UInt(UIntKind::U32)) => {
                rounded.flat_map(|x| u32::from(x != 0.0).to_le_bytes()).collect()
            }
            other => panic!("{other:?} is no storage of Kiln"),
        };
        Ok(Buffer { handle: self.client.create_from_slice(&bytes), dtype, len: values.len() })
    }

    /// Copies a buffer to the host, after all launches before it.
    pub fn download(&self, buffer: &Buffer) -> Result<Vec<f64>, CubeError> {
        self.sync()?;
        let bytes = self.client.read_one(buffer.handle.clone()).map_err(|e| self.poison(e.to_string()))?;
        let words = |n: usize| bytes.chunks_exact(n).take(buffer.len);
        let four = |c: &[u8]| [c[0], c[1], c[2], c[3]];
        Ok(match self.storage(buffer.dtype) {
            StorageType::Scalar(ElemType::Float(FloatKind::F32)) => {
                words(4).map(|c| f64::from(f32::from_le_bytes(four(c)))).collect()
            }
            StorageType::Scalar(ElemType::Float(FloatKind::F16)) => {
                words(2).map(|c| half::f16::from_le_bytes([c[0], c[1]]).to_f64()).collect()
            }
            StorageType::Scalar(ElemType::Float(FloatKind::BF16)) => {
                words(2).map(|c| half::bf16::from_le_bytes([c[0], c[1]]).to_f64()).collect()
            }
            StorageType::Scalar(ElemType::Int(IntKind::I32)) => {
                words(4).map(|c| f64::from(i32::from_le_bytes(four(c)))).collect()
            }
            StorageType::Scalar(ElemType::UInt(UIntKind::U32)) => {
                words(4).map(|c| f64::from(u32::from_le_bytes(four(c)))).collect()
            }
            other => panic!("{other:?} is no storage of Kiln"),
        })
    }

    /// Waits for all launches.
    pub fn sync(&self) -> Result<(), CubeError> {
        self.check_healthy()?;
        cubecl::future::block_on(self.client.sync()).map_err(|e| self.poison(e.to_string()))
    }

    /// Makes a region ready: without an emitted kernel its program is walked.
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
        let width = (1..=self.shape.width.ilog2())
            .rev()
            .map(|bits| 1 << bits)
            .find(|w| program.accepts_width(*w, &extents, region.rows))
            .unwrap_or(1);
        let (cube_dim, cubes) = self.grid(region, &extents, width);
        let f32_type = StorageType::Scalar(ElemType::Float(FloatKind::F32));
        let mut spec = Spec {
            name,
            hash,
            types: [f32_type; MAX_DTYPES],
            roundings: [Rounding::None; MAX_DTYPES],
            width,
            cube_dim,
            accumulate: 0,
            constants: [0; 2],
            program: walked,
        };
        for (slot, &dtype) in dtypes.iter().enumerate() {
            spec.types[slot] = self.storage(dtype);
            spec.roundings[slot] = rounding(dtype);
        }
        let stored = region.layouts().map(|l| dtypes[l.dtype]).collect();
        let whole = |a: &Axis| Part { offset: 0, whole: sizes.of(*a) };
        let parts = region.domain.iter().map(|a| (binding.part)(*a).unwrap_or_else(|| whole(a))).collect();
        let bind = |s| bind_scalar(&spec.name, s, binding);
        let scalars = region.scalars.iter().map(bind).collect::<Result<Vec<f32>, CubeError>>()?;
        let prepared = Prepared {
            region: region.clone(),
            kernel: program,
            spec,
            define,
            extents,
            parts,
            sizes: sizes.clone(),
            scalars,
            cubes,
            dtypes: stored,
        };
        self.build(&prepared.spec, prepared.define)?;
        Ok(prepared)
    }

    /// Units per cube and number of cubes.
    fn grid(&self, region: &Region, extents: &[usize], width: usize) -> (u32, usize) {
        let vectors = |n: usize| n.div_ceil(width);
        if !region.has_rows() {
            let units = vectors(extents.iter().product());
            return (self.shape.map_units, units.div_ceil(self.shape.map_units as usize).max(1));
        }
        let rows: usize = extents[..region.rows].iter().product();
        let interior = vectors(extents[region.rows..].iter().product());
        // The smallest device runs 32 units together; fewer would idle.
        let units = (interior.next_power_of_two() as u64).clamp(32, u64::from(self.shape.row_units));
        let has_columns = (0..region.outputs.len()).any(|o| region.is_column_output(region.inputs.len() + o));
        let most = if has_columns { self.shape.column_cubes } else { self.max_cubes() };
        (units as u32, rows.clamp(1, most))
    }

    fn max_cubes(&self) -> usize {
        self.client.properties().hardware.max_cube_count.0 as usize
    }

    /// Builds a kernel once on this thread, where a panic can be told: on the server's it would only skip the launch.
    fn build(&self, spec: &Spec, define: DefineFn) -> Result<(), CubeError> {
        let kernel = self.kernel(spec, define);
        let built = catch_unwind(AssertUnwindSafe(|| drop(kernel.define())));
        built.map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            CubeError::Build { kernel: spec.name.clone(), message: text.unwrap_or_default() }
        })
    }

    fn kernel(&self, spec: &Spec, define: DefineFn) -> DynKernel<R> {
        let settings = KernelSettings::default().kernel_name(&spec.name).cube_dim(CubeDim::new_1d(spec.cube_dim));
        DynKernel { settings, client: self.client.clone(), spec: spec.clone(), define }
    }

    /// An output buffer, not initialised.
    pub fn empty(&self, dtype: DType, len: usize) -> Result<Buffer, CubeError> {
        self.check_healthy()?;
        let bytes = len * self.storage(dtype).size();
        let allowed = self.client.properties().memory.max_page_size;
        if bytes as u64 > allowed {
            let kernel = "allocation".to_owned();
            return Err(CubeError::Limit { kernel, what: "bytes in one buffer", needed: bytes as u64, allowed });
        }
        Ok(Buffer { handle: self.client.empty(bytes.max(4)), dtype, len })
    }

    /// Buffers for the outputs of a region, not initialised.
    pub fn outputs(&self, prepared: &Prepared) -> Result<Vec<Buffer>, CubeError> {
        let types = &prepared.dtypes[prepared.region.inputs.len()..];
        types.iter().enumerate().map(|(i, &dtype)| self.empty(dtype, prepared.output_len(i))).collect()
    }

    /// Runs one region.
    pub fn run_region(&self, prepared: &Prepared, args: &RegionArgs<'_>) -> Result<(), CubeError> {
        let region = &prepared.region;
        let RegionArgs { inputs, outputs, streams, step, .. } = *args;
        let spec = prepared.accumulating(args.accumulate)?;
        let name = &spec.name;
        check_count(name, "inputs", region.inputs.len(), inputs.len())?;
        check_count(name, "outputs", region.outputs.len(), outputs.len())?;
        check_count(name, "random streams", region.streams.len(), streams.len())?;
        for (i, buffer) in inputs.iter().chain(outputs).enumerate() {
            check_buffer(prepared, i, buffer)?;
        }
        let interior: usize = prepared.extents[region.rows..].iter().product();
        let mut partials: Vec<(usize, Buffer)> = Vec::new();
        for o in 0..outputs.len() {
            if region.is_column_output(region.inputs.len() + o) {
                partials.push((o, self.empty(DType::F32, prepared.cubes * interior)?));
            }
        }
        let random = self.random_words(step, &prepared.stream_states(streams));
        let mut bound = Vec::new();
        for (buffer, arg) in prepared.kernel.buffers.iter().zip(region.abi().buffers) {
            let partial = |o: usize| partials.iter().find(|(p, _)| *p == o).map(|(_, b)| b);
            let (handle, len) = match arg {
                BufferArg::Input(i) => (&inputs[i].handle, inputs[i].len),
                BufferArg::Output(o) => (&outputs[o].handle, outputs[o].len),
                BufferArg::Partial(o) => {
                    let p = partial(o).expect("each sum over rows has its partial sums");
                    (&p.handle, p.len)
                }
                BufferArg::Random => (&random, 2 + 4 * streams.len()),
            };
            let storage = match (buffer.dtype, arg) {
                (Some(slot), _) => prepared.spec.types[slot],
                (None, BufferArg::Random) => StorageType::Scalar(ElemType::UInt(UIntKind::U32)),
                (None, _) => StorageType::Scalar(ElemType::Float(FloatKind::F32)),
            };
            let width = if buffer.vector { prepared.spec.width } else { 1 };
            bound.push(Bound { handle, len, ty: Type::new(storage).with_vector_size(width) });
        }
        let indices = prepared.indices();
        self.launch(&spec, prepared.define, prepared.cubes, &bound, &indices, &prepared.scalars)?;
        for (o, partial) in &partials {
            let accumulate = args.accumulate.get(*o).copied().unwrap_or(false);
            self.sum_columns(prepared, *o, partial, &outputs[*o], u32::from(accumulate))?;
        }
        Ok(())
    }

    fn random_words(&self, step: u64, streams: &[StreamState]) -> Handle {
        let streams = streams.iter().flat_map(|s| [s.key, s.offset]);
        let words: Vec<u8> = std::iter::once(step).chain(streams).flat_map(u64::to_le_bytes).collect();
        self.client.create_from_slice(&words)
    }

    /// The second stage of a sum over rows.
    fn sum_columns(
        &self,
        prepared: &Prepared,
        output: usize,
        partial: &Buffer,
        out: &Buffer,
        accumulate: u32,
    ) -> Result<(), CubeError> {
        let slot = prepared.region.outputs[output].1.dtype;
        let mut spec = Spec {
            name: "column_sum".to_owned(),
            hash: 0,
            types: prepared.spec.types,
            roundings: prepared.spec.roundings,
            width: 1,
            cube_dim: self.shape.map_units,
            accumulate,
            constants: [0; 2],
            program: None,
        };
        spec.types[0] = prepared.spec.types[slot];
        spec.roundings[0] = prepared.spec.roundings[slot];
        let f32_type = StorageType::Scalar(ElemType::Float(FloatKind::F32));
        let bound = [
            Bound { handle: &partial.handle, len: partial.len, ty: Type::new(f32_type) },
            Bound { handle: &out.handle, len: out.len, ty: Type::new(spec.types[0]) },
        ];
        let interior = out.len;
        let cubes = interior.div_ceil(self.shape.map_units as usize).max(1);
        self.launch(&spec, kernels::define_column_sum, cubes, &bound, &[interior, prepared.cubes], &[])
    }

    fn launch(
        &self,
        spec: &Spec,
        define: DefineFn,
        cubes: usize,
        buffers: &[Bound<'_>],
        indices: &[usize],
        scalars: &[f32],
    ) -> Result<(), CubeError> {
        self.check_healthy()?;
        let (x, y) = self.linear_grid(cubes);
        self.preflight(spec, (x, y), buffers, indices)?;
        let kernel = self.kernel(spec, define);
        let mut launcher = KernelLauncher::<R>::new(kernel.settings.clone());
        for b in buffers {
            // SAFETY: the preflight has checked that `len` elements of this type lie inside the handle.
            let array = unsafe { ArrayArg::from_raw_parts(b.handle.clone(), b.len) };
            launcher.register_array(array, b.ty);
        }
        for &i in indices {
            <usize as LaunchArg>::register(i, &mut launcher);
        }
        for &s in scalars {
            launcher.register_scalar(s);
        }
        launcher.launch(CubeCount::Static(x, y, 1), kernel, &self.client);
        Ok(())
    }

    /// A number of cubes over two dimensions, of which each has a limit; surplus cubes find nothing to do.
    fn linear_grid(&self, cubes: usize) -> (u32, u32) {
        let most = self.max_cubes();
        let y = cubes.div_ceil(most);
        (cubes.div_ceil(y) as u32, y as u32)
    }

    /// Everything that CubeCL would answer with a skipped kernel or a panic of its server.
    fn preflight(
        &self,
        spec: &Spec,
        grid: (u32, u32),
        buffers: &[Bound<'_>],
        indices: &[usize],
    ) -> Result<(), CubeError> {
        let properties = self.client.properties();
        let hardware = &properties.hardware;
        let limit = |what: &'static str, needed: u64, allowed: u64| match needed <= allowed {
            true => Ok(()),
            false => Err(CubeError::Limit { kernel: spec.name.clone(), what, needed, allowed }),
        };
        limit("bindings", buffers.len() as u64, u64::from(hardware.max_bindings))?;
        limit("units per cube", u64::from(spec.cube_dim), u64::from(hardware.max_units_per_cube))?;
        limit("units per cube", u64::from(spec.cube_dim), u64::from(hardware.max_cube_dim.0))?;
        limit("cubes along x", u64::from(grid.0), u64::from(hardware.max_cube_count.0))?;
        limit("cubes along y", u64::from(grid.1), u64::from(hardware.max_cube_count.1))?;
        limit("lanes", spec.width as u64, hardware.max_vector_size as u64)?;
        let shared = spec.cube_dim as usize * size_of::<f32>();
        limit("bytes of shared memory", shared as u64, hardware.max_shared_memory_size as u64)?;
        for &i in indices {
            limit("positions", i as u64, u64::from(u32::MAX))?;
        }
        let units = u64::from(grid.0) * u64::from(grid.1) * u64::from(spec.cube_dim) * spec.width as u64;
        limit("positions", units, u64::from(u32::MAX))?;
        if spec.name.is_empty() || !spec.width.is_power_of_two() || !spec.cube_dim.is_power_of_two() {
            let message = format!("width {}, cube of {}: powers of two", spec.width, spec.cube_dim);
            return Err(CubeError::Build { kernel: spec.name.clone(), message });
        }
        for (i, b) in buffers.iter().enumerate() {
            let kernel = || spec.name.clone();
            if !properties.supports_type(b.ty.storage_type()) {
                return Err(CubeError::Type { kernel: kernel(), ty: b.ty.to_string() });
            }
            let (offset, alignment) = (b.handle.offset_start.unwrap_or(0), properties.memory.alignment);
            if offset % alignment != 0 {
                return Err(CubeError::Alignment { kernel: kernel(), buffer: i, offset, alignment });
            }
            limit("bytes in one buffer", b.handle.size_in_used(), properties.memory.max_page_size)?;
            limit("elements in one buffer", b.len as u64, u64::from(u32::MAX))?;
            let bytes = b.len * b.ty.storage_type().size();
            if bytes as u64 > b.handle.size_in_used() || b.len % b.ty.vector_size() != 0 {
                let got = format!("{} bytes", b.handle.size_in_used());
                let needed = format!("{} elements of {}", b.len, b.ty);
                return Err(CubeError::Buffer { kernel: kernel(), buffer: i, got, needed });
            }
        }
        Ok(())
    }

    fn check_healthy(&self) -> Result<(), CubeError> {
        match &*self.failure.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(message) => Err(CubeError::Poisoned(message.clone())),
            None => Ok(()),
        }
    }

    fn poison(&self, message: String) -> CubeError {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert_with(|| message.clone());
        CubeError::Failed(message)
    }
}

impl Prepared {
    /// The integer arguments, in the order of the ABI.
    fn indices(&self) -> Vec<usize> {
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
    fn stream_states(&self, streams: &[StreamState]) -> Vec<StreamState> {
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

fn rounding(dtype: DType) -> Rounding {
    match dtype {
        DType::F32 | DType::I32 | DType::Bool => Rounding::None,
        DType::Bf16 => Rounding::Bf16,
        DType::F16 => Rounding::F16,
        DType::Compute | DType::Sub(_) => panic!("{dtype} is resolved when a model is linked"),
    }
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
