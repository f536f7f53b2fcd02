//! Loops over a `Repeat` while recording: the body runs twice, and comparing the two rounds tells what it carries.
//!
//! A round cannot show which variable the user's code rebinds; two rounds can. Where an operand of the first round comes from
//! before the loop and the same operand of the second round differs, the user's variable was rebound in between: it is carried.
//! Where the two are equal, the value is captured. The first round becomes the body of one `repeat` node, the second is dropped.

use super::record::{self, Recording, RepeatPart, Replaced};
use kiln_compiler::diagnostics::Diagnostic;
use kiln_compiler::ir::{Attrs, Func, Node, Span, ValueId};
use kiln_compiler::ops;
use std::collections::HashMap;

/// A loop that is running.
#[derive(Debug)]
pub struct Loop {
    part: RepeatPart,
    span: Span,
    /// Nodes before the first round.
    start: usize,
    /// Nodes before the second round.
    middle: usize,
    /// Random operations before the first round: both rounds use the same numbers.
    sites: i64,
}

/// What a loop is made of.
struct Rounds {
    /// Value carried into the first round, and into the second.
    carried: (ValueId, ValueId),
    /// For each node of the body, which of its operands are the carried value.
    is_carried: Vec<Vec<bool>>,
    /// Values of the first round and those that stand for them in the second.
    second: HashMap<ValueId, ValueId>,
}

/// Starts a loop over a `Repeat`.
pub fn begin(part: RepeatPart, span: Span) {
    record::with(|r| {
        let start = r.builder.func.nodes.len();
        r.loops.push(Loop { part, span, start, middle: start, sites: r.sites });
    });
}

/// Whether another round is wanted; at the end of the second the loop becomes one node.
pub fn next_round(round: usize) -> bool {
    record::with(|r| {
        let nodes = r.builder.func.nodes.len();
        match (round, r.loops.last_mut()) {
            (0, Some(_)) => true,
            (1, Some(running)) => {
                running.middle = nodes;
                r.sites = running.sites;
                true
            }
            _ => {
                if let Some(running) = r.loops.pop() {
                    close(r, &running);
                }
                false
            }
        }
    })
}

/// A loop was left before its end.
pub fn abandon() {
    record::with(|r| {
        if let Some(running) = r.loops.pop() {
            r.builder.span = running.span;
            let help = "every copy of a `Repeat` is applied; choose the number of copies with its axis";
            r.mistake(Diagnostic::new("K0344", "the loop over a `Repeat` is left before its end").help(help));
        }
    });
}

fn close(r: &mut Recording, running: &Loop) {
    let after = r.builder.span;
    r.builder.span = running.span;
    let (first, second) = {
        let nodes = &r.builder.func.nodes;
        (nodes[running.start..running.middle].to_vec(), nodes[running.middle..].to_vec())
    };
    let result = match rounds(&first, &second) {
        Ok(rounds) => append(r, running, first, second, &rounds),
        Err(diagnostic) => Err(diagnostic),
    };
    if let Err(diagnostic) = result {
        r.mistake(diagnostic);
    }
    r.builder.span = after;
}

fn rounds(first: &[Node], second: &[Node]) -> Result<Rounds, Diagnostic> {
    let differ = || {
        let message = "the body of a loop over a `Repeat` does not do the same in every round";
        Diagnostic::new("K0341", message).help("layers that differ are children of their own")
    };
    if first.len() != second.len() {
        return Err(differ());
    }
    let mut defined: HashMap<ValueId, ValueId> = HashMap::new();
    let mut carried: Vec<(ValueId, ValueId)> = Vec::new();
    let mut is_carried = Vec::new();
    for (a, b) in first.iter().zip(second) {
        let same = a.op == b.op && a.attrs == b.attrs && a.bodies == b.bodies && a.inputs.len() == b.inputs.len();
        if !same {
            return Err(differ());
        }
        let mut marks = Vec::new();
        for (&x, &y) in a.inputs.iter().zip(&b.inputs) {
            match defined.get(&x) {
                Some(&there) if there == y => marks.push(false),
                Some(_) => return Err(differ()),
                None => {
                    marks.push(x != y);
                    if x != y && !carried.contains(&(x, y)) {
                        carried.push((x, y));
                    }
                }
            }
        }
        is_carried.push(marks);
        defined.extend(a.outputs.iter().copied().zip(b.outputs.iter().copied()));
    }
    match carried[..] {
        [carried] => Ok(Rounds { carried, is_carried, second: defined }),
        _ => {
            let message =
                format!("a loop over a `Repeat` carries one tensor from copy to copy, this one {}", carried.len());
            Err(Diagnostic::new("K0309", message).help("write `x = block.forward(x, ..);` with one rebound variable"))
        }
    }
}

fn append(
    r: &mut Recording,
    running: &Loop,
    first: Vec<Node>,
    second: Vec<Node>,
    rounds: &Rounds,
) -> Result<(), Diagnostic> {
    let (initial, next) = rounds.carried;
    let (before, now) = (r.builder.ty(initial).clone(), r.builder.ty(next).clone());
    if before != now {
        let message = format!("the carried value enters a copy as {before} and leaves it as {now}");
        return Err(Diagnostic::new("K0306", message).help("a `Repeat` needs equal axes at entry and exit"));
    }
    let axis = match r.repeat_axis(running.part.sub) {
        Some(axis) if !running.part.nested => axis,
        _ => {
            let message = "the copies of a child's `Repeat` are applied by that child";
            return Err(Diagnostic::new("K0347", message).help("call the child's `forward`"));
        }
    };
    let (body, captured) = body(&r.builder.func, &first, rounds);
    r.builder.func.nodes.truncate(running.start);
    for v in first.iter().chain(&second).flat_map(|n| &n.outputs) {
        r.replaced.insert(*v, Replaced::Lost);
    }
    let op = ops::find("repeat").unwrap_or_else(|| panic!("no operation `repeat`"));
    let operands: Vec<ValueId> = std::iter::once(initial).chain(captured).collect();
    let attrs = Attrs::new().with("sub", running.part.sub as i64).with("axis", axis);
    let outputs = r.builder.try_op(op, attrs, &operands).map_err(|e| e.diagnostic())?;
    if let Some(node) = r.builder.func.nodes.last_mut() {
        node.bodies = vec![body];
    }
    if let Some(&last) = rounds.second.get(&next) {
        r.replaced.insert(last, Replaced::By(outputs[0]));
    }
    Ok(())
}

/// The first round as a function over the carried and then the captured values, which are returned in the order of first use.
fn body(func: &Func, first: &[Node], rounds: &Rounds) -> (Func, Vec<ValueId>) {
    let mut out = Func::default();
    let mut known: HashMap<ValueId, ValueId> = HashMap::new();
    let mut captured = Vec::new();
    let input = |out: &mut Func, v: ValueId| {
        let value = &func.values[v.index()];
        out.add_input(value.ty.clone(), value.name.as_deref().unwrap_or("captured"))
    };
    let carried = input(&mut out, rounds.carried.0);
    let mut read = |out: &mut Func, known: &mut HashMap<ValueId, ValueId>, v: ValueId| {
        *known.entry(v).or_insert_with(|| {
            captured.push(v);
            input(out, v)
        })
    };
    for (node, marks) in first.iter().zip(&rounds.is_carried) {
        let mut node = node.clone();
        for (v, &is_carried) in node.inputs.iter_mut().zip(marks) {
            *v = if is_carried { carried } else { read(&mut out, &mut known, *v) };
        }
        for v in &mut node.outputs {
            let value = func.values[v.index()].clone();
            let id = out.add_value(value.ty, value.name);
            known.insert(*v, id);
            *v = id;
        }
        out.nodes.push(node);
    }
    let result = read(&mut out, &mut known, rounds.carried.1);
    out.outputs = vec![result];
    (record::compact(&out), captured)
}
