//! Kernels as CUDA C++, without a card, a driver or CubeCL's server. In: a region or a kernel of the library. Out: the code that CubeCL's
//! compiler makes of it for a card, and the options that NVRTC is to be given with it.

use super::{Arithmetic, Barriers, Binding, CubeError, DefineFn, LibraryKernel, Profile, Shape, Spec, profile};
use crate::layer::KernelDef;
use cubecl::Compiler;
use cubecl::ir::features::Plane;
use cubecl::ir::{
    ContiguousElements, DeviceProperties, ElemType, FloatKind, HardwareProperties, MatrixLayout,
    MemoryDeviceProperties, MmaProperties, TargetProperties, VectorSize,
};
use cubecl::prelude::*;
use cubecl::profile::TimingMethod;
use cubecl_cpp::cuda::CudaDialect;
use cubecl_cpp::cuda::arch::CudaArchitecture;
use cubecl_cpp::cuda::mma::{PtxWmmaCompiler, contiguous_elements_cuda};
use cubecl_cpp::shared::{
    CompilationOptions, CppCompiler, CppSupportedFeatures, SharedMemory, SupportedMmaCombinations,
    register_mma_features,
};
use cubecl_cpp::{Dialect, DialectWmmaCompiler, register_supported_types};
use kiln_compiler::fuse::Region;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// Launches on cards: some sixteen teams for each of about a hundred multiprocessors share a sum over rows, all at once, since their registers let
/// two cubes of eight run beside each other – twice as many would leave twice the partial sums; 256 units fill one with eight cubes; 16 bytes of
/// f32 are the widest load.
pub const CUDA_SHAPE: Shape = Shape {
    map_units: 256,
    row_units: 256,
    column_teams: 2048,
    plane: Some(32),
    width: 4,
    narrow_width: 8,
    logits: 1 << 27,
    converts: true,
    barriers: Barriers::Cheap,
};

/// CubeCL numbers temporary variables while it prints, with one counter for the process that each compilation sets back: two threads at once
/// would use a number twice, and the same kernel would not have the same code.
static COMPILING: Mutex<()> = Mutex::new(());

/// How CubeCL, which has no function for it, writes a power of two. NVRTC would compute the logarithm of 2 and keep a multiplication by 1.
const POWER_OF_TWO: &str = "__powf(float(2.0), ";

/// What code is compiled for: a compute capability, 90 for 9.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arch {
    compute: u32,
    name: &'static str,
}

impl Arch {
    /// Ampere: A100.
    pub const SM80: Arch = Arch { compute: 80, name: "sm_80" };
    /// Hopper: H100 and H200, with what only they have.
    pub const SM90A: Arch = Arch { compute: 90, name: "sm_90a" };
    /// Those that every kernel is compiled for in tests.
    pub const ALL: [Arch; 2] = [Arch::SM80, Arch::SM90A];
    /// Ampere without the A100, Ada, Blackwell.
    const OTHERS: [Arch; 6] = [
        Arch { compute: 86, name: "sm_86" },
        Arch { compute: 87, name: "sm_87" },
        Arch { compute: 89, name: "sm_89" },
        Arch { compute: 100, name: "sm_100" },
        Arch { compute: 103, name: "sm_103" },
        Arch { compute: 120, name: "sm_120" },
    ];

    /// That of cards of a compute capability, if Kiln's kernels run on them.
    pub fn of(compute: u32) -> Option<Arch> {
        Arch::ALL.into_iter().chain(Arch::OTHERS).find(|a| a.compute == compute)
    }

    /// NVIDIA's name.
    pub fn name(self) -> &'static str {
        self.name
    }

    fn is_hopper(self) -> bool {
        self.compute == 90
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A kernel in CUDA C++.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaSource {
    /// Its entry point.
    pub name: String,
    /// The whole translation unit.
    pub code: String,
    /// Units of a cube.
    pub units: u32,
    /// Lanes of its vectors.
    pub width: usize,
    /// Shared memory that a launch asks for; the code declares none of its own.
    pub shared_bytes: usize,
    /// How sums of products may be compiled.
    pub arithmetic: Arithmetic,
    /// What it is compiled for.
    pub arch: Arch,
}

impl CudaSource {
    /// Makes the first integer arguments constants of the code; launches still pass them.
    #[cfg(feature = "cuda")]
    pub(in crate::device) fn bind_sizes(&mut self, sizes: &[usize]) {
        for (i, size) in sizes.iter().enumerate() {
            self.code = self.code.replace(&format!("info.scalars_uint32[{i}]"), &format!("uint32({size})"));
        }
    }

    /// Options of NVRTC beside the folders of its headers.
    pub fn options(&self) -> Vec<String> {
        let mut options = vec![format!("--gpu-architecture={}", self.arch)];
        match self.arithmetic {
            Arithmetic::AsWritten => options.push("--fmad=false".to_owned()),
            Arithmetic::Contracted => {}
            Arithmetic::Flushed => options.push("--ftz=true".to_owned()),
        }
        options
    }
}

/// Makes CUDA C++ for one kind of card.
#[derive(Clone)]
pub struct CudaCompiler {
    arch: Arch,
    profile: Profile,
}

impl CudaCompiler {
    /// For cards of `arch`.
    pub fn new(arch: Arch) -> CudaCompiler {
        let memory = if arch.is_hopper() { 80 << 30 } else { 40 << 30 };
        let processors = if arch.is_hopper() { 132 } else { 108 };
        let (properties, target) = cuda_profile(arch, processors, memory);
        CudaCompiler { arch, profile: Profile { shape: CUDA_SHAPE, properties, target } }
    }

    /// A region's kernel for any sizes: `emitted`, or its program walked. A card's server makes the sizes of its plan constants.
    ///
    /// # Errors
    /// [`CubeError`] if kernels cannot express it.
    pub fn region(
        &self,
        region: &Arc<Region>,
        emitted: Option<&KernelDef>,
        binding: &Binding<'_>,
    ) -> Result<CudaSource, CubeError> {
        let prepared = self.profile.prepare(region, emitted, binding)?;
        let (spec, define) = prepared.kernel();
        self.source(spec, define)
    }

    /// A kernel of the library.
    ///
    /// # Errors
    /// [`CubeError`] if CubeCL's compiler refuses it.
    pub fn library(&self, kernel: &LibraryKernel) -> Result<CudaSource, CubeError> {
        self.source(&self.profile.library(kernel), kernel.define())
    }

    fn source(&self, spec: &Spec, define: DefineFn) -> Result<CudaSource, CubeError> {
        cuda_source(&self.profile, spec, define, self.arch)
    }
}

/// A kernel as CUDA C++, with positions as u32. Accesses are not checked once more: a launch's buffers were compared with what its kernel
/// reads and writes before.
///
/// # Errors
/// [`CubeError`] if CubeCL's compiler refuses it.
pub(in crate::device) fn cuda_source(
    profile: &Profile,
    spec: &Spec,
    define: DefineFn,
    arch: Arch,
) -> Result<CudaSource, CubeError> {
    let definition = profile.try_define(spec, define)?;
    let address = profile::settings(spec).address_type.unsigned_type();
    // In this dialect code includes no `mma.h`, which comes with NVCC alone.
    let mut compiler = CppCompiler::<CudaDialect<PtxWmmaCompiler>>::default();
    let (code, shared_bytes) = {
        let _one_at_a_time = COMPILING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kernel = compiler
            .compile(definition, &options(arch), ExecutionMode::Unchecked, address)
            .map_err(|e| CubeError::Build { kernel: spec.name.clone(), message: e.to_string() })?;
        place_in_order(&mut kernel.body.shared_memories);
        (kernel.to_string(), kernel.shared_memory_size())
    };
    if let Some(said) = spec.shared.filter(|&said| said != shared_bytes) {
        let message = format!("{shared_bytes} bytes of shared memory, not {said} as its launches are checked for");
        return Err(CubeError::Build { kernel: spec.name.clone(), message });
    }
    Ok(CudaSource {
        name: spec.name.clone(),
        units: spec.cube_dim,
        width: spec.width,
        shared_bytes,
        code: in_one_order(&code).replace(POWER_OF_TWO, "exp2f("),
        arithmetic: spec.arithmetic,
        arch,
    })
}

/// Lays shared memories one after the other by number; CubeCL does it in the order of a hash map. Those that share a place, since they never
/// live at once, stay where they are.
fn place_in_order<D: Dialect>(memories: &mut [SharedMemory<D>]) {
    memories.sort_by_key(SharedMemory::offset);
    if memories.windows(2).any(|pair| pair[0].offset() + pair[0].size() > pair[1].offset()) {
        return;
    }
    memories.sort_by_key(|memory| match memory {
        SharedMemory::Array { index, .. } | SharedMemory::Value { index, .. } => *index,
    });
    let mut end = 0;
    for memory in memories {
        let (size, align) = (memory.size(), memory.align());
        let (SharedMemory::Array { offset, .. } | SharedMemory::Value { offset, .. }) = memory;
        *offset = usize::next_multiple_of(end, align);
        end = *offset + size;
    }
}

/// The code with its declarations in one order: CubeCL writes vector types and variables in those of hash maps, others each time, and a cache
/// of compiled kernels is keyed by their code.
fn in_one_order(code: &str) -> String {
    const BEGIN: &str = "\nstruct __align__(";
    const END: &str = "\n};";
    let types = || {
        let (first, last) = (code.find(BEGIN)?, code.rfind(BEGIN)?);
        Some((first, last + code[last..].find(END)? + END.len()))
    };
    let (first, end) = types().unwrap_or((0, 0));
    let mut types: Vec<&str> = code[first..end].split_inclusive(END).collect();
    types.sort_unstable();
    let mut sorted = [&code[..first], &types.concat()].concat();
    for run in code[end..].split_inclusive('\n').collect::<Vec<_>>().chunk_by(|a, b| declares(a) && declares(b)) {
        let mut lines = run.to_vec();
        lines.sort_unstable();
        sorted.extend(lines);
    }
    sorted
}

/// Whether a line is `float_4 l_mut_7;`.
fn declares(line: &str) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    matches!(words[..], [_, variable] if variable.starts_with("l_mut_") && variable.ends_with(';'))
}

/// What CubeCL's CUDA runtime tells its compiler about such a card.
fn options(arch: Arch) -> CompilationOptions {
    let is_hopper = arch.is_hopper();
    CompilationOptions {
        warp_size: 32,
        supports_features: CppSupportedFeatures {
            grid_constants: true,
            clusters: is_hopper,
            // Only where a kernel asks for it; none of Kiln's does.
            fast_math: true,
            fast_tanh: true,
            elect_sync: is_hopper,
        },
    }
}

/// What kernels may use on a card with so many multiprocessors and bytes, and the target of CubeCL's expansion.
pub(in crate::device) fn cuda_profile(
    arch: Arch,
    processors: u32,
    memory: usize,
) -> (DeviceProperties, fn() -> TargetProperties) {
    let hardware = HardwareProperties {
        load_width: 128,
        plane_size_min: 32,
        plane_size_max: 32,
        max_bindings: 1024,
        // What every card gives to a launch that asks for nothing special.
        max_shared_memory_size: 48 << 10,
        max_cube_count: (i32::MAX as u32, u32::from(u16::MAX), u32::from(u16::MAX)),
        max_units_per_cube: 1024,
        max_cube_dim: (1024, 1024, 64),
        num_streaming_multiprocessors: Some(processors),
        num_tensor_cores: Some(4),
        min_tensor_cores_dim: Some(8),
        num_cpu_cores: None,
        max_vector_size: VectorSize::MAX,
    };
    // One allocation may take all; what a plan slices lies at multiples of its own alignment.
    let memory = MemoryDeviceProperties { max_page_size: memory as u64, alignment: super::ALIGNMENT as u64 };
    let mut properties = DeviceProperties::new(Default::default(), memory, hardware, TimingMethod::System);
    register_supported_types(&mut properties);
    register_mma_features(supported_mma(&CudaArchitecture { version: arch.compute }), &mut properties);
    let features = &mut properties.features;
    for kind in [FloatKind::F16, FloatKind::BF16] {
        features.matmul.ldmatrix.insert(ElemType::Float(kind).into());
    }
    features.memory_reinterpret = true;
    features.alignment = true;
    features.copy_async = true;
    features.cube_cluster = arch.is_hopper();
    features.plane.insert(Plane::Sync);
    features.plane.insert(Plane::Ops);
    features.plane.insert(Plane::NonUniformControlFlow);
    (properties, target)
}

/// Shapes of products on tensor cores.
fn supported_mma(arch: &CudaArchitecture) -> SupportedMmaCombinations {
    <PtxWmmaCompiler as DialectWmmaCompiler<CudaDialect<PtxWmmaCompiler>>>::supported_mma_combinations(arch)
}

/// Layouts of matrix fragments, as in CubeCL's CUDA runtime.
fn target() -> TargetProperties {
    TargetProperties {
        mma: MmaProperties {
            register_size_bits: 32,
            const_plane_size: 32,
            register_layout_a: MatrixLayout::RowMajor,
            register_layout_b: MatrixLayout::ColMajor,
            register_layout_acc: MatrixLayout::RowMajor,
            register_duplication_a: 1,
            register_duplication_b: 1,
            register_duplication_acc: 1,
            contiguous_elements: ContiguousElements::new(contiguous_elements_cuda),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_compiler::ir::DType;

    #[test]
    fn cards_have_tensor_cores_for_halves() {
        for arch in Arch::ALL {
            let profile = CudaCompiler::new(arch).profile;
            let has = [DType::Bf16, DType::F16, DType::F32, DType::I32].map(|dtype| profile.has_mma(dtype));
            assert_eq!(has, [true, true, false, false], "{arch}");
        }
    }

    #[test]
    fn declarations_have_one_order() {
        let types = ["\nstruct __align__(8) b_2 {\n    b i_0;\n};", "\nstruct __align__(4) a_4 {\n    a i_0;\n};"];
        let variables = ["float l_mut_9;\n", "bool l_mut_1;\n"];
        let code = |types: [&str; 2], variables: [&str; 2]| {
            let body = "\nstruct info_st {\n};\nvoid k() {\n";
            [&types.concat(), body, &variables.concat(), "l_mut_9 = 1;\nl_mut_1 = true;\n}"].concat()
        };
        let sorted = code([types[1], types[0]], [variables[1], variables[0]]);
        assert_eq!(in_one_order(&code(types, variables)), sorted);
        assert_eq!(in_one_order(&sorted), sorted);
        assert_eq!(in_one_order("void k() {\n}"), "void k() {\n}");
    }
}
