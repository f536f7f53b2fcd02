//! How many launches a transformer block takes, forward and backward.

use kiln_compiler::compile::{CompiledLayer, compile_layer};
use kiln_compiler::diff::Activity;
use kiln_compiler::fuse::{Launch, LaunchKind};
use kiln_compiler::ir::{Attrs, Axis, Builder, DType, Func, Type, ValueId};
use kiln_compiler::precision;

fn ax(names: &str) -> Vec<Axis> {
    names.split_whitespace().map(Axis::new).collect()
}

fn input(b: &mut Builder, name: &str, axes: &str) -> ValueId {
    b.func.add_input(Type::f32(ax(axes)), name)
}

fn attention() -> Func {
    let mut b = Builder::default();
    let x = input(&mut b, "x", "B S D");
    let rope = input(&mut b, "rope", "");
    let wq = input(&mut b, "wq", "D G R K");
    let wk = input(&mut b, "wk", "D G K");
    let wv = input(&mut b, "wv", "D G K");
    let wo = input(&mut b, "wo", "G R K D");
    let attrs = || Attrs::new().with("seq", Axis::new("S")).with("head", Axis::new("K"));
    let q = b.dot(x, wq, &ax("B G R S K"));
    let q = b.op("rope", attrs(), &[q, rope]);
    let k = b.dot(x, wk, &ax("B G S K"));
    let k = b.op("rope", attrs(), &[k, rope]);
    let v = b.dot(x, wv, &ax("B G S K"));
    let o = b.ops("attention", Attrs::new().with("causal", true), &[q, k, v])[0];
    let y = b.dot(o, wo, &ax("B S D"));
    b.func.outputs = vec![y];
    b.func
}

fn swiglu() -> Func {
    let mut b = Builder::default();
    let x = input(&mut b, "x", "B S D");
    let gate = input(&mut b, "gate", "D F");
    let up = input(&mut b, "up", "D F");
    let down = input(&mut b, "down", "F D");
    let g = b.dot(x, gate, &ax("B S F"));
    let g = b.unary("silu", g);
    let u = b.dot(x, up, &ax("B S F"));
    let h = b.mul(g, u);
    let y = b.dot(h, down, &ax("B S D"));
    b.func.outputs = vec![y];
    b.func
}

fn block() -> Func {
    let mut b = Builder::default();
    let x = input(&mut b, "x", "B S D");
    let rope = input(&mut b, "rope", "");
    let n1 = input(&mut b, "n1", "D");
    let n2 = input(&mut b, "n2", "D");
    let eps = || Attrs::new().with("eps", 1e-5);
    let call =
        |sub: i64| Attrs::new().with("sub", sub).with("dtype", DType::F32).with("outs", 1i64).with("out0", ax("B S D"));
    let h = b.op("rms_norm", eps(), &[x, n1]);
    let a = b.op("call", call(0), &[h, rope]);
    let x = b.add(x, a);
    let h = b.op("rms_norm", eps(), &[x, n2]);
    let m = b.op("call", call(1), &[h]);
    let y = b.add(x, m);
    b.func.outputs = vec![y];
    b.func
}

fn compile(f: &Func) -> CompiledLayer {
    let f = precision::run(f, DType::Compute);
    let activity: Vec<Activity> = f
        .inputs
        .iter()
        .map(|&v| match (f.values[v.index()].name.as_deref(), f.ty(v).rank()) {
            (_, 0) => Activity::Inactive,
            (Some("x"), _) => Activity::Activation,
            _ => Activity::Parameter,
        })
        .collect();
    compile_layer(&f, &activity, &[true]).unwrap()
}

fn describe(launches: &[Launch]) -> Vec<String> {
    launches
        .iter()
        .map(|l| match &l.kind {
            LaunchKind::Region(r) => {
                format!("{:?} {:?}/{} in {} out {}", r.template, r.domain, r.rows, l.inputs.len(), l.outputs.len())
            }
            LaunchKind::Library { node, .. } => node.op.name.to_owned(),
            LaunchKind::Alias => "alias".to_owned(),
            LaunchKind::Structural(n) | LaunchKind::Collective(n) => n.op.name.to_owned(),
        })
        .collect()
}

fn count(launches: &[Launch]) -> (usize, usize) {
    let regions = launches.iter().filter(|l| matches!(l.kind, LaunchKind::Region(_))).count();
    let library = launches.iter().filter(|l| matches!(l.kind, LaunchKind::Library { .. })).count();
    (library, regions)
}

#[test]
fn a_block_forward_is_eight_library_launches_and_five_regions() {
    let parts = [attention(), swiglu(), block()].map(|f| compile(&f));
    for p in &parts {
        println!(
            "forward  {:#?}\nbackward {:#?}\nresiduals {:?}",
            describe(&p.forward),
            describe(&p.backward),
            p.residuals.len()
        );
    }
    let counts: Vec<_> = parts.iter().map(|p| count(&p.forward)).collect();
    assert_eq!(counts, [(5, 1), (3, 1), (0, 3)]);
}
