//! What CubeCL answers with zeros, a log line or a panic of its server is a typed error here, which names the kernel and, for a step of a
//! plan, the layer. On wgpu, which every machine of ours has.

use super::schedule::at;
use super::*;
use crate::device::wgpu;
use crate::kernels::training::{define_copy_words, define_fill};
use crate::plan::{Phase, Step, Work, Write};
use kiln_compiler::ir::Sizes;
use std::sync::LazyLock;

/// One device for all cases: opening one takes seconds on software drivers.
static DEVICE: LazyLock<Option<CubeDevice>> = LazyLock::new(|| wgpu::open().ok());

/// The device; where there is none, the case says so and is counted as skipped by `cargo xtask test`.
fn device(case: &str) -> Option<&'static CubeDevice> {
    if let (None, Some(list)) = (&*DEVICE, std::env::var_os("KILN_SKIPS")) {
        let line = format!("{case}\tno wgpu device\n");
        let file = std::fs::OpenOptions::new().append(true).create(true).open(list);
        file.and_then(|mut f| std::io::Write::write_all(&mut f, line.as_bytes())).unwrap();
    }
    DEVICE.as_ref()
}

/// The error as the user of a plan sees it: with kernel, layer and line.
fn told(error: CubeError) -> String {
    let step = Step {
        work: Work::Accumulate(Write::Store),
        inputs: Vec::new(),
        outputs: Vec::new(),
        path: "trunk.blocks.3".into(),
        file: "model.rs".into(),
        line: 12,
        phase: Phase::Forward,
        sizes: Arc::new(Sizes::default()),
        split: None,
    };
    let text = at(&step, error).to_string();
    let names = ["K0832: model.rs:12: ", "layer `trunk.blocks.3`", "kernel `"];
    assert!(names.iter().all(|part| text.contains(part)), "{text}");
    text
}

fn spec(device: &CubeDevice, name: &str) -> Spec {
    Spec { name: name.to_owned(), ..device.profile.library(&LibraryKernel::Factor) }
}

fn f32s(buffer: &Buffer, len: usize) -> Bound<'_> {
    Bound { memory: &buffer.memory, len, ty: Type::new(StorageType::Scalar(ElemType::Float(FloatKind::F32))) }
}

fn still_works(device: &CubeDevice) {
    let y = device.empty(DType::F32, 9).unwrap();
    device.fill(&y, 2.5).unwrap();
    assert_eq!(device.download(&y).unwrap(), [2.5; 9]);
}

#[test]
fn an_unsupported_type_on_wgpu_is_refused() {
    let Some(device) = device("an_unsupported_type_on_wgpu_is_refused") else { return };
    let native = StorageType::Scalar(ElemType::Float(FloatKind::E4M3));
    let x = device.upload(DType::F32, &[1.0; 4]).unwrap();
    let bound = Bound { ty: Type::new(native), ..f32s(&x, 4) };
    let refused = device.launch(&spec(device, "fp8"), define_fill, 1, &[bound], &[4], &[0.0]);
    let text = told(refused.unwrap_err());
    assert!(text.contains("`fp8`") && text.contains("which the device does not"), "{text}");
    still_works(device);
}

#[test]
fn an_oversize_buffer_on_wgpu_is_refused() {
    let Some(device) = device("an_oversize_buffer_on_wgpu_is_refused") else { return };
    let elements = device.memory().chunk / 4 + 1;
    for refused in [device.empty(DType::F32, elements).map(|_| ()), device.send(&vec![0; elements * 4]).map(|_| ())] {
        let text = told(refused.unwrap_err());
        assert!(text.contains("bytes in one buffer"), "{text}");
    }
    still_works(device);
}

#[test]
fn a_misaligned_slice_on_wgpu_is_refused() {
    let Some(device) = device("a_misaligned_slice_on_wgpu_is_refused") else { return };
    let x = device.upload(DType::F32, &[0.0; 100]).unwrap();
    let shifted = Buffer { memory: x.memory.slice(4, 4 * 96), ..x };
    let refused = device.launch(&spec(device, "shifted"), define_fill, 1, &[f32s(&shifted, 8)], &[8], &[1.0]);
    let text = told(refused.unwrap_err());
    assert!(text.contains("`shifted`") && text.contains("begins at byte 4"), "{text}");
    still_works(device);
}

#[test]
fn a_missing_argument_on_wgpu_is_refused() {
    let Some(device) = device("a_missing_argument_on_wgpu_is_refused") else { return };
    let x = device.upload(DType::F32, &[0.0; 8]).unwrap();
    let one = || vec![f32s(&x, 8)];
    let launch = |buffers: &[Bound<'_>], indices: &[usize], scalars: &[f32]| {
        told(device.launch(&spec(device, "fill"), define_fill, 1, buffers, indices, scalars).unwrap_err())
    };
    let text = launch(&[], &[8], &[1.0]);
    assert!(text.contains("takes 1 buffers, 0 were given"), "{text}");
    let text = launch(&one(), &[8], &[]);
    assert!(text.contains("takes 2 scalars, 1 were given"), "{text}");
    let wide = Bound {
        ty: Type::new(StorageType::Scalar(ElemType::Float(FloatKind::F32))).with_vector_size(4),
        ..f32s(&x, 8)
    };
    let text = launch(&[wide], &[8], &[1.0]);
    assert!(text.contains("buffer 0 has"), "{text}");
    let text = launch(&[f32s(&x, 9)], &[8], &[1.0]);
    assert!(text.contains("the kernel needs 9 elements"), "{text}");
    still_works(device);
}

#[test]
fn too_large_a_grid_on_wgpu_is_refused() {
    let Some(device) = device("too_large_a_grid_on_wgpu_is_refused") else { return };
    let x = device.upload(DType::F32, &[0.0; 8]).unwrap();
    let cubes = device.profile.max_cubes() * (device.profile.max_cubes() + 1);
    let refused = device.launch(&spec(device, "fill"), define_fill, cubes, &[f32s(&x, 8)], &[8], &[1.0]);
    let text = told(refused.unwrap_err());
    assert!(text.contains("`fill`") && text.contains("cubes along y"), "{text}");
    still_works(device);
}

#[test]
fn one_spec_with_two_bodies_on_wgpu_is_refused() {
    let Some(device) = device("one_spec_with_two_bodies_on_wgpu_is_refused") else { return };
    fn define_negative(builder: &mut KernelBuilder, spec: &Spec) {
        define_copy_words(builder, spec);
    }
    let x = device.upload(DType::F32, &[1.0; 8]).unwrap();
    let twin = spec(device, "twin");
    device.launch(&twin, define_fill, 1, &[f32s(&x, 8)], &[8], &[1.0]).unwrap();
    let refused = device.launch(&twin, define_negative, 1, &[f32s(&x, 8)], &[8], &[1.0]);
    let text = told(refused.unwrap_err());
    assert!(text.contains("`twin`") && text.contains("another body"), "{text}");
    // Another function with the same body is no other kernel.
    fn define_again(builder: &mut KernelBuilder, spec: &Spec) {
        std::hint::black_box(0);
        define_fill(builder, spec);
    }
    device.launch(&twin, define_again, 1, &[f32s(&x, 8)], &[8], &[3.0]).unwrap();
    assert_eq!(device.download(&x).unwrap(), [3.0; 8]);
}

#[test]
fn a_changed_body_on_wgpu_is_another_kernel() {
    let Some(device) = device("a_changed_body_on_wgpu_is_another_kernel") else { return };
    let fill = device.body(&spec(device, "kernel"), define_fill).unwrap();
    let wide = Spec { width: 4, ..spec(device, "kernel") };
    let contents = [
        fill.content,
        device.body(&wide, define_fill).unwrap().content,
        device.body(&spec(device, "kernel_b"), define_copy_words).unwrap().content,
    ];
    assert!(contents[0] != contents[1] && contents[1] != contents[2] && contents[0] != contents[2], "{contents:?}");
    // What a process that starts later computes.
    let later = wgpu::open().unwrap().body(&spec(device, "kernel"), define_fill).unwrap();
    assert_eq!(later.content, fill.content);
    let key = |content: u64| device.kernel(&spec(device, "kernel"), define_fill, content).id().stable_hash();
    assert!(key(fill.content) == key(later.content) && key(fill.content) != key(fill.content + 1));
}

#[test]
fn a_body_that_panics_on_wgpu_is_told() {
    let Some(device) = device("a_body_that_panics_on_wgpu_is_told") else { return };
    fn define_broken(_: &mut KernelBuilder, _: &Spec) {
        panic!("no such shape");
    }
    let refused = device.launch(&spec(device, "broken"), define_broken, 1, &[], &[], &[]);
    let text = told(refused.unwrap_err());
    assert!(text.contains("`broken`") && text.contains("no such shape"), "{text}");
    still_works(device);
}
