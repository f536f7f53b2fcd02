//! Explain: a linked model and its plan as text – every decision with its reason and `file:line`. Reads, decides nothing.

use crate::link::{Instance, Keep, LayerType, Model};
use crate::plan::{Phase, Plan, Segment, Step, Work};
use kiln_compiler::ir::{Checkpoint, DType, Func};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

// How many of the largest temporaries are listed.
const LISTED: usize = 8;

/// The plan of a model as text: tree, memory, launches, casts.
pub fn explain(model: &Model, plan: &Plan) -> String {
    let mut out = String::new();
    let elements: usize = model.params.iter().map(crate::link::Param::len).sum();
    line(
        &mut out,
        format!(
            "model `{}`: {} parameters in {} tensors",
            name(model, &model.root),
            grouped(elements),
            model.params.len()
        ),
    );
    line(&mut out, format!("sizes: {}", crate::trainer::sizes_text(&model.sizes)));
    out.push('\n');
    tree(&mut out, model, &model.root, "", 0);
    memory(&mut out, model, plan);
    steps(&mut out, model, plan);
    collectives(&mut out, plan);
    casts(&mut out, model);
    out
}

fn line(out: &mut String, text: String) {
    out.push_str(text.trim_end());
    out.push('\n');
}

fn name(model: &Model, i: &Instance) -> String {
    model.types[i.ty].layer.name.clone()
}

/// One line per layer type at each place of the tree; copies of a `Repeat` share theirs.
fn tree(out: &mut String, model: &Model, at: &Instance, label: &str, depth: usize) {
    let ty = &model.types[at.ty];
    let label = if label.is_empty() { ty.layer.name.clone() } else { format!("{label}: {}", ty.layer.name) };
    let own: usize = at.params.iter().flatten().map(|&p| model.params[p].len()).sum();
    line(
        out,
        format!(
            "{:indent$}{label}  [{} own parameters; {}; {}]",
            "",
            grouped(own),
            precision(ty),
            keeps(ty),
            indent = 2 * depth
        ),
    );
    for ((arg, _), copies) in ty.layer.subs().into_iter().zip(&at.subs) {
        let label = if copies.len() > 1 { format!("{} × {}", arg.name, copies.len()) } else { arg.name.clone() };
        if let Some(first) = copies.first() {
            tree(out, model, first, &label, depth + 1);
        }
    }
}

fn precision(ty: &LayerType) -> String {
    match &ty.layer.annotations.precision {
        Some((p, span)) => format!("{}: `#[precision({})]` {}:{}", ty.compute, p.compute, ty.layer.file, span.line),
        None => format!("{}: inherited", ty.compute),
    }
}

fn keeps(ty: &LayerType) -> String {
    let what = match ty.keep {
        Keep::Everything => "keeps what backward reads",
        Keep::Inputs => "keeps inputs, runs forward again",
    };
    match &ty.layer.annotations.checkpoint {
        Some((Checkpoint::Inputs, span)) => format!("{what}: `#[checkpoint]` {}:{}", ty.layer.file, span.line),
        Some((_, span)) => format!("{what}: `#[checkpoint(never)]` {}:{}", ty.layer.file, span.line),
        None => format!("{what}: inherited"),
    }
}

fn memory(out: &mut String, model: &Model, plan: &Plan) {
    out.push('\n');
    let params: usize = model.params.iter().map(|p| p.len() * size_of::<f32>()).sum();
    line(
        out,
        format!(
            "memory of one micro-batch: parameters {}, gradients {}, temporaries {}",
            bytes(params),
            bytes(params),
            bytes(plan.temporary_bytes)
        ),
    );
    let mut temporary: Vec<_> = plan.buffers.iter().filter(|b| b.segment == Segment::Temporary).collect();
    temporary.sort_by_key(|b| (std::cmp::Reverse(b.bytes()), b.life, b.name.clone()));
    for b in temporary.into_iter().take(LISTED) {
        line(out, format!("  {:>10}  {} ({}), steps {}..={}", bytes(b.bytes()), b.name, b.dtype, b.life.0, b.life.1));
    }
    let wider: BTreeSet<String> = plan
        .buffers
        .iter()
        .filter(|b| b.dtype.is_float() && b.width > b.dtype.bytes())
        .map(|b| format!("  {} is rounded and stored in {} bytes: the device does not store it", b.dtype, b.width))
        .collect();
    wider.into_iter().for_each(|text| line(out, text));
}

fn steps(out: &mut String, model: &Model, plan: &Plan) {
    out.push('\n');
    let mut counts: BTreeMap<(u8, String), usize> = BTreeMap::new();
    for s in &plan.steps {
        let phase = match s.phase {
            Phase::Forward => 0,
            Phase::Replay => 1,
            Phase::Backward => 2,
        };
        *counts.entry((phase, s.work.name())).or_default() += 1;
    }
    line(out, format!("{} steps", plan.steps.len()));
    for (phase, title) in ["forward", "forward again, for backward", "backward"].iter().enumerate() {
        let of_phase: Vec<String> =
            counts.iter().filter(|((p, _), _)| *p as usize == phase).map(|((_, n), c)| format!("{c} {n}")).collect();
        if !of_phase.is_empty() {
            line(out, format!("  {title}: {}", of_phase.join(", ")));
        }
    }
    let regions: Vec<u64> = plan.steps.iter().filter_map(region_hash).collect();
    let others = plan.steps.len() - regions.len();
    line(out, format!("  {} fused regions, {others} library and gradient steps", regions.len()));
    kernels(out, model, &regions);
}

fn region_hash(step: &Step) -> Option<u64> {
    match &step.work {
        Work::Region { region, .. } => Some(region.hash()),
        Work::Library { .. } | Work::Accumulate(_) | Work::AllReduce { .. } => None,
    }
}

/// Which fused regions have an emitted kernel, for devices that launch kernels; the host runs all of them from the plan.
fn kernels(out: &mut String, model: &Model, regions: &[u64]) {
    if model.types.iter().all(|t| t.kernels.is_empty()) {
        return line(out, "  no emitted kernels: no GPU feature is compiled in, or every layer is traced".to_owned());
    }
    let distinct: BTreeSet<u64> = regions.iter().copied().collect();
    let missing = distinct.iter().filter(|hash| model.kernel(**hash).is_none()).count();
    let emitted = distinct.len() - missing;
    line(
        out,
        format!("  kernels: {emitted} emitted while the crate compiled, {missing} built from the plan at start-up"),
    );
}

/// What ranks send each other inside layers, by the operation that asks for it. Gradients over data ranks come after the plan.
fn collectives(out: &mut String, plan: &Plan) {
    let mut found: BTreeMap<(&str, u32, &str, &str), (usize, usize)> = BTreeMap::new();
    for s in &plan.steps {
        let Work::AllReduce { mesh } = &s.work else { continue };
        let (times, sent) = found.entry((&s.file, s.line, phase(s.phase), mesh)).or_default();
        *times += 1;
        *sent += plan.buffers[s.inputs[0]].bytes();
    }
    if found.is_empty() {
        return;
    }
    out.push('\n');
    line(out, format!("collectives: {} from each rank", bytes(plan.collective_bytes())));
    for ((file, at, phase, mesh), (times, sent)) in found {
        line(out, format!("  {file}:{at}  {times} all_reduce over `{mesh}`, {phase}, {}", bytes(sent)));
    }
}

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Forward => "forward",
        Phase::Replay => "forward again",
        Phase::Backward => "backward",
    }
}

/// Each cast of each layer type that changes a value, with the line of the operation that it follows.
fn casts(out: &mut String, model: &Model) {
    for ty in &model.types {
        let loops = ty.bodies.values().map(|p| &p.train.func);
        let narrowing: Vec<String> =
            std::iter::once(&ty.programs.train.func).chain(loops).flat_map(|func| narrowing(ty, func)).collect();
        if narrowing.is_empty() {
            continue;
        }
        out.push('\n');
        line(out, format!("casts of `{}`", ty.layer.name));
        narrowing.into_iter().for_each(|cast| line(out, cast));
    }
}

/// Widening changes no value, so only casts to narrower types are listed.
fn narrowing(ty: &LayerType, func: &Func) -> Vec<String> {
    let casts = func.nodes.iter().filter(|n| n.op.name == "cast" && n.span.line > 0);
    casts
        .map(|n| (n, ty.dtype(func.ty(n.inputs[0]).dtype), ty.dtype(n.attrs.dtype("dtype"))))
        .filter(|(_, from, to)| from != to && *to != DType::F32)
        .map(|(n, from, to)| {
            let value = func.values[n.outputs[0].index()].name.as_deref().unwrap_or("result");
            format!("  {}:{}:{}  `{value}` {from} → {to}", ty.layer.file, n.span.line, n.span.column)
        })
        .collect()
}

/// `27.7 MB`, decimal as files are shown.
pub fn bytes(n: usize) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut x = n as f64;
    let mut unit = 0;
    while x >= 1000.0 && unit + 1 < UNITS.len() {
        x /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{x:.1} {}", UNITS[unit]) }
}

/// `6,917,376`.
pub fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        let _ = write!(out, "{c}");
    }
    out
}
