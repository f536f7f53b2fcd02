//! The kernels of every registered layer of the examples: each region on the host and on wgpu against the f64 interpreter, none missing from
//! the tables when a model is linked, and the parsed body equal to the recorded one.

use kiln::check::kernels::{EXTENTS, KernelCase, cases};
use kiln::device::cube::CubeDevice;
use kiln::device::wgpu;
use kiln::layer::{Layer, LayerDef};
use kiln::link::{Keep, LinkOptions, link};
use kiln::{DType, Sizes, sizes};
use kiln_examples::gpt::{B, D, F, G, Gpt, GptLogits, GptTied, K, L, R, S, V};
use kiln_examples::mlp::{Mlp, MlpLogits};
use kiln_tests::skips;
use libtest_mimic::{Arguments, Failed, Trial};
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// One device for all cases: opening one takes seconds on software drivers.
static DEVICE: LazyLock<Option<CubeDevice>> = LazyLock::new(|| wgpu::open().ok());

fn main() {
    let arguments = Arguments::from_args();
    let cases = cases().expect("registered layers compile");
    let mut trials = Vec::new();
    for case in cases {
        let (on_host, on_wgpu) = (case.clone(), case.clone());
        let name = format!("{}/{}", case.layer, case.name);
        trials.push(Trial::test(format!("emitted/{name}"), move || emitted(&case)));
        trials.push(Trial::test(format!("host/{name}"), move || host(&on_host)));
        let case_name = format!("wgpu/{name}");
        trials.push(Trial::test(case_name.clone(), move || wgpu(&case_name, &on_wgpu)));
    }
    for (name, tensor, keep) in [
        ("one rank, keep all", 1, Keep::Everything),
        ("one rank, keep inputs", 1, Keep::Inputs),
        ("tensor=2, keep all", 2, Keep::Everything),
        ("tensor=2, keep inputs", 2, Keep::Inputs),
    ] {
        trials.push(Trial::test(format!("linked/{name}"), move || none_missing(tensor, keep)));
    }
    trials.push(Trial::test("recorded/every layer", recorded));
    libtest_mimic::run(&arguments, trials).exit();
}

/// The types that a region is run in: all precisions of its layer, or once where they do not matter.
fn precisions(case: &KernelCase) -> &'static [DType] {
    match case.has_compute_type() {
        true => &[DType::F32, DType::Bf16, DType::F16],
        false => &[DType::F32],
    }
}

fn emitted(case: &KernelCase) -> Result<(), Failed> {
    match case.emitted {
        Some(_) => Ok(()),
        None => Err("the macro emitted no kernel for this region".into()),
    }
}

fn host(case: &KernelCase) -> Result<(), Failed> {
    for extents in EXTENTS {
        for &compute in precisions(case) {
            case.trial(extents, compute).on_host()?;
        }
    }
    Ok(())
}

fn wgpu(name: &str, case: &KernelCase) -> Result<(), Failed> {
    let Some(device) = skips::no_wgpu().is_none().then_some(DEVICE.as_ref()).flatten() else {
        skips::skip(name, "no wgpu device");
        return Ok(());
    };
    for extents in EXTENTS {
        for &compute in precisions(case) {
            case.trial(extents, compute).on_device(device, case.emitted)?;
        }
    }
    Ok(())
}

/// Linking asks for no kernel that the macros did not emit. Mesh axis `data` is in no region: it sums gradients alone.
fn none_missing(tensor: usize, keep: Keep) -> Result<(), Failed> {
    let gpt = sizes! { B = 4, S = 24, D = 20, G = 2, R = 2, K = 10, F = 36, V = 257, L = 2 };
    check_table(Gpt::DEF, &gpt, tensor, keep)?;
    check_table(GptTied::DEF, &gpt, tensor, keep)?;
    check_table(GptLogits::DEF, &gpt, tensor, keep)?;
    let mlp = {
        use kiln_examples::mlp::{B, C, H, M, P};
        sizes! { B = 4, P = 24, H = 20, M = 12, C = 6 }
    };
    check_table(Mlp::DEF, &mlp, tensor, keep)?;
    check_table(MlpLogits::DEF, &mlp, tensor, keep)
}

fn check_table(root: &'static LayerDef, sizes: &Sizes, tensor: usize, keep: Keep) -> Result<(), Failed> {
    for precision in [DType::F32, DType::Bf16, DType::F16] {
        let options =
            LinkOptions { sizes: sizes.clone(), config: BTreeMap::new(), precision, keep, tensor: (tensor, 0) };
        let model = link(root, &options)?;
        let mut regions = 0;
        for t in &model.types {
            for p in std::iter::once(&t.programs).chain(t.bodies.values()) {
                for region in p.train.regions().chain(p.eval.regions()) {
                    regions += 1;
                    if !region.is_copy(|d| t.dtype(d)) && model.kernel(region.hash()).is_none() {
                        let (root, layer) = (root.name, &t.layer.name);
                        return Err(format!(
                            "`{root}` in {precision}: a region of `{layer}` has no kernel:\n{region:?}"
                        )
                        .into());
                    }
                }
            }
        }
        assert!(regions > 0, "`{}` has regions", root.name);
    }
    Ok(())
}

/// What a body records on tracing tensors is what the macro parsed, for every layer of the examples.
fn recorded() -> Result<(), Failed> {
    let report = kiln::check::recordings()?;
    for layer in [
        "attention",
        "block",
        "classifier",
        "gpt",
        "gpt_logits",
        "gpt_tied",
        "linear",
        "mlp",
        "mlp_logits",
        "swiglu",
        "trunk",
    ] {
        if !report.compared.iter().any(|name| name == layer) {
            return Err(format!("`{layer}` is not among {:?}", report.compared).into());
        }
    }
    Ok(())
}
