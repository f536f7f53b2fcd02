//! The kernel tier: emitted and walked kernels on wgpu against the f64 meaning of their regions, at sizes from one element to several cubes.

use kiln::__private::gpu::DefineFn;
use kiln::device::cube::CubeDevice;
use kiln::device::cube::{Binding, RegionArgs, Scratch, StreamState};
use kiln::device::wgpu;
use kiln::layer::KernelDef;
use kiln_compiler::fuse::reference::{self, Bindings};
use kiln_compiler::fuse::{Region, ScalarArg};
use kiln_compiler::interp::round;
use kiln_compiler::ir::{Attr, DType, Sizes};
use kiln_tests::regions::{self, Case, Match};
use kiln_tests::skips;
use std::sync::{Arc, LazyLock};

macro_rules! emitted {
    ($($name:ident $define:ident)*) => {
        $(#[allow(unused, missing_docs, clippy::all)]
        mod $name {
            use kiln::__private::{cubecl, gpu};
            use cubecl::prelude::*;
            include!(concat!("../golden/emit/", stringify!($name), ".kernel"));
        })*
        $(#[test]
        fn $name() {
            run_case(stringify!($name), $name::$define);
        })*
        mod walked {
            $(#[test]
            fn $name() {
                super::run_walked(stringify!($name));
            })*
        }
        #[test]
        fn each_region_is_run() {
            let run = [$(stringify!($name)),*];
            let cases: Vec<&str> = regions::cases().iter().map(|c| c.name).collect();
            assert_eq!(run.as_slice(), cases.as_slice());
        }
    };
}

emitted! {
    silu_mul define_silu_mul
    broadcast_add define_broadcast_add
    permuted define_permuted
    rope define_rope
    rms_norm define_rms_norm
    softmax define_softmax
    rms_norm_backward define_rms_norm_backward
    masked_softmax define_masked_softmax
    embedding define_embedding
    embedding_backward define_embedding_backward
    dropout define_dropout
    rounding define_rounding
    scalars define_scalars
    column_of_rows define_column_of_rows
    math define_math
}

/// One device for all cases: opening one takes seconds on software drivers.
static DEVICE: LazyLock<Option<CubeDevice>> = LazyLock::new(|| wgpu::open().ok());

/// The step of the random streams: both words are used.
const STEP: u64 = 5_000_000_123;
/// The key and the first element of stream `i`: an offset whose low word overflows within the tensor.
fn stream(i: usize) -> StreamState {
    StreamState { key: 0x0123_4567_89ab_cdef + i as u64, offset: (1 << 32) - 5 }
}

/// The kernel that was emitted and committed.
fn run_case(name: &'static str, define: DefineFn) {
    let hash = case(name).region.hash();
    run_all(name, Some(KernelDef { hash, name, define }));
}

/// The kernel that a walk over the region's program builds.
fn run_walked(name: &'static str) {
    run_all(name, None);
}

fn case(name: &str) -> Case {
    regions::cases().into_iter().find(|c| c.name == name).expect("each kernel has its region")
}

fn run_all(name: &str, emitted: Option<KernelDef>) {
    let Some(device) = skips::no_wgpu().is_none().then_some(DEVICE.as_ref()).flatten() else {
        skips::skip(name, "no wgpu device");
        return;
    };
    let case = case(name);
    for i in 0..case.sizes.len() {
        for dtypes in &case.dtypes {
            run(device, &case, emitted.as_ref(), &case.bound(i), dtypes);
        }
    }
}

fn run(device: &CubeDevice, case: &Case, emitted: Option<&KernelDef>, sizes: &Sizes, dtypes: &[DType]) {
    let region = Arc::new(Region { dtypes: dtypes.to_vec(), ..case.region.clone() });
    let operands = (case.operands)(case, sizes, dtypes);
    let scalars: Vec<f32> = region.scalars.iter().map(|s| scalar(s, sizes)).collect();
    let uniform = |i: usize, index: u64| regions::uniform(stream(i).key, stream(i).offset + index, STEP);
    let bindings = Bindings { dtypes, scalars: &scalars, uniform: &uniform };
    let expected = reference::run(&region, sizes, &bindings, &operands);

    let binding = Binding { sizes, dtype: &|d| d, part: &|_| None };
    let prepared = device.prepare(&region, emitted, &binding).expect("the region is ready");
    let upload = |(a, l): (&kiln_compiler::interp::Array, &kiln_compiler::fuse::Layout)| {
        device.upload(dtypes[l.dtype], &a.data).expect("operands fit")
    };
    let inputs: Vec<_> = operands.iter().zip(&region.inputs).map(upload).collect();
    let poison = |(a, (_, l)): (&kiln_compiler::interp::Array, &(usize, kiln_compiler::fuse::Layout))| {
        device.upload(dtypes[l.dtype], &vec![f64::NAN; a.data.len()]).expect("results fit")
    };
    let outputs: Vec<_> = expected.iter().zip(&region.outputs).map(poison).collect();
    let streams: Vec<StreamState> = (0..region.streams.len()).map(stream).collect();
    let random = device.random_words(&prepared, STEP, &streams).expect("as many as the region has");
    let args = RegionArgs { inputs: &inputs, outputs: &outputs, accumulate: &[], random: random.as_ref() };
    device.run_region(&prepared, &args, &mut Scratch::Pool).expect("the launch is accepted");
    for (o, (expected, buffer)) in expected.iter().zip(&outputs).enumerate() {
        let got = device.download(buffer).expect("the launch succeeds");
        let dtype = dtypes[region.outputs[o].1.dtype];
        compare(case, &region, o, dtype, sizes, &expected.data, &got);
    }
}

fn scalar(arg: &ScalarArg, sizes: &Sizes) -> f32 {
    match arg {
        ScalarArg::Literal(Attr::Float(x)) => *x as f32,
        ScalarArg::Literal(other) => panic!("{other:?} is not bound"),
        ScalarArg::Size { axes, recip: true } => 1.0 / sizes.elements(axes) as f32,
        ScalarArg::Size { axes, recip: false } => sizes.elements(axes) as f32,
    }
}

/// Functions of the shading languages are within 3 + 2|x| units in the last place, and sums of 300 terms add a few tens.
const UNITS: f64 = 64.0;

fn compare(case: &Case, region: &Region, o: usize, dtype: DType, sizes: &Sizes, expected: &[f64], got: &[f64]) {
    // A value beside the middle of two neighbours may fall to either: one unit of the stored type.
    let unit = match dtype {
        DType::Bf16 => 2f64.powi(-7),
        DType::F16 => 2f64.powi(-10),
        DType::F32 | DType::I32 | DType::Bool | DType::Compute | DType::Sub(_) => 0.0,
    };
    let lowest = |d: &DType| if *d == DType::Bf16 { 2f64.powi(-7) } else { 0.0 };
    // A Round inside the program may fall to either side too.
    let inner = if case.matching == Match::Rounded {
        case.dtypes.iter().flatten().map(lowest).fold(0.0, f64::max)
    } else {
        0.0
    };
    let tolerance = match case.matching {
        Match::Exact => 0.0,
        Match::Close | Match::Rounded => UNITS * f64::from(f32::EPSILON) + unit + inner,
    };
    let scale = expected.iter().fold(0.0f64, |m, x| m.max(x.abs())).min(1.0);
    assert_eq!(expected.len(), got.len());
    for (i, (&e, &g)) in expected.iter().zip(got).enumerate() {
        let close = e == g || e.is_nan() && g.is_nan() || (e - g).abs() <= tolerance * (e.abs() + scale);
        let reg = region.outputs[o].0;
        assert!(
            close,
            "{} output {o} ({:?}) as {dtype} at {i} of {} with {sizes:?}: expected {e}, got {g}\n{expected:?}\n{got:?}",
            case.name,
            region.code[reg],
            expected.len(),
        );
        assert!(g.is_nan() || round(dtype, g) == g, "{g} is not a {dtype}");
    }
}

#[test]
fn philox_is_the_published_one() {
    // Known answers of Random123 for Philox4x32-10.
    let zero = regions::philox([0; 4], [0; 2]);
    assert_eq!(zero, [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    let ones = regions::philox([u32::MAX; 4], [u32::MAX; 2]);
    assert_eq!(ones, [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
}
