//! Placement: lays one axis of a layer over the ranks of a mesh axis, and puts in the collectives that this needs.
//!
//! Each rank holds a part of every value that has the axis (*split*) and the whole of every other (*invariant*). Two rules cover
//! forward: a sum over the split axis is completed by `all_reduce`, and an invariant operand that meets split ones passes
//! `pbroadcast`, the identity whose derivative is `all_reduce`. So backward's collectives come from differentiation (the f and g
//! of Shoeybi et al. 2019, arXiv 1909.08053, which nobody writes here). An operation that needs the axis whole is an error.

use crate::diagnostics::Diagnostic;
use crate::ir::{ArgKind, Attrs, Axis, Builder, Func, Layer, Node, Span, ValueId};
use crate::ops::{self, Class, Vjp};
use std::collections::{BTreeSet, HashMap};

/// Why an axis cannot be split.
#[derive(Clone, Debug, PartialEq)]
pub struct PlaceError {
    /// The operation's position; 0:0 if the layer's signature is at fault.
    pub span: Span,
    /// What to tell the user.
    pub diagnostic: Diagnostic,
}

/// An axis that a bare `#[shard(tensor)]` could mean.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// The axis.
    pub axis: Axis,
    /// Parameters of which each rank would hold a part.
    pub parts: Vec<String>,
    /// Parameters that each rank would hold whole.
    pub whole: Vec<String>,
}

/// The answer to a bare `#[shard(tensor)]` where not exactly one axis fits.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidates {
    /// The layer's name.
    pub layer: String,
    /// Axes that fit: none, or several.
    pub found: Vec<Candidate>,
    /// The other axes of parameters, and why each does not fit.
    pub refused: Vec<(Axis, String)>,
}

impl Candidates {
    /// What to tell the user.
    pub fn diagnostic(&self) -> Diagnostic {
        let layer = &self.layer;
        if self.found.is_empty() {
            let reasons: Vec<String> = self.refused.iter().map(|(_, why)| why.clone()).collect();
            let reasons = if reasons.is_empty() { "it has no parameters".to_owned() } else { reasons.join("; ") };
            return Diagnostic::new("K0411", format!("`#[shard(tensor)]` finds no axis to split in `{layer}`"))
                .help(format!("{reasons}; `#[shard(tensor = F)]` names an axis, without it the layer is not split"));
        }
        let names = listed(self.found.iter().map(|c| c.axis.name()), "or");
        let each: Vec<String> = self.found.iter().map(Candidate::meaning).collect();
        Diagnostic::new("K0411", format!("`#[shard(tensor)]` on `{layer}` could split {names}")).help(each.join("; "))
    }
}

impl Candidate {
    fn meaning(&self) -> String {
        let parts = listed(self.parts.iter().map(String::as_str), "and");
        let whole = match self.whole.as_slice() {
            [] => String::new(),
            names => format!(", and {} whole", listed(names.iter().map(String::as_str), "and")),
        };
        format!("`#[shard(tensor = {})]`: each rank holds a part of {parts}{whole}", self.axis)
    }
}

/// `` `a`, `b` and `c` ``.
fn listed<'a>(names: impl Iterator<Item = &'a str>, last: &str) -> String {
    let names: Vec<String> = names.map(|n| format!("`{n}`")).collect();
    match names.split_last() {
        Some((end, [])) => end.clone(),
        Some((end, rest)) => format!("{} {last} {end}", rest.join(", ")),
        None => String::new(),
    }
}

/// The axis that a bare `#[shard(tensor)]` means: in no activation, in two or more parameters, contracted between them, needed
/// whole by no operation.
pub fn infer_axis(layer: &Layer) -> Result<Axis, Candidates> {
    let mut found = Vec::new();
    let mut refused = Vec::new();
    for axis in parameter_axes(layer) {
        match fits_bare(layer, axis) {
            Ok(()) => found.push(candidate(layer, axis)),
            Err(why) => refused.push((axis, why)),
        }
    }
    match found.as_slice() {
        [only] => Ok(only.axis),
        _ => Err(Candidates { layer: layer.name.clone(), found, refused }),
    }
}

/// Whether `#[shard(tensor = axis)]` is possible.
pub fn check_axis(layer: &Layer, axis: Axis) -> Result<(), PlaceError> {
    let signature = |code, message: String| {
        let help = match infer_axis(layer) {
            Ok(other) => format!("`{other}` can be split"),
            Err(candidates) if candidates.found.is_empty() => "no axis of this layer can be split".to_owned(),
            Err(candidates) => {
                format!("{} can be split", listed(candidates.found.iter().map(|c| c.axis.name()), "or"))
            }
        };
        PlaceError { span: Span::default(), diagnostic: Diagnostic::new(code, message).help(help) }
    };
    if !parameter_axes(layer).contains(&axis) {
        return Err(signature("K0419", format!("no parameter of `{}` has axis `{axis}`", layer.name)));
    }
    if let Some(why) = border(layer, axis) {
        return Err(signature("K0418", format!("`{axis}` cannot be split inside `{}`: {why}", layer.name)));
    }
    check(&layer.body, axis)
}

/// Axes of the layer's own parameters, in order of appearance.
fn parameter_axes(layer: &Layer) -> Vec<Axis> {
    let mut axes = Vec::new();
    for arg in &layer.args {
        if let ArgKind::Param { ty, .. } = &arg.kind {
            let new: Vec<Axis> = ty.shape.iter().copied().filter(|a| !axes.contains(a)).collect();
            axes.extend(new);
        }
    }
    axes
}

fn candidate(layer: &Layer, axis: Axis) -> Candidate {
    let mut c = Candidate { axis, parts: Vec::new(), whole: Vec::new() };
    for arg in &layer.args {
        if let ArgKind::Param { ty, .. } = &arg.kind {
            let list = if ty.position(axis).is_some() { &mut c.parts } else { &mut c.whole };
            list.push(arg.name.clone());
        }
    }
    c
}

/// Where the axis shows outside of the layer, if it does.
fn border(layer: &Layer, axis: Axis) -> Option<String> {
    for arg in &layer.args {
        let name = &arg.name;
        match &arg.kind {
            ArgKind::Input(ty) if ty.position(axis).is_some() => {
                return Some(format!("the input `{name}` has `{axis}`"));
            }
            ArgKind::Tied { path, ty } if ty.position(axis).is_some() => {
                return Some(format!("`{path}`, a parameter of another layer, has `{axis}`"));
            }
            ArgKind::Sub(sub) if sub.repeat == Some(axis) => {
                return Some(format!("`{axis}` counts the copies of `{name}`"));
            }
            ArgKind::Sub(sub) if sub.generics.contains(&axis) => return Some(format!("`{name}` has `{axis}`")),
            _ => {}
        }
    }
    let returned = layer.body.outputs.iter().any(|&v| layer.body.ty(v).position(axis).is_some());
    returned.then(|| format!("the result has `{axis}`"))
}

/// Why a bare annotation does not mean `axis`.
fn fits_bare(layer: &Layer, axis: Axis) -> Result<(), String> {
    if let Some(why) = border(layer, axis) {
        return Err(why);
    }
    if let [only] = candidate(layer, axis).parts.as_slice() {
        return Err(format!("only `{only}` has `{axis}`"));
    }
    check(&layer.body, axis).map_err(|e| e.diagnostic.message)?;
    match contracts_parameters(layer, axis) {
        true => Ok(()),
        false => Err(format!("no operation contracts `{axis}` of one parameter with `{axis}` of another")),
    }
}

/// Whether a contraction over `axis` joins what came along `axis` from two different parameters.
fn contracts_parameters(layer: &Layer, axis: Axis) -> bool {
    let func = &layer.body;
    let mut from: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); func.values.len()];
    for ((i, arg), &v) in layer.body_args().zip(&func.inputs) {
        if matches!(arg.kind, ArgKind::Param { .. }) && func.ty(v).position(axis).is_some() {
            from[v.index()].insert(i);
        }
    }
    for node in &func.nodes {
        let along = node.inputs.iter().filter(|v| func.ty(**v).position(axis).is_some());
        let joined: BTreeSet<usize> = along.flat_map(|v| from[v.index()].iter().copied()).collect();
        if joined.len() > 1 && matches!(effect(func, node, axis), Ok(Effect::Sums)) {
            return true;
        }
        for &o in &node.outputs {
            from[o.index()].clone_from(&joined);
        }
    }
    false
}

/// Whether every operation of `func` works on a part of `axis`.
fn check(func: &Func, axis: Axis) -> Result<(), PlaceError> {
    func.nodes.iter().try_for_each(|n| effect(func, n, axis).map(|_| ()))
}

/// What a node does with the split axis.
#[derive(Clone, Copy, PartialEq)]
enum Effect {
    /// None of its values has it.
    None,
    /// Works on each part alone.
    Local,
    /// Sums over it: each rank has its part of the sum.
    Sums,
}

fn effect(func: &Func, node: &Node, axis: Axis) -> Result<Effect, PlaceError> {
    let has = |v: &ValueId| func.ty(*v).position(axis).is_some();
    let a = &node.attrs;
    if matches!(node.op.name, "call" | "repeat") {
        return match node.inputs.iter().chain(&node.outputs).any(has) || bodies_have(node, axis) {
            true => Err(crosses(node.span, axis)),
            false => Ok(Effect::None),
        };
    }
    let touches = node.inputs.iter().chain(&node.outputs).any(has);
    let along = |i: usize, from_end: usize| {
        let shape = &func.ty(node.inputs[i]).shape;
        shape.len().checked_sub(from_end).and_then(|p| shape.get(p)) == Some(&axis)
    };
    let local_unless = |whole: bool| if whole { Err(needs_whole(node, axis)) } else { Ok(Effect::Local) };
    let sums_if = |sums: bool| Ok(if sums { Effect::Sums } else { Effect::Local });
    // These may mean the size of an axis that none of their values has.
    if matches!(node.op.name, "slice" | "pad") && mentions(a, axis) {
        return Err(needs_whole(node, axis));
    }
    if node.op.name == "select_host" && (touches || bodies_have(node, axis)) {
        node.bodies.iter().try_for_each(|body| check(body, axis))?;
        return Ok(Effect::Local);
    }
    if !touches {
        return Ok(Effect::None);
    }
    match node.op.name {
        "reduce_sum" | "mean" => sums_if(a.axes("axes").contains(&axis)),
        "dot_general" => sums_if(!a.axes("out").contains(&axis)),
        "reduce_max" => local_unless(a.axes("axes").contains(&axis)),
        "softmax" | "log_softmax" | "rotate_half" | "half_sign" => local_unless(a.axis("axis") == axis),
        "rms_norm" | "layer_norm" => local_unless(along(0, 1)),
        "rope" => local_unless(a.axis("head") == axis),
        "attention" => local_unless((0..3).any(|i| along(i, 1) || along(i, 2))),
        "gather" => local_unless(func.ty(node.inputs[0]).shape[0] == axis),
        "rename" | "split" | "merge" | "slice" | "pad" | "concat" => local_unless(mentions(a, axis)),
        "broadcast" | "permute" | "stop_gradient" | "silu" | "gelu" | "gelu_tanh" | "relu" | "dropout" => {
            Ok(Effect::Local)
        }
        "all_reduce" | "pbroadcast" => Ok(Effect::Local),
        _ => local_unless(node.op.class != Class::Map),
    }
}

/// Whether an attribute names the axis.
fn mentions(attrs: &Attrs, axis: Axis) -> bool {
    use crate::ir::Attr;
    attrs.iter().any(|(_, a)| match a {
        Attr::Axis(x) => *x == axis,
        Attr::Axes(list) => list.contains(&axis),
        _ => false,
    })
}

fn bodies_have(node: &Node, axis: Axis) -> bool {
    let body_has = |body: &Func| {
        body.values.iter().any(|v| v.ty.position(axis).is_some()) || body.nodes.iter().any(|n| bodies_have(n, axis))
    };
    node.bodies.iter().any(body_has)
}

fn needs_whole(node: &Node, axis: Axis) -> PlaceError {
    // The user's spelling, where it is another one.
    let name = match ops::word(node.op, &node.attrs) {
        "attention" => "attend",
        word => word,
    };
    let diagnostic = Diagnostic::new("K0417", format!("`{name}` needs `{axis}` whole, so `{axis}` cannot be split"))
        .help("split another axis, or move the operation to a layer without `#[shard]`");
    PlaceError { span: node.span, diagnostic }
}

fn crosses(span: Span, axis: Axis) -> PlaceError {
    let message = format!("a value with `{axis}` goes to or comes from another layer, so `{axis}` cannot be split");
    let help = "a split axis is private to its layer: contract it before the layer's border, or split another axis";
    PlaceError { span, diagnostic: Diagnostic::new("K0418", message).help(help) }
}

/// Splits `axis` over the ranks of mesh axis `mesh`, in a function after the precision pass. That none of its activation inputs
/// has the axis is the caller's to check (see [`check_axis`]).
pub fn run(func: &Func, axis: Axis, mesh: &str) -> Result<Func, PlaceError> {
    if let Some(&v) = func.outputs.iter().find(|v| func.ty(**v).position(axis).is_some()) {
        let definition = func.definitions()[v.index()];
        return Err(crosses(definition.map(|i| func.nodes[i].span).unwrap_or_default(), axis));
    }
    let mut pass = Pass {
        old: func,
        axis,
        mesh,
        active: active(func),
        b: Builder::default(),
        map: HashMap::new(),
        seen: HashMap::new(),
    };
    pass.body()?;
    Ok(pass.b.func)
}

struct Pass<'a> {
    old: &'a Func,
    axis: Axis,
    mesh: &'a str,
    /// Values that may get a cotangent.
    active: Vec<bool>,
    b: Builder,
    map: HashMap<ValueId, ValueId>,
    /// Invariant values as split operands meet them.
    seen: HashMap<ValueId, ValueId>,
}

impl Pass<'_> {
    fn body(&mut self) -> Result<(), PlaceError> {
        for &v in &self.old.inputs {
            let value = &self.old.values[v.index()];
            let new = self.b.func.add_value(value.ty.clone(), value.name.clone());
            self.b.func.inputs.push(new);
            self.map.insert(v, new);
        }
        for node in &self.old.nodes {
            self.node(node)?;
        }
        self.b.func.outputs = self.old.outputs.iter().map(|v| self.map[v]).collect();
        Ok(())
    }

    fn node(&mut self, node: &Node) -> Result<(), PlaceError> {
        let effect = effect(self.old, node, self.axis)?;
        self.b.span = node.span;
        // A host choice places its bodies, which meet its operands.
        let meets = effect != Effect::None && node.op.name != "select_host";
        let inputs: Vec<ValueId> = (0..node.inputs.len()).map(|k| self.operand(node, k, meets)).collect();
        let bodies = node.bodies.iter().map(|body| self.nested(body, effect)).collect::<Result<Vec<Func>, _>>()?;
        let outputs = self.b.ops(node.op.name, node.attrs.clone(), &inputs);
        if let Some(last) = self.b.func.nodes.last_mut() {
            last.bodies = bodies;
        }
        for (&old, &new) in node.outputs.iter().zip(&outputs) {
            let sums = effect == Effect::Sums;
            let new = if sums { self.b.op("all_reduce", self.on_mesh(), &[new]) } else { new };
            self.b.func.values[new.index()].name.clone_from(&self.old.values[old.index()].name);
            self.map.insert(old, new);
        }
        Ok(())
    }

    fn on_mesh(&self) -> Attrs {
        Attrs::new().with("mesh", self.mesh)
    }

    fn operand(&mut self, node: &Node, k: usize, meets: bool) -> ValueId {
        let old = node.inputs[k];
        let new = self.map[&old];
        // Rotary bases, ids and masks have no cotangent that ranks would have to sum.
        let has_cotangent = self.active[old.index()]
            && !matches!(node.op.vjp, Vjp::Zero)
            && !(node.op.name == "rope" && k == 1)
            && self.old.ty(old).position(self.axis).is_none();
        if !meets || !has_cotangent {
            return new;
        }
        if let Some(&seen) = self.seen.get(&old) {
            return seen;
        }
        let seen = self.b.op("pbroadcast", self.on_mesh(), &[new]);
        self.seen.insert(old, seen);
        seen
    }

    fn nested(&self, body: &Func, effect: Effect) -> Result<Func, PlaceError> {
        if effect == Effect::None {
            return Ok(body.clone());
        }
        let mut pass = Pass {
            old: body,
            axis: self.axis,
            mesh: self.mesh,
            active: active(body),
            b: Builder::default(),
            map: HashMap::new(),
            seen: HashMap::new(),
        };
        pass.body()?;
        Ok(pass.b.func)
    }
}

/// Values that depend on a float argument or on a child's parameters through operations with a derivative.
fn active(func: &Func) -> Vec<bool> {
    let mut active = vec![false; func.values.len()];
    for &v in &func.inputs {
        active[v.index()] = func.ty(v).dtype.is_float();
    }
    for n in &func.nodes {
        let holds_parameters = matches!(n.op.name, "call" | "repeat");
        let through = holds_parameters || n.inputs.iter().any(|v| active[v.index()]);
        for &o in &n.outputs {
            active[o.index()] = through && !matches!(n.op.vjp, Vjp::Zero) && func.ty(o).dtype.is_float();
        }
    }
    active
}
