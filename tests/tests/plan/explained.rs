//! `explain` of the bf16 example lists each cast with its line.

use kiln::explain::explain;
use kiln::layer::Layer;
use kiln::link::{self, Keep, LinkOptions, Model};
use kiln::plan::{self, Memory};
use kiln::{DType, Sizes};
use kiln_compiler::ir::{Func, Node};
use kiln_examples::gpt::Gpt;
use kiln_tests::folders;
use std::collections::{BTreeMap, BTreeSet};

use crate::small;

fn model(precision: DType) -> (Model, Sizes) {
    let options =
        LinkOptions { sizes: small(), config: BTreeMap::new(), precision, keep: Keep::Everything, tensor: (1, 0) };
    (link::link(Gpt::DEF, &options).expect("the example is sound"), small())
}

fn explained(precision: DType) -> String {
    let (model, sizes) = model(precision);
    explain(&model, &plan::build(&model, &sizes, Memory::HOST))
}

/// Lines under `` casts of `layer` ``.
fn listed<'a>(text: &'a str, layer: &str) -> Vec<&'a str> {
    let head = format!("casts of `{layer}`");
    let from = text.lines().skip_while(|l| *l != head).skip(1);
    from.take_while(|l| l.starts_with("  ")).map(str::trim).collect()
}

/// The line in `  FILE:LINE:COLUMN  ..`.
fn line_of(cast: &str) -> usize {
    let place = cast.split_whitespace().next().expect("a place");
    assert!(place.contains("gpt.rs:"), "{cast}");
    place.rsplit(':').nth(1).and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("no line in {cast}"))
}

/// Numbers of the example's source lines that contain `part`, from 1.
fn source_line(part: &str) -> usize {
    let source = std::fs::read_to_string(folders::root().join("examples/src/gpt.rs")).expect("the example");
    let lines: Vec<usize> = source.lines().enumerate().filter(|(_, l)| l.contains(part)).map(|(i, _)| i + 1).collect();
    assert_eq!(lines.len(), 1, "`{part}` stands once in the example");
    lines[0]
}

/// Casts that change a value: the model is bf16 throughout, so those of f32 values.
fn narrowing(func: &Func) -> usize {
    let casts = func.nodes.iter().filter(|n| n.op.name == "cast" && n.attrs.dtype("dtype") != DType::F32);
    casts.filter(|n| func.ty(n.inputs[0]).dtype == DType::F32).count()
}

#[test]
fn every_cast_is_listed_with_its_line() {
    let text = explained(DType::Bf16);
    let (model, _) = model(DType::Bf16);
    for ty in &model.types {
        let all = std::iter::once(&ty.programs.train.func).chain(ty.bodies.values().map(|p| &p.train.func));
        let known: usize = all.map(narrowing).sum();
        assert_eq!(listed(&text, &ty.layer.name).len(), known, "casts of `{}`\n{text}", ty.layer.name);
        assert!(listed(&text, &ty.layer.name).iter().all(|l| l.ends_with("f32 → bf16")), "{text}");
    }
}

#[test]
fn every_operation_of_the_source_has_its_casts() {
    // (line of the body, roundings of forward: one for each operation on it)
    let bodies: [(&str, &[(&str, usize)]); 3] = [
        ("swiglu", &[("let h = x.matmul(gate).silu() * x.matmul(up);", 4), ("h.matmul(down)", 1)]),
        (
            "attention",
            &[
                ("let q = x.einsum(wq", 2),
                ("let k = x.einsum(wk", 2),
                ("let v = x.einsum(wv", 1),
                ("q.attend(k, v, Causal).einsum(wo", 2),
            ],
        ),
        ("block", &[("attn.forward(x.rms_norm(n1", 2), ("mlp.forward(x.rms_norm(n2", 2)]),
    ];
    let text = explained(DType::Bf16);
    let (model, _) = model(DType::Bf16);
    for (layer, lines) in bodies {
        let ty = model.types.iter().find(|t| t.layer.name == layer).expect("a layer of the example");
        let forward = &ty.programs.eval.func.nodes;
        let listed: Vec<usize> = listed(&text, layer).into_iter().map(line_of).collect();
        for (source, operations) in lines {
            let at = source_line(source);
            let dtype = |v| ty.dtype(ty.programs.eval.func.ty(v).dtype);
            let rounds = |n: &&Node| n.op.name == "cast" && dtype(n.inputs[0]) != dtype(n.outputs[0]);
            let rounded = forward.iter().filter(rounds).filter(|n| n.span.line as usize == at).count();
            assert_eq!(rounded, *operations, "forward casts of line {at}: {source}");
            let shown = listed.iter().filter(|l| **l == at).count();
            assert!(shown >= rounded, "line {at} has {rounded} casts forward, {shown} are listed");
        }
        let known: BTreeSet<usize> = lines.iter().map(|(source, _)| source_line(source)).collect();
        assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), known, "casts of `{layer}` stand at its operations");
    }
}

#[test]
fn an_f32_model_has_no_cast() {
    assert!(!explained(DType::F32).contains("casts of"));
}
