//! Host values: one method becomes a small IR function, which the f64 interpreter runs; the results are rounded to f32.

use super::apply::{In, Rule};
use super::session::{self, Handle, HostValue};
use crate::random;
use kiln_compiler::interp::{self, Array};
use kiln_compiler::ir::{Axis, Builder, Node, Sizes, Type, ValueId};
use kiln_compiler::methods::{self, Arg, Kind, Method};
use kiln_compiler::ops::{EvalCx, TypeError};
use std::rc::Rc;

/// Applies a method to host values.
#[track_caller]
pub fn apply(method: &Method, args: &[In]) -> Vec<Handle> {
    let mut operands: Vec<HostValue> =
        args.iter().filter_map(In::handle).map(|h| session::host(h, method.name)).collect();
    line_up_unnamed(method, args, &mut operands);
    let site = method.random.then(next_site);
    run(method.name, &operands, |b, inputs| {
        let mut inputs = inputs.iter().copied();
        let mut next = |_| inputs.next().unwrap_or_else(|| panic!("an operand of `{}` was not collected", method.name));
        let mut lowered: Vec<Arg> = args.iter().map(|a| a.lower(&mut next)).collect();
        lowered.extend(site.map(|s| Arg::Number(s.into())));
        methods::apply(b, method, &lowered)
    })
}

/// Applies a rule to host values.
#[track_caller]
pub fn apply_rule(rule: Rule, operands: &[Handle]) -> Handle {
    let operands: Vec<HostValue> = operands.iter().map(|&h| session::host(h, "a loss")).collect();
    run("a loss", &operands, |b, values| Ok(vec![rule.lower(b, values)?]))[0]
}

/// The value with other names for its axes.
///
/// # Panics
/// If the number of names differs.
#[track_caller]
pub fn rename_all(handle: Handle, axes: &[Axis]) -> Handle {
    let mut value = session::host(handle, "named");
    let (rank, dims) = (value.array.dims.len(), &value.array.dims);
    assert_eq!(rank, axes.len(), "K0122: {} names for a tensor with {rank} axes, of sizes {dims:?}", axes.len());
    value.ty.shape = axes.to_vec();
    session::keep(value)
}

/// Builds a function over the operands, evaluates it and keeps its results.
#[track_caller]
fn run(
    name: &str,
    operands: &[HostValue],
    build: impl FnOnce(&mut Builder, &[ValueId]) -> Result<Vec<ValueId>, TypeError>,
) -> Vec<Handle> {
    let mut sizes = Sizes::new();
    for (i, value) in operands.iter().enumerate() {
        bind_sizes(name, i, value, &mut sizes);
    }
    let mut b = Builder::default();
    let inputs: Vec<ValueId> =
        operands.iter().enumerate().map(|(i, v)| b.func.add_input(v.ty.clone(), &format!("x{i}"))).collect();
    let outputs = match build(&mut b, &inputs) {
        Ok(outputs) => outputs,
        Err(error) => panic!("{}", error.diagnostic()),
    };
    for node in &b.func.nodes {
        derive_sizes(name, node, &mut sizes);
    }
    for value in &b.func.values {
        value.ty.shape.iter().for_each(|&a| require_size(name, a, &mut sizes));
    }
    b.func.outputs = outputs;
    let arrays: Vec<Array> = operands.iter().map(|v| (*v.array).clone()).collect();
    let (seed, layer) = session::with(|s| (s.seed, s.frames.last().map(|f| f.layer.clone()).unwrap_or_default()));
    let uniform = |site: i64, index: u64| uniform(seed, &layer, site, index);
    let results = interp::run(&EvalCx { sizes: &sizes, uniform: &uniform }, &b.func, &arrays);
    let types: Vec<Type> = b.func.outputs.iter().map(|&v| b.func.ty(v).clone()).collect();
    results
        .into_iter()
        .zip(types)
        .map(|(array, ty)| session::keep(HostValue { array: rounded(array, &ty), ty }))
        .collect()
}

fn rounded(mut array: Array, ty: &Type) -> Rc<Array> {
    if ty.dtype.is_float() {
        array.data.iter_mut().for_each(|x| *x = f64::from(*x as f32));
    }
    Rc::new(array)
}

/// A number in [0, 1) that depends on the seed, the layer, the site and the index only.
pub(super) fn uniform(seed: u64, layer: &str, site: i64, index: u64) -> f32 {
    random::uniform(random::stream_key(seed, layer, site, random::Purpose::Operation), index, 0)
}

/// The number of the next random operation of the running function.
fn next_site() -> i64 {
    session::with(|s| match s.frames.last_mut() {
        Some(frame) => {
            frame.sites += 1;
            frame.sites - 1
        }
        None => 0,
    })
}

#[track_caller]
fn bind_sizes(name: &str, i: usize, value: &HostValue, sizes: &mut Sizes) {
    for (&axis, &n) in value.ty.shape.iter().zip(&value.array.dims) {
        match sizes.bind(axis, n) {
            Some(before) if before != n => {
                panic!("K0121: `{name}`: axis `{axis}` has size {before}, but {n} in operand {}", i + 1)
            }
            _ => {}
        }
    }
}

/// Sizes of axes that an operation makes out of others.
#[track_caller]
fn derive_sizes(name: &str, node: &Node, sizes: &mut Sizes) {
    let attrs = &node.attrs;
    match node.op.name {
        "rename" => derive(name, attrs.axis("to"), sizes.get(attrs.axis("from")), sizes),
        "merge" => {
            let product = attrs.axes("axes").iter().map(|&a| sizes.get(a)).product();
            derive(name, attrs.axis("into"), product, sizes);
        }
        "concat" => {
            let sum = [attrs.axis("axis"), attrs.axis("other")].iter().map(|&a| sizes.get(a)).sum();
            derive(name, attrs.axis("to"), sum, sizes);
        }
        "split" => split_sizes(name, attrs.axis("axis"), attrs.axes("into"), sizes),
        _ => {}
    }
}

#[track_caller]
fn derive(name: &str, axis: Axis, size: Option<usize>, sizes: &mut Sizes) {
    let Some(size) = size else { return };
    match sizes.bind(axis, size) {
        Some(before) if before != size => {
            panic!("K0121: `{name}`: axis `{axis}` has size {before}, but the operands make it {size}")
        }
        _ => {}
    }
}

/// One part of a split may be unknown: it follows from the others.
#[track_caller]
fn split_sizes(name: &str, axis: Axis, into: &[Axis], sizes: &mut Sizes) {
    let Some(whole) = sizes.get(axis) else { return };
    for &part in into {
        if let (None, Some(n)) = (sizes.get(part), frame_size(part)) {
            sizes.bind(part, n);
        }
    }
    let unknown: Vec<Axis> = into.iter().copied().filter(|&a| sizes.get(a).is_none()).collect();
    let known: usize = into.iter().filter_map(|&a| sizes.get(a)).product();
    match unknown[..] {
        [] => {
            assert_eq!(known, whole, "K0121: `{name}`: {into:?} have {known} elements together, `{axis}` has {whole}")
        }
        [part] => {
            assert!(
                known > 0 && whole.is_multiple_of(known),
                "K0121: `{name}`: {whole} elements of `{axis}` do not split into {into:?}, where the known ones have {known}"
            );
            sizes.bind(part, whole / known);
        }
        _ => {}
    }
}

/// An axis that no operand has takes its size from the arguments of the running functions.
#[track_caller]
fn require_size(name: &str, axis: Axis, sizes: &mut Sizes) {
    if sizes.get(axis).is_some() {
        return;
    }
    match frame_size(axis) {
        Some(n) => {
            sizes.bind(axis, n);
        }
        None => panic!(
            "K0123: `{name}` needs the size of `{axis}`, which no operand and no argument of the layer has; \
             an eager run knows sizes from arguments only"
        ),
    }
}

fn frame_size(axis: Axis) -> Option<usize> {
    session::with(|s| s.frames.iter().rev().find_map(|f| f.sizes.get(axis)))
}

/// Gives axes without a name those of their partner, position by position. Host tensors outside of a layer have no names, nor have
/// parameters that a layer reads from its child.
fn line_up_unnamed(method: &Method, args: &[In], operands: &mut [HostValue]) {
    let ranks: Vec<usize> = operands.iter().map(|v| v.ty.rank()).collect();
    let leading = |n: usize| (0..n).map(|i| (i, i)).collect::<Vec<_>>();
    match (method.name, &ranks[..]) {
        ("matmul", &[a, b]) if a.min(b) > 0 => line_up_two(operands, (0, 1), &[(a - 1, 0)]),
        ("einsum", _) => line_up_two(operands, (0, 1), &shared_labels(args, &ranks)),
        ("rms_norm" | "layer_norm", &[x, ..]) if x > 0 => {
            for w in (1..ranks.len()).filter(|&w| ranks[w] == 1) {
                line_up_two(operands, (0, w), &[(x - 1, 0)]);
            }
        }
        ("linear_cross_entropy", &[x, w, targets]) if x > targets && w == 2 => {
            line_up_two(operands, (0, 1), &[(x - 1, 1)]);
            line_up_two(operands, (0, 2), &leading(targets));
        }
        ("cross_entropy", &[x, targets]) if x > targets => line_up_two(operands, (0, 1), &leading(targets)),
        ("gather", &[_, _]) => line_up_two(operands, (0, 1), &[]),
        ("attend", &[q, k, v]) if q >= k && k == v && k >= 2 => {
            let mut pairs = leading(k - 2);
            pairs.push((q - 1, k - 1));
            line_up_two(operands, (0, 1), &pairs);
            line_up_two(operands, (1, 2), &leading(k));
        }
        _ if method.receiver == Kind::Operand || method.args.contains(&Kind::Operand) => line_up_right(operands),
        _ => {}
    }
}

/// Element-wise operands line up from the right with the one that has most axes.
fn line_up_right(operands: &mut [HostValue]) {
    let Some(widest) = (0..operands.len()).rev().max_by_key(|&i| operands[i].ty.rank()) else { return };
    let wide = operands[widest].ty.rank();
    // Twice, since a later operand may name an axis of the widest after an earlier one was lined up.
    for i in (0..operands.len()).chain(0..operands.len()).filter(|&i| i != widest) {
        let narrow = operands[i].ty.rank();
        let pairs: Vec<(usize, usize)> = (0..narrow).map(|k| (wide - narrow + k, k)).collect();
        line_up_two(operands, (widest, i), &pairs);
    }
}

/// Positions of the labels that both operands of an einsum have.
fn shared_labels(args: &[In], ranks: &[usize]) -> Vec<(usize, usize)> {
    let spec = args.iter().find_map(|a| match a {
        In::Spec(s) => s.split("->").next(),
        _ => None,
    });
    let labels: Vec<Vec<&str>> =
        spec.unwrap_or_default().split(',').map(|part| part.split_whitespace().collect()).collect();
    match labels.as_slice() {
        [left, right] if [left.len(), right.len()] == ranks => {
            let at = |word: &str| left.iter().position(|w| *w == word);
            right.iter().enumerate().filter_map(|(j, w)| at(w).map(|i| (i, j))).collect()
        }
        _ => Vec::new(),
    }
}

fn line_up_two(operands: &mut [HostValue], (a, b): (usize, usize), pairs: &[(usize, usize)]) {
    let mut reference = operands[a].clone();
    line_up(&mut reference, &mut operands[b], pairs);
    operands[a] = reference;
}

fn is_unnamed(axis: Axis) -> bool {
    axis.name().starts_with('_')
}

/// Names the unnamed axes of both after the pairs (position in a, position in b); others of `b` get names that neither has.
fn line_up(a: &mut HostValue, b: &mut HostValue, pairs: &[(usize, usize)]) {
    for &(i, j) in pairs {
        let taken = a.ty.shape.contains(&b.ty.shape[j]);
        if is_unnamed(a.ty.shape[i]) && !is_unnamed(b.ty.shape[j]) && !taken {
            a.ty.shape[i] = b.ty.shape[j];
        }
    }
    for j in 0..b.ty.rank() {
        if !is_unnamed(b.ty.shape[j]) {
            continue;
        }
        b.ty.shape[j] = match pairs.iter().find(|p| p.1 == j) {
            Some(&(i, _)) => a.ty.shape[i],
            None => free_name(&a.ty.shape, &b.ty.shape),
        };
    }
}

fn free_name(a: &[Axis], b: &[Axis]) -> Axis {
    let mut k = 0;
    loop {
        let axis = Axis::new(&format!("_{k}"));
        if !a.contains(&axis) && !b.contains(&axis) {
            return axis;
        }
        k += 1;
    }
}
