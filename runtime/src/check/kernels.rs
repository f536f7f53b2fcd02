//! Every fused region that a registered layer's macro emits a kernel for, against its f64 meaning: on the host and on wgpu.
//!
//! In: the layers of all linked crates. Out: cases, each a region at some sizes and element types, and for a device the first element
//! that is too far from the truth. Operands have both signs, results are full of NaN before a launch.

use crate::device::host::arena::Arena;
use crate::device::host::pool::Pool;
use crate::device::host::tile::{StreamArg, TileArgs, TileProgram};
use crate::layer::{KernelDef, LayerDef};
use crate::plan::arena;
use crate::random;
use crate::tensor::record;
use kiln_compiler::fuse::reference::{self, Bindings};
use kiln_compiler::fuse::{Index, Instr, Layout, Region, ScalarArg};
use kiln_compiler::interp::{Array, round};
use kiln_compiler::ir::{Attr, DType, Layer, Sizes, text};
use kiln_compiler::variants;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Why a check failed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CheckError {
    /// The layer's own text or body.
    #[error("layer `{layer}`: {why}")]
    Layer {
        /// Its name.
        layer: String,
        /// What is wrong.
        why: String,
    },
    /// The device cannot run the region.
    #[error("kernel `{kernel}` on {device}: {why}")]
    Refused {
        /// Name.
        kernel: String,
        /// Device.
        device: &'static str,
        /// What it said.
        why: String,
    },
    /// A wrong value.
    #[error(
        "kernel `{kernel}` on {device}, output {output} as {dtype} with {sizes}: element {index} is {found}, not {expected}"
    )]
    Differs {
        /// Name.
        kernel: String,
        /// Device.
        device: &'static str,
        /// Number of the output.
        output: usize,
        /// Its element type.
        dtype: DType,
        /// Sizes of the axes.
        sizes: String,
        /// Row-major position.
        index: usize,
        /// What the device computed.
        found: f64,
        /// What it should be.
        expected: f64,
    },
}

/// One region of a registered layer.
#[derive(Clone)]
pub struct KernelCase {
    /// Module path and name of the layer.
    pub layer: String,
    /// Name of the kernel.
    pub name: String,
    /// The region, its configuration values replaced by numbers.
    pub region: Region,
    /// What the macro emitted; none where no GPU feature is compiled in, for traced layers, and for regions that no template takes.
    pub emitted: Option<&'static KernelDef>,
}

/// All regions of all registered layers and of the layers below them, instances of generic ones among them; each distinct one of a layer once.
///
/// # Errors
/// [`CheckError::Layer`] if a layer's IR cannot be read or differentiated.
pub fn cases() -> Result<Vec<KernelCase>, CheckError> {
    let mut all = Vec::new();
    for def in super::every_layer() {
        let fail = |why: String| CheckError::Layer { layer: def.name.to_owned(), why };
        let layer = layer(def)?;
        for named in variants::regions(&layer).map_err(|e| fail(e.diagnostic.to_string()))? {
            let hash = named.region.hash();
            all.push(KernelCase {
                layer: format!("{}::{}", def.module, def.name),
                name: named.name,
                region: numbered(&named.region),
                emitted: def.kernels.iter().find(|k| k.hash == hash),
            });
        }
    }
    Ok(all)
}

/// A layer's IR: what its macro parsed, or what its body records.
fn layer(def: &'static LayerDef) -> Result<Layer, CheckError> {
    let fail = |why: String| CheckError::Layer { layer: def.name.to_owned(), why };
    let parsed = text::parse_layer(def.ir).map_err(|e| fail(e.to_string()))?;
    match def.record {
        Some(body) if parsed.annotations.trace => record(def, body, &BTreeMap::new()).map_err(|e| fail(e.to_string())),
        _ => Ok(parsed),
    }
}

/// A value for `#[config]` numbers: exact in every float type, no identity of any operation.
const CONFIGURED: f64 = 0.375;

fn numbered(region: &Region) -> Region {
    let mut region = region.clone();
    for s in &mut region.scalars {
        if let ScalarArg::Literal(Attr::Config(_)) = s {
            *s = ScalarArg::Literal(Attr::Float(CONFIGURED));
        }
    }
    region
}

/// Sizes that a case is run at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extents {
    /// One element along each axis (two where halves are rotated).
    One,
    /// Odd sizes, over several cubes: scalar kernels.
    Odd,
    /// The last axis a multiple of 4 and not of 32: vector kernels.
    Wide,
    /// A long last axis, of which units of a plane have several vectors, and some fewer than others.
    Long,
    /// A long last axis, of which all have the same number.
    Full,
}

/// All of them.
pub const EXTENTS: [Extents; 5] = [Extents::One, Extents::Odd, Extents::Wide, Extents::Long, Extents::Full];
/// Sizes of axes in order; products span several cubes and several tiles.
const ODD: [usize; 7] = [3, 11, 7, 5, 3, 3, 3];
/// The same beside a long axis.
const SHORT: [usize; 4] = [2, 3, 2, 1];
/// Number of entries of a table that is indexed by ids.
const ENTRIES: usize = 23;

fn sizes(region: &Region, extents: Extents) -> Sizes {
    let rotated = |a: usize| {
        let by_index = |l: &Layout| l.axes.contains(&Index::Rotated(a));
        region.inputs.iter().any(by_index) || region.code.contains(&Instr::HalfSign(a))
    };
    let last = region.domain.len().wrapping_sub(1);
    let size = |a: usize| match (extents, a == last, rotated(a)) {
        (Extents::One, _, rotated) => 1 + usize::from(rotated),
        (Extents::Odd, true, rotated) => 37 + usize::from(rotated),
        (Extents::Wide, true, _) => 36,
        (Extents::Long, true, _) => 520,
        (Extents::Full, true, _) => 768,
        (Extents::Long | Extents::Full, false, rotated) => SHORT[a % SHORT.len()] + usize::from(rotated),
        (_, false, rotated) => ODD[a % ODD.len()] + usize::from(rotated),
    };
    let domain = region.domain.iter().enumerate().map(|(a, &axis)| (axis, size(a)));
    let extra = region.extra_axes.iter().filter(|a| !region.domain.contains(a)).map(|&a| (a, ENTRIES));
    domain.chain(extra).collect()
}

/// A region at sizes and element types, with operands and the results that they must give.
pub struct Trial {
    kernel: String,
    region: Arc<Region>,
    sizes: Sizes,
    operands: Vec<Array>,
    expected: Vec<Array>,
}

/// Step of the random streams: both words are used.
const STEP: u64 = 5_000_000_123;

/// Key and first element of stream `s`: the low word of the position overflows within the tensor.
fn stream(s: usize) -> (u64, u64) {
    (0x0123_4567_89ab_cdef + s as u64, (1 << 32) - 5)
}

impl KernelCase {
    /// The region with layers computing in `compute`, and its sizes.
    fn bound(&self, extents: Extents, compute: DType) -> (Region, Sizes) {
        let mut region = self.region.clone();
        for d in &mut region.dtypes {
            if matches!(d, DType::Compute | DType::Sub(_)) {
                *d = compute;
            }
        }
        let sizes = sizes(&region, extents);
        (region, sizes)
    }

    /// The kernel in CUDA C++, as a launch at these sizes with layers computing in `compute` would run it.
    ///
    /// # Errors
    /// [`CheckError::Refused`] if kernels cannot express the region.
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    pub fn cuda(
        &self,
        compiler: &crate::device::cube::CudaCompiler,
        extents: Extents,
        compute: DType,
    ) -> Result<crate::device::cube::CudaSource, CheckError> {
        let (region, sizes) = self.bound(extents, compute);
        let binding = crate::device::cube::Binding { sizes: &sizes, dtype: &|d| d, part: &|_| None };
        compiler.region(&Arc::new(region), self.emitted, &binding).map_err(|why| CheckError::Refused {
            kernel: self.name.clone(),
            device: "CUDA",
            why: why.to_string(),
        })
    }

    /// The case at sizes, with layers computing in `compute`.
    pub fn trial(&self, extents: Extents, compute: DType) -> Trial {
        let (region, sizes) = self.bound(extents, compute);
        let operands = operands(&region, &sizes);
        let scalars: Vec<f32> = region.scalars.iter().map(|s| scalar(s, &sizes)).collect();
        let uniform = |s: usize, index: u64| {
            let (key, first) = stream(s);
            random::uniform(key, first + index, STEP)
        };
        let bindings = Bindings { dtypes: &region.dtypes, scalars: &scalars, uniform: &uniform };
        let expected = reference::run(&region, &sizes, &bindings, &operands);
        Trial { kernel: self.name.clone(), region: Arc::new(region), sizes, operands, expected }
    }

    /// Whether its results depend on the layer's precision.
    pub fn has_compute_type(&self) -> bool {
        self.region.dtypes.iter().any(|d| matches!(d, DType::Compute | DType::Sub(_)))
    }
}

fn scalar(s: &ScalarArg, sizes: &Sizes) -> f32 {
    match s {
        ScalarArg::Literal(Attr::Float(x)) => *x as f32,
        ScalarArg::Literal(Attr::Int(x)) => *x as f32,
        ScalarArg::Literal(other) => panic!("{other:?} is no number, and `numbered` left it"),
        ScalarArg::Size { axes, recip: true } => 1.0 / sizes.elements(axes) as f32,
        ScalarArg::Size { axes, recip: false } => sizes.elements(axes) as f32,
    }
}

/// Scalar operands are bases of rotary positions, counts and cotangents of losses: all may be this.
const SCALAR_OPERAND: f64 = 100.0;
/// Rows per id that a segmented sum finds on average, about.
const ROWS_PER_ID: usize = 3;

fn operands(region: &Region, sizes: &Sizes) -> Vec<Array> {
    let mut extra = region.extra_axes.iter();
    let mut operands: Vec<Array> = Vec::new();
    for (k, layout) in region.inputs.iter().enumerate() {
        let mut dim = |index: &Index| match *index {
            Index::Domain(a) | Index::Rotated(a) => sizes.of(region.domain[a]),
            Index::Value(_) => extra.next().map_or(ENTRIES, |&a| sizes.of(a)),
        };
        let dims: Vec<usize> = layout.axes.iter().map(&mut dim).collect();
        operands.push(filled(k, dims, region.dtypes[layout.dtype], region.inputs.len()));
    }
    for instr in &region.code {
        if let Instr::SegmentSum { values, order, starts, ends } = *instr {
            let interior = sizes.shape(region.interior());
            let sorted = Segments::new(sizes.elements(&region.domain[..region.rows]));
            let dims = [vec![sorted.order.len()], interior].concat();
            operands[values] = filled(values, dims, region.dtypes[region.inputs[values].dtype], region.inputs.len());
            operands[order] = Array::new([sorted.order.len()], sorted.order);
            operands[starts] = Array::new([sorted.starts.len()], sorted.starts);
            operands[ends] = Array::new([sorted.ends.len()], sorted.ends);
        }
    }
    operands
}

/// Numbers of rows sorted by id, stable; some ids have none.
struct Segments {
    order: Vec<f64>,
    starts: Vec<f64>,
    ends: Vec<f64>,
}

impl Segments {
    fn new(ids: usize) -> Segments {
        let rows = ROWS_PER_ID * ids + 1;
        let id = |row: usize| (random::uniform(1, row as u64, 0) * ids as f32) as usize;
        let mut order: Vec<usize> = (0..rows).collect();
        order.sort_by_key(|&row| id(row));
        let before = |limit: usize| order.iter().filter(|&&row| id(row) < limit).count() as f64;
        let (starts, ends) = (0..ids).map(|i| (before(i), before(i + 1))).unzip();
        Segments { order: order.into_iter().map(|row| row as f64).collect(), starts, ends }
    }
}

/// Ids lie in range, below it and above it; floats are uniform in [−2, 2) as their type holds them.
fn filled(operand: usize, dims: Vec<usize>, dtype: DType, n_operands: usize) -> Array {
    let len: usize = dims.iter().product();
    let number = |i: usize| {
        let u = f64::from(random::uniform((operand * 31 + n_operands) as u64, i as u64, 7));
        match dtype {
            DType::I32 => (u * (ENTRIES + 2) as f64).floor() - 1.0,
            DType::Bool => (2.0 * u).floor(),
            _ if dims.is_empty() => SCALAR_OPERAND,
            _ => round(dtype, f64::from((4.0 * u - 2.0) as f32)),
        }
    };
    Array::new(dims.clone(), (0..len).map(number).collect())
}

impl Trial {
    /// Runs it on the host.
    ///
    /// # Errors
    /// [`CheckError`] names the first element that is wrong.
    pub fn on_host(&self) -> Result<(), CheckError> {
        const DEVICE: &str = "the host";
        let refused = |why: String| CheckError::Refused { kernel: self.kernel.clone(), device: DEVICE, why };
        let pool = Pool::new(2).map_err(|e| refused(e.to_string()))?;
        let region = &self.region;
        let program = TileProgram::new(region, &self.sizes, |d| d, |_| None, pool.threads())
            .map_err(|e| refused(e.to_string()))?;
        let types: Vec<DType> = region.layouts().map(|l| region.dtypes[l.dtype]).collect();
        let arrays: Vec<&Array> = self.operands.iter().chain(&self.expected).collect();
        let bytes = |i: usize| arrays[i].data.len() * types[i].bytes();
        let offsets: Vec<usize> = (0..=arrays.len()).map(|n| (0..n).map(|i| arena::align(bytes(i))).sum()).collect();
        let all = offsets[arrays.len()];
        let owners = || vec![("operands of the check".to_owned(), all)];
        let memory = Arena::new(all, &pool, owners).map_err(|e| refused(e.to_string()))?;
        let views: Vec<_> = (0..arrays.len()).map(|i| memory.buf(offsets[i], bytes(i), types[i])).collect();
        let (inputs, outputs) = views.split_at(self.operands.len());
        for ((view, array), dtype) in inputs.iter().zip(&self.operands).zip(&types) {
            view.store(0, &array.data.iter().map(|&x| stored(*dtype, x)).collect::<Vec<_>>());
        }
        for view in outputs {
            view.store(0, &vec![f32::NAN; view.len()]);
        }
        let streams: Vec<StreamArg> = (0..region.streams.len())
            .map(|s| {
                let (key, offset) = stream(s);
                StreamArg { key, offset }
            })
            .collect();
        let args = TileArgs { inputs, outputs, accumulate: &[], streams: &streams, step: STEP };
        program.run(&pool, &args, &mut vec![f32::NAN; program.workspace_len()]);
        for (o, (view, dtype)) in outputs.iter().zip(&types[self.operands.len()..]).enumerate() {
            let mut found = vec![0.0; view.len()];
            view.load(0, &mut found);
            let found: Vec<f64> = found.into_iter().map(|x| loaded(*dtype, x)).collect();
            self.compare(DEVICE, o, *dtype, &found)?;
        }
        Ok(())
    }

    /// Runs it on a GPU: `emitted`, or its program walked.
    ///
    /// # Errors
    /// [`CheckError`] names the first element that is wrong.
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    pub fn on_device(
        &self,
        device: &crate::device::cube::CubeDevice,
        emitted: Option<&KernelDef>,
    ) -> Result<(), CheckError> {
        use crate::device::cube::{Binding, CubeError, RegionArgs, Scratch, StreamState};
        let name = device.name();
        let refused =
            |why: CubeError| CheckError::Refused { kernel: self.kernel.clone(), device: name, why: why.to_string() };
        let region = &self.region;
        let binding = Binding { sizes: &self.sizes, dtype: &|d| d, part: &|_| None };
        let prepared = device.prepare(region, emitted, &binding).map_err(refused)?;
        let types: Vec<DType> = region.layouts().map(|l| region.dtypes[l.dtype]).collect();
        let (inputs, outputs) = types.split_at(self.operands.len());
        let upload = |(array, dtype): (&Array, &DType)| device.upload(*dtype, &array.data).map_err(refused);
        let inputs = self.operands.iter().zip(inputs).map(upload).collect::<Result<Vec<_>, _>>()?;
        let poison = |array: &Array| Array::new(array.dims.clone(), vec![f64::NAN; array.data.len()]);
        let poisoned: Vec<Array> = self.expected.iter().map(poison).collect();
        let results = poisoned.iter().zip(outputs).map(upload).collect::<Result<Vec<_>, _>>()?;
        let streams: Vec<StreamState> = (0..region.streams.len())
            .map(|s| {
                let (key, offset) = stream(s);
                StreamState { key, offset }
            })
            .collect();
        let random = device.random_words(&prepared, STEP, &streams).map_err(refused)?;
        let args = RegionArgs { inputs: &inputs, outputs: &results, accumulate: &[], random: random.as_ref() };
        device.run_region(&prepared, &args, &mut Scratch::Pool).map_err(refused)?;
        for (o, (result, dtype)) in results.iter().zip(outputs).enumerate() {
            self.compare(name, o, *dtype, &device.download(result).map_err(refused)?)?;
        }
        Ok(())
    }

    fn compare(&self, device: &'static str, output: usize, dtype: DType, found: &[f64]) -> Result<(), CheckError> {
        let expected = &self.expected[output].data;
        // Cancellation leaves errors of the size of the largest terms.
        let scale = expected.iter().filter(|x| x.is_finite()).fold(1.0f64, |m, x| m.max(x.abs()));
        let tolerance = self.tolerance(dtype);
        let off = |(&e, &f): (&f64, &f64)| {
            let equal = e == f || e.is_nan() && f.is_nan();
            !(equal || (e - f).abs() <= tolerance * scale)
        };
        match expected.iter().zip(found).position(off) {
            None => Ok(()),
            Some(index) => Err(CheckError::Differs {
                kernel: self.kernel.clone(),
                device,
                output,
                dtype,
                sizes: crate::trainer::sizes_text(&self.sizes),
                index,
                found: found[index],
                expected: expected[index],
            }),
        }
    }

    /// Relative to the largest element: rounding errors of f32, and one unit of each narrower type that values pass through, since
    /// a value beside the middle of two neighbours may fall to either.
    fn tolerance(&self, stored: DType) -> f64 {
        if stored == DType::Bool || stored == DType::I32 {
            return 0.0;
        }
        let unit = |d: &DType| match d {
            DType::Bf16 => 2f64.powi(-7),
            DType::F16 => 2f64.powi(-10),
            _ => 0.0,
        };
        UNITS * f64::from(f32::EPSILON) + self.region.dtypes.iter().map(unit).fold(0.0, f64::max)
    }
}

/// Elementary functions of shading languages are within 3 + 2|x| units in the last place, sums of 37 × 33 terms add a few tens.
const UNITS: f64 = 64.0;

/// As the host's buffers take numbers: integers as their bits.
fn stored(dtype: DType, x: f64) -> f32 {
    if dtype == DType::I32 { f32::from_bits(x as i32 as u32) } else { x as f32 }
}

fn loaded(dtype: DType, x: f32) -> f64 {
    if dtype == DType::I32 { f64::from(x.to_bits() as i32) } else { f64::from(x) }
}
