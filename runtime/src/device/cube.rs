//! Devices whose kernels CubeCL makes: plans in, launches out, through one dynamic launcher for all kernels, over a [`Server`] for each
//! kind of device.
//!
//! CubeCL's own server answers nothing to a launch and only logs what fails on its thread: an unsupported type or a failed allocation
//! gives zeros. So each launch is checked here before it is sent ([`CubeError`]), kernels are built once on the caller's thread
//! (`bodies`), and a device that has failed refuses further work.
//!
//! Reading order: [`Schedule`] (a plan's steps become launches over an arena) → `region`, `library`, `training` (what a launch of each
//! kind needs) → `catalog` (the library's kernels) → this file (checks and launches) → [`Profile`] (what their code depends on), from
//! which [`CudaCompiler`] makes CUDA C++ without a device.

mod arena;
mod attention_tiles;
mod bodies;
mod cache;
mod catalog;
mod cuda_source;
mod error;
mod library;
mod memory;
mod product;
mod profile;
mod region;
mod schedule;
mod scratch;
mod server;
#[cfg(all(test, feature = "wgpu"))]
mod tests;
mod training;

pub use cache::{KernelCache, VARIABLE as CACHE_VARIABLE, enable as enable_cache};
pub use catalog::{Arithmetic, LibraryKernel, library_kernels};
pub use cuda_source::{Arch, CUDA_SHAPE, CudaCompiler, CudaSource};
#[cfg(feature = "cuda")]
pub(in crate::device) use cuda_source::{cuda_profile, cuda_source};
pub use error::CubeError;
pub use library::{Attention, Dot, DotTables, Loss, LossBackward, Sort, Window};
#[cfg(feature = "cuda")]
pub(in crate::device) use memory::Allocation;
pub use memory::Memory;
pub use product::{Matrix, MatrixProduct};
pub use profile::Profile;
pub use region::{Binding, Part, Prepared, RegionArgs, StreamState};
pub use schedule::Schedule;
pub use scratch::Scratch;
pub use server::{CubeclServer, Launched, Product, Recording, Server, Work};

use self::server::DynKernel;
use super::Copied;
use crate::kernels::{Rounding, Team};
use crate::plan;
use cubecl::ir::{DeviceProperties, ElemType, FloatKind, IntKind, StorageType, TargetProperties, Type, UIntKind};
use cubecl::prelude::*;
use kiln_compiler::fuse::kernel::{Kernel, MAX_DTYPES};
use kiln_compiler::ir::DType;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use xxhash_rust::xxh3::xxh3_64;

/// Offsets of buffers: what every device of wgpu can bind.
const ALIGNMENT: usize = crate::plan::arena::ALIGNMENT;

/// Builds a kernel: registers its arguments in order and expands its body.
pub type DefineFn = fn(&mut KernelBuilder, &Spec);

/// Everything that changes the code of a kernel; nothing else may be read while it is built, because it is the key under which
/// CubeCL keeps the compiled kernel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Spec {
    /// Entry point; never empty.
    pub name: String,
    /// Content of the body: the structural hash of its region; 0 in the library.
    pub hash: u64,
    /// What the placeholders F0.. stand for.
    pub types: [StorageType; MAX_DTYPES],
    /// What the slots' values are rounded to.
    pub roundings: [Rounding; MAX_DTYPES],
    /// Lanes of a vector.
    pub width: usize,
    /// Units of a cube.
    pub cube_dim: u32,
    /// Units that share a row: a plane, or the cube.
    pub row_units: u32,
    /// Units of a plane, where they can read each other's values.
    pub plane: Option<u32>,
    /// Vectors of a row that each unit takes at most, if the code is made for their number; 0 if for any.
    pub turns: usize,
    /// Whether every unit has a vector in every turn.
    pub is_full: bool,
    /// By bit, the outputs that are added to what is in memory.
    pub accumulate: u32,
    /// Sizes and choices that the code of a library kernel is made for.
    pub constants: [usize; 2],
    /// How its sums of products may be compiled.
    pub arithmetic: Arithmetic,
    /// Bytes of shared memory, where it is not one word for each unit.
    pub shared: Option<usize>,
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
    /// Whether it is of a region, rather than of the library.
    pub fn is_region(&self) -> bool {
        self.hash != 0
    }

    /// How its units share rows.
    pub fn team(&self) -> Team {
        Team {
            cube_dim: self.cube_dim,
            units: self.row_units,
            plane: self.plane,
            turns: self.turns,
            is_full: self.is_full,
        }
    }

    /// What slot `i` is rounded to.
    pub fn rounding(&self, i: usize) -> Rounding {
        self.roundings[i]
    }
}

/// Contiguous elements on a device.
#[derive(Clone, Debug)]
pub struct Buffer {
    memory: Memory,
    /// Element type; the device may store it wider.
    pub dtype: DType,
    /// Number of elements.
    pub len: usize,
}

/// How launches are shaped on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Units per cube of a map.
    pub map_units: u32,
    /// Most units per cube of a row kernel; a power of two.
    pub row_units: u32,
    /// Most teams that share the rows of a sum over rows: each holds a partial sum.
    pub column_teams: usize,
    /// Units of a plane, where they can read each other's values.
    pub plane: Option<u32>,
    /// Widest vector of f32.
    pub width: usize,
    /// Widest vector of what is stored in two bytes.
    pub narrow_width: usize,
    /// Most elements of a chunk of logits: enough to fill the device, few beside a model.
    pub logits: usize,
    /// Whether its conversions to narrower types round to nearest, ties to even, as Kiln does by bits elsewhere.
    pub converts: bool,
    /// Which form of a kernel is faster.
    pub barriers: Barriers,
}

/// What it costs that the units of a cube wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Barriers {
    /// Next to nothing: operands go through shared memory.
    Cheap,
    /// As much as the work between them: units compute apart.
    Dear,
}

/// A device whose kernels CubeCL makes.
pub struct CubeDevice {
    server: Box<dyn Server>,
    profile: Arc<Profile>,
    /// Bytes that it can hold, where that is known.
    capacity: Option<usize>,
    /// Whether runs are recorded and replayed, where the server can.
    records: bool,
    /// Largest piece that sessions take, if it is less than the device's.
    chunk: Option<usize>,
    failure: Mutex<Option<String>>,
    h2d: AtomicU64,
    d2h: AtomicU64,
    bodies: Mutex<bodies::Bodies>,
    /// Offsets of products, by content.
    tables: Mutex<HashMap<Box<[u8]>, Memory>>,
    compiled: Arc<AtomicU64>,
    /// Name and driver.
    identity: String,
    /// Its hash: other devices compile other code.
    seed: u64,
    cache: Option<&'static KernelCache>,
}

/// A device as it is found on the machine.
pub struct Found {
    /// Runs what it is given.
    pub server: Box<dyn Server>,
    /// What it can do.
    pub properties: DeviceProperties,
    /// The target of CubeCL's expansion.
    pub target: fn() -> TargetProperties,
    /// How launches are shaped.
    pub shape: Shape,
    /// Bytes that it can hold, where that is known.
    pub capacity: Option<usize>,
    /// Name and driver.
    pub identity: String,
    /// Where compiled kernels are kept.
    pub cache: Option<&'static KernelCache>,
}

impl Drop for CubeDevice {
    fn drop(&mut self) {
        if let Some(cache) = self.cache {
            cache.seal();
        }
    }
}

impl std::fmt::Debug for CubeDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CubeDevice").field("server", &self.server.name()).field("shape", &self.profile.shape).finish()
    }
}

/// One buffer argument of a launch.
#[derive(Clone, Copy)]
pub(in crate::device) struct Bound<'a> {
    pub(in crate::device) memory: &'a Memory,
    /// Elements, not vectors.
    pub(in crate::device) len: usize,
    pub(in crate::device) ty: Type,
}

impl CubeDevice {
    /// A device as it was found.
    pub fn new(found: Found) -> Self {
        let Found { server, properties, target, shape, capacity, identity, cache } = found;
        let profile = Profile { shape, properties, target };
        let (h2d, d2h) = (AtomicU64::new(0), AtomicU64::new(0));
        CubeDevice {
            server,
            profile: Arc::new(profile),
            capacity,
            records: true,
            chunk: None,
            failure: Mutex::new(None),
            h2d,
            d2h,
            bodies: Mutex::default(),
            tables: Mutex::default(),
            compiled: Arc::default(),
            seed: xxh3_64(identity.as_bytes()),
            identity,
            cache,
        }
    }

    /// Name and driver.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Kernels compiled so far: those that neither this process nor the cache had.
    pub fn compiled(&self) -> u64 {
        self.compiled.load(Ordering::Relaxed)
    }

    /// Bytes of the tables that products read, shared by all sessions on this device.
    pub fn table_bytes(&self) -> usize {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner).keys().map(|words| words.len()).sum()
    }

    /// What happened to an older kernel cache, to be said once.
    pub fn cache_note(&self) -> Option<&str> {
        self.cache.and_then(|c| c.note.as_deref())
    }

    /// The same device, of which sessions take pieces of at most `bytes`, a multiple of 256.
    pub fn with_chunk(mut self, bytes: usize) -> Self {
        self.chunk = Some(bytes.next_multiple_of(ALIGNMENT));
        self
    }

    /// The same device, with launches shaped as on another, so that one machine can check the kernels of all.
    pub fn with_shape(mut self, shape: Shape) -> Self {
        Arc::make_mut(&mut self.profile).shape = shape;
        self
    }

    /// The same device, said to hold `bytes`.
    pub fn with_capacity(mut self, bytes: usize) -> Self {
        self.capacity = Some(bytes);
        self
    }

    /// The same device, which launches every kernel of every run one by one.
    pub fn without_recording(mut self) -> Self {
        self.records = false;
        self
    }

    /// Keeps launches to be replayed; none where the device cannot.
    fn record(&self, work: Work<'_>) -> Result<Option<Box<dyn Recording>>, CubeError> {
        match self.records {
            true => self.server.record(work).map_err(|e| self.noted(e)),
            false => Ok(None),
        }
    }

    /// Declares that the device has failed, as it does itself when its driver reports a failure: nothing runs on it any more.
    pub fn fail(&self, why: &str) {
        self.poison(why.to_owned());
    }

    /// `wgpu` or `cuda`.
    pub fn name(&self) -> &'static str {
        self.server.name()
    }

    /// How it stores tensors.
    pub fn memory(&self) -> plan::Memory {
        let width = |dtype| self.storage(dtype).size();
        let largest = self.profile.properties.memory.max_page_size as usize;
        let largest = self.chunk.map_or(largest, |chunk| chunk.min(largest));
        plan::Memory {
            widths: [DType::Bf16, DType::F16, DType::Bool].map(width),
            chunk: largest / ALIGNMENT * ALIGNMENT,
        }
    }

    /// Bytes copied so far, by all sessions on this device.
    pub fn copied(&self) -> Copied {
        Copied { h2d: self.h2d.load(Ordering::Relaxed), d2h: self.d2h.load(Ordering::Relaxed) }
    }

    /// Copies bytes to a fresh buffer: the only way to the device.
    fn send(&self, bytes: &[u8]) -> Result<Memory, CubeError> {
        self.check_healthy()?;
        let allowed = self.profile.properties.memory.max_page_size;
        if bytes.len() as u64 > allowed {
            let (kernel, needed) = ("copy".to_owned(), bytes.len() as u64);
            return Err(CubeError::Limit { kernel, what: "bytes in one buffer", needed, allowed });
        }
        self.h2d.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.server.copy_in(bytes).map_err(|e| self.noted(e))
    }

    /// Copies a buffer's bytes back, after everything before: the only way from the device.
    fn receive(&self, memory: &Memory, bytes: usize) -> Result<Vec<u8>, CubeError> {
        self.sync()?;
        self.d2h.fetch_add(bytes as u64, Ordering::Relaxed);
        let mut all = self.server.copy_out(memory).map_err(|e| self.noted(e))?;
        all.truncate(bytes);
        Ok(all)
    }

    /// How the device stores an element type: as it is, or wider where it has no such storage.
    pub fn storage(&self, dtype: DType) -> StorageType {
        self.profile.storage(dtype)
    }

    /// Copies values to the device, rounded to `dtype`.
    ///
    /// # Errors
    /// [`CubeError`] if the device has failed or cannot hold them.
    pub fn upload(&self, dtype: DType, values: &[f64]) -> Result<Buffer, CubeError> {
        let rounded: Vec<f64> = values.iter().map(|&x| kiln_compiler::interp::round(dtype, x)).collect();
        Ok(Buffer { memory: self.send(&self.stored(dtype, &rounded))?, dtype, len: values.len() })
    }

    /// Values of a type as the device stores them, padded to whole words.
    fn stored(&self, dtype: DType, rounded: &[f64]) -> Vec<u8> {
        let x = rounded.iter().copied();
        let mut bytes: Vec<u8> = match self.storage(dtype) {
            StorageType::Scalar(ElemType::Float(FloatKind::F32)) => x.flat_map(|x| (x as f32).to_le_bytes()).collect(),
            StorageType::Scalar(ElemType::Float(FloatKind::F16)) => {
                x.flat_map(|x| half::f16::from_f64(x).to_le_bytes()).collect()
            }
            StorageType::Scalar(ElemType::Float(FloatKind::BF16)) => {
                x.flat_map(|x| half::bf16::from_f64(x).to_le_bytes()).collect()
            }
            StorageType::Scalar(ElemType::Int(IntKind::I32)) => x.flat_map(|x| (x as i32).to_le_bytes()).collect(),
            StorageType::Scalar(ElemType::UInt(UIntKind::U32)) => {
                x.flat_map(|x| u32::from(x != 0.0).to_le_bytes()).collect()
            }
            other => panic!("{other:?} is no storage of Kiln"),
        };
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// Copies a buffer to the host, after all launches before it.
    ///
    /// # Errors
    /// [`CubeError`] if the device has failed.
    pub fn download(&self, buffer: &Buffer) -> Result<Vec<f64>, CubeError> {
        let storage = self.storage(buffer.dtype);
        let bytes = self.receive(&buffer.memory, buffer.len * storage.size())?;
        let four = |c: &[u8]| [c[0], c[1], c[2], c[3]];
        let words = bytes.chunks_exact(storage.size());
        Ok(match storage {
            StorageType::Scalar(ElemType::Float(FloatKind::F32)) => {
                words.map(|c| f64::from(f32::from_le_bytes(four(c)))).collect()
            }
            StorageType::Scalar(ElemType::Float(FloatKind::F16)) => {
                words.map(|c| half::f16::from_le_bytes([c[0], c[1]]).to_f64()).collect()
            }
            StorageType::Scalar(ElemType::Float(FloatKind::BF16)) => {
                words.map(|c| half::bf16::from_le_bytes([c[0], c[1]]).to_f64()).collect()
            }
            StorageType::Scalar(ElemType::Int(IntKind::I32)) => {
                words.map(|c| f64::from(i32::from_le_bytes(four(c)))).collect()
            }
            StorageType::Scalar(ElemType::UInt(UIntKind::U32)) => {
                words.map(|c| f64::from(u32::from_le_bytes(four(c)))).collect()
            }
            other => panic!("{other:?} is no storage of Kiln"),
        })
    }

    /// Waits for all launches.
    pub fn sync(&self) -> Result<(), CubeError> {
        self.check_healthy()?;
        self.server.wait().map_err(|e| self.noted(e))
    }

    fn kernel(&self, spec: &Spec, define: DefineFn, content: u64) -> DynKernel {
        DynKernel {
            profile: self.profile.clone(),
            spec: spec.clone(),
            define,
            content: content ^ self.seed,
            compiled: self.compiled.clone(),
        }
    }

    /// An output buffer, not initialised.
    pub fn empty(&self, dtype: DType, len: usize) -> Result<Buffer, CubeError> {
        self.check_healthy()?;
        let bytes = len * self.storage(dtype).size();
        let allowed = self.profile.properties.memory.max_page_size;
        if bytes as u64 > allowed {
            let kernel = "allocation".to_owned();
            return Err(CubeError::Limit { kernel, what: "bytes in one buffer", needed: bytes as u64, allowed });
        }
        let memory = self.server.allocate(bytes.max(size_of::<u32>())).map_err(|e| self.noted(e))?;
        Ok(Buffer { memory, dtype, len })
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
        let grid = self.linear_grid(cubes);
        self.preflight(spec, grid, buffers, indices)?;
        let body = self.body(spec, define)?;
        body.check_arguments(&spec.name, buffers, indices.len() + scalars.len())?;
        let kernel = self.kernel(spec, define, body.content);
        self.launched(self.server.launch(Launched { kernel, grid, buffers, indices, scalars }))
    }

    /// A number of cubes over two dimensions, of which each has a limit; surplus cubes find nothing to do.
    fn linear_grid(&self, cubes: usize) -> (u32, u32) {
        let most = self.profile.max_cubes();
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
        let properties = &self.profile.properties;
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
        let shared = spec.shared.unwrap_or(spec.cube_dim as usize * size_of::<f32>());
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
            let (offset, alignment) = (b.memory.offset() as u64, properties.memory.alignment);
            if offset % alignment != 0 {
                return Err(CubeError::Alignment { kernel: kernel(), buffer: i, offset, alignment });
            }
            limit("bytes in one buffer", b.memory.bytes() as u64, properties.memory.max_page_size)?;
            limit("elements in one buffer", b.len as u64, u64::from(u32::MAX))?;
            let bytes = b.len * b.ty.storage_type().size();
            if bytes > b.memory.bytes() || b.len % b.ty.vector_size() != 0 {
                let got = format!("{} bytes", b.memory.bytes());
                let needed = format!("{} elements of {}", b.len, b.ty);
                return Err(CubeError::Buffer { kernel: kernel(), buffer: i, got, needed });
            }
        }
        Ok(())
    }

    /// The outcome of a launch.
    fn launched(&self, outcome: Result<(), CubeError>) -> Result<(), CubeError> {
        outcome.map_err(|e| self.noted(e))
    }

    fn check_healthy(&self) -> Result<(), CubeError> {
        match &*self.failure.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(message) => Err(CubeError::Poisoned(message.clone())),
            None => Ok(()),
        }
    }

    /// A failure of the driver is remembered; a refusal is not.
    fn noted(&self, error: CubeError) -> CubeError {
        match error {
            CubeError::Failed(message) => self.poison(message),
            refused => refused,
        }
    }

    fn poison(&self, message: String) -> CubeError {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert_with(|| message.clone());
        CubeError::Failed(message)
    }
}
