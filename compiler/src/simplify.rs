//! Simplification of one function: expansion of composites, common subexpressions, dead code. Values keep their meaning bit by bit.

use crate::ir::{Attr, Attrs, Builder, DType, Func, Node, ValueId};
use crate::ops::Class;
use std::collections::HashMap;

/// Replaces composites by primitives.
pub fn expand(func: &Func) -> Func {
    rebuild(func, |b, node, inputs| {
        let mut mapped = node.clone();
        mapped.inputs = inputs.to_vec();
        // Expansions may hold composites themselves; they are expanded when the caller repeats the pass.
        let results = node.op.expand.map(|expand| expand(b, &mapped))?;
        if node.attrs.flag("no_fuse") {
            let ends = b.func.nodes.iter_mut().filter(|n| n.outputs.iter().any(|o| results.contains(o)));
            ends.for_each(|n| n.attrs.set("no_fuse", true));
        }
        Some(results)
    })
}

/// The function as evaluation runs it: `dropout` returns its operand.
pub fn without_dropout(func: &Func) -> Func {
    rebuild(func, |b, node, inputs| (node.op.name == "dropout").then(|| vec![b.cast(inputs[0], DType::F32)]))
}

/// Whether a function still holds composites.
pub fn has_composites(func: &Func) -> bool {
    func.nodes.iter().any(|n| n.op.expand.is_some())
}

/// Merges equal nodes, drops identities.
pub fn cse(func: &Func) -> Func {
    let mut seen: HashMap<String, Vec<ValueId>> = HashMap::new();
    rebuild(func, |b, node, inputs| {
        if let Some(same) = identity(b, node, inputs) {
            return Some(vec![same]);
        }
        if node.op.class == Class::Structural {
            return None;
        }
        let key = format!("{}|{:?}|{:?}", node.op.name, node.attrs, inputs);
        if let Some(outputs) = seen.get(&key) {
            return Some(outputs.clone());
        }
        let outputs = append(b, node, inputs);
        seen.insert(key, outputs.clone());
        Some(outputs)
    })
}

/// An operand that the node returns unchanged, or a constant that it only re-shapes.
fn identity(b: &mut Builder, node: &Node, inputs: &[ValueId]) -> Option<ValueId> {
    match node.op.name {
        "broadcast" | "permute" => {
            let to = node.attrs.axes("to");
            if b.ty(inputs[0]).shape == to {
                return Some(inputs[0]);
            }
            let def = b.func.nodes.iter().find(|n| n.outputs.contains(&inputs[0]))?;
            let source = matches!(def.op.name, "const" | "size");
            let (name, attrs) = (def.op.name, def.attrs.clone().with("shape", to));
            source.then(|| b.op(name, attrs, &[]))
        }
        "cast" => {
            let dtype = node.attrs.dtype("dtype");
            (b.ty(inputs[0]).dtype == dtype).then(|| inputs[0])
        }
        _ => None,
    }
}

/// Drops nodes that no output needs.
pub fn dce(func: &Func) -> Func {
    let mut live = vec![false; func.values.len()];
    for &v in &func.outputs {
        live[v.index()] = true;
    }
    let mut keep = vec![false; func.nodes.len()];
    for (i, n) in func.nodes.iter().enumerate().rev() {
        keep[i] = n.op.writes_gradients() || n.outputs.iter().any(|o| live[o.index()]);
        if keep[i] {
            for v in &n.inputs {
                live[v.index()] = true;
            }
        }
    }
    let mut out = func.clone();
    let mut i = 0;
    out.nodes.retain(|_| {
        i += 1;
        keep[i - 1]
    });
    rebuild(&out, |_, _, _| None)
}

/// Copies `func` node by node; `rewrite` may return replacement values for a node's outputs.
fn rebuild(func: &Func, mut rewrite: impl FnMut(&mut Builder, &Node, &[ValueId]) -> Option<Vec<ValueId>>) -> Func {
    let mut b = Builder::default();
    let mut map: Vec<Option<ValueId>> = vec![None; func.values.len()];
    for &v in &func.inputs {
        let value = &func.values[v.index()];
        let new = b.func.add_value(value.ty.clone(), value.name.clone());
        b.func.inputs.push(new);
        map[v.index()] = Some(new);
    }
    for node in &func.nodes {
        b.span = node.span;
        let inputs: Vec<ValueId> =
            node.inputs.iter().map(|v| map[v.index()].unwrap_or_else(|| panic!("%{} is undefined", v.0))).collect();
        let outputs = rewrite(&mut b, node, &inputs).unwrap_or_else(|| append(&mut b, node, &inputs));
        for (&old, &new) in node.outputs.iter().zip(&outputs) {
            map[old.index()] = Some(new);
            let name = &func.values[old.index()].name;
            let kept = &mut b.func.values[new.index()].name;
            if kept.is_none() {
                kept.clone_from(name);
            }
        }
    }
    b.func.outputs = func.outputs.iter().map(|v| map[v.index()].expect("outputs are defined")).collect();
    b.func
}

/// Appends a copy of `node` over `inputs`.
fn append(b: &mut Builder, node: &Node, inputs: &[ValueId]) -> Vec<ValueId> {
    let outputs = b.ops(node.op.name, node.attrs.clone(), inputs);
    let last = b.func.nodes.len() - 1;
    b.func.nodes[last].bodies.clone_from(&node.bodies);
    outputs
}

/// Expansion to a fixed point, then common subexpressions and dead code.
pub fn run(func: &Func) -> Func {
    let mut f = func.clone();
    while has_composites(&f) {
        f = expand(&f);
    }
    dce(&cse(&f))
}

/// Replaces `#[config]` references by the values that `value` gives.
pub fn bind_config(func: &mut Func, value: &dyn Fn(&str) -> Option<Attr>) {
    for n in &mut func.nodes {
        bind_attrs(&mut n.attrs, value);
        for body in &mut n.bodies {
            bind_config(body, value);
        }
    }
}

fn bind_attrs(attrs: &mut Attrs, value: &dyn Fn(&str) -> Option<Attr>) {
    for a in attrs.values_mut() {
        if let Attr::Config(name) = a
            && let Some(v) = value(name)
        {
            *a = v;
        }
    }
}

/// Replaces each `select_host`, whose condition is bound, by the branch it chooses. Random operations are then numbered again: their
/// ordinals count what runs, as in the recorded and in the eager run.
///
/// # Panics
/// If a condition is not bound: linking binds configuration first.
pub fn inline_select(func: &Func) -> Func {
    if !chooses(func) {
        return func.clone();
    }
    let mut chosen = inline_chosen(func);
    number_sites(&mut chosen, &mut 0);
    chosen
}

fn chooses(func: &Func) -> bool {
    func.nodes.iter().any(|n| n.op.name == "select_host" || n.bodies.iter().any(chooses))
}

fn number_sites(func: &mut Func, next: &mut i64) {
    for node in &mut func.nodes {
        if node.attrs.get("site").is_some() {
            node.attrs.set("site", *next);
            *next += 1;
        }
        node.bodies.iter_mut().for_each(|body| number_sites(body, next));
    }
}

fn inline_chosen(func: &Func) -> Func {
    rebuild(func, |b, node, inputs| {
        if node.op.name != "select_host" {
            if node.bodies.is_empty() {
                return None;
            }
            let bodies = node.bodies.iter().map(inline_chosen).collect();
            return Some(append(b, &Node { bodies, ..node.clone() }, inputs));
        }
        let chosen = match node.attrs.get("cond") {
            Some(Attr::Bool(true)) => 0,
            Some(Attr::Bool(false)) => 1,
            other => panic!("the condition of a host choice is not bound: {other:?}"),
        };
        Some(inline(b, &inline_chosen(&node.bodies[chosen]), inputs))
    })
}

/// Appends the nodes of `body` over `inputs`; returns its outputs.
pub fn inline(b: &mut Builder, body: &Func, inputs: &[ValueId]) -> Vec<ValueId> {
    let mut map: HashMap<ValueId, ValueId> = body.inputs.iter().copied().zip(inputs.iter().copied()).collect();
    for node in &body.nodes {
        b.span = node.span;
        let operands: Vec<ValueId> = node.inputs.iter().map(|v| map[v]).collect();
        let outputs = append(b, node, &operands);
        for (&old, new) in node.outputs.iter().zip(outputs) {
            b.func.values[new.index()].name.clone_from(&body.values[old.index()].name);
            map.insert(old, new);
        }
    }
    body.outputs.iter().map(|v| map[v]).collect()
}
