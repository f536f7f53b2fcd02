//! Precision: puts the casts of mixed-precision training into a primal function; executes nothing, fuses nothing.
//!
//! In: a primal body, all float values `f32`. Out: the same body where activations and parameters enter in the layer's compute
//! type and every user operation's output is rounded to it by an explicit `cast` node (Micikevicius et al. 2018,
//! arXiv 1710.03740, made explicit in the IR). Reductions, losses and statistics stay `f32`. A child's arguments are cast to
//! the child's type before the call and its result to this layer's type after it. The carried value of a `repeat` takes the
//! child's type once, before the loop.

use crate::ir::{Attr, Builder, DType, Func, Node, Type, ValueId};
use crate::ops::Class;

/// Rewrites `func`, whose inputs are in the order of the layer's body arguments, to compute in `compute`
/// (usually [`DType::Compute`], to be resolved when the model is linked).
pub fn run(func: &Func, compute: DType) -> Func {
    let mut pass = Pass { old: func, b: Builder::default(), compute, map: vec![None; func.values.len()] };
    for &v in &func.inputs {
        let ty = enters_as(func.ty(v), compute);
        let name = func.values[v.index()].name.clone().unwrap_or_default();
        let new = pass.b.func.add_input(ty, &name);
        pass.map[v.index()] = Some(Mapped { rounded: new, exact: new });
    }
    for node in &func.nodes {
        pass.node(node);
    }
    let outputs = func.outputs.iter().map(|&v| pass.get(v)).collect();
    pass.b.func.outputs = outputs;
    pass.b.func
}

/// Scalars (rotary bases) stay f32: they are host numbers, not activations.
fn enters_as(ty: &Type, compute: DType) -> Type {
    if ty.dtype.is_float() && ty.rank() > 0 { ty.with(compute) } else { ty.clone() }
}

#[derive(Clone, Copy)]
struct Mapped {
    /// As later operations read it.
    rounded: ValueId,
    /// Before rounding, for `.f32()`.
    exact: ValueId,
}

struct Pass<'a> {
    old: &'a Func,
    b: Builder,
    compute: DType,
    map: Vec<Option<Mapped>>,
}

impl Pass<'_> {
    fn get(&self, v: ValueId) -> ValueId {
        self.mapped(v).rounded
    }

    fn mapped(&self, v: ValueId) -> Mapped {
        self.map[v.index()].unwrap_or_else(|| panic!("%{} is read before it is defined", v.0))
    }

    fn set(&mut self, old: ValueId, rounded: ValueId, exact: ValueId) {
        let name = self.old.values[old.index()].name.clone();
        self.b.func.values[rounded.index()].name = name;
        self.map[old.index()] = Some(Mapped { rounded, exact });
    }

    fn node(&mut self, node: &Node) {
        self.b.span = node.span;
        match (node.op.class, node.op.name) {
            (_, "f32") => {
                let exact = self.mapped(node.inputs[0]).exact;
                let wide = self.b.cast(exact, DType::F32);
                self.set(node.outputs[0], wide, wide);
            }
            (Class::Structural, "call") => self.call(node),
            (Class::Structural, "repeat") => self.repeat(node),
            _ => self.plain(node),
        }
    }

    fn plain(&mut self, node: &Node) {
        let inputs: Vec<ValueId> = node.inputs.iter().map(|&v| self.get(v)).collect();
        let outputs = self.b.ops(node.op.name, node.attrs.clone(), &inputs);
        let last = self.b.func.nodes.len() - 1;
        self.b.func.nodes[last].bodies = node.bodies.clone();
        for (k, (&old, &new)) in node.outputs.iter().zip(&outputs).enumerate() {
            let rounded = if rounds(node, k) { self.b.cast(new, self.compute) } else { new };
            if rounded != new {
                self.move_no_fuse(last);
            }
            self.set(old, rounded, new);
        }
    }

    /// What `#[no_fuse]` stores is the value that later operations read: the mark of node `from` goes to the cast that follows it.
    fn move_no_fuse(&mut self, from: usize) {
        let nodes = &mut self.b.func.nodes;
        if nodes[from].attrs.flag("no_fuse") {
            nodes[from].attrs.remove("no_fuse");
            if let Some(cast) = nodes.last_mut() {
                cast.attrs.set("no_fuse", true);
            }
        }
    }

    fn call(&mut self, node: &Node) {
        let sub = DType::Sub(node.attrs.int("sub") as u8);
        let inputs: Vec<ValueId> = node.inputs.iter().map(|&v| self.argument(v, sub)).collect();
        let attrs = node.attrs.clone().with("dtype", sub);
        let outputs = self.b.ops("call", attrs, &inputs);
        for (&old, &new) in node.outputs.iter().zip(&outputs) {
            let rounded = if self.b.ty(new).rank() > 0 { self.b.cast(new, self.compute) } else { new };
            self.set(old, rounded, new);
        }
    }

    fn argument(&mut self, v: ValueId, sub: DType) -> ValueId {
        let v = self.get(v);
        let ty = self.b.ty(v);
        if ty.dtype.is_float() && ty.rank() > 0 { self.b.cast(v, sub) } else { v }
    }

    fn repeat(&mut self, node: &Node) {
        let sub = DType::Sub(node.attrs.int("sub") as u8);
        let inputs: Vec<ValueId> = node.inputs.iter().map(|&v| self.argument(v, sub)).collect();
        let outputs = self.b.ops("repeat", node.attrs.clone(), &inputs);
        let last = self.b.func.nodes.len() - 1;
        self.b.func.nodes[last].bodies = vec![run(&node.bodies[0], sub)];
        for (&old, &new) in node.outputs.iter().zip(&outputs) {
            let rounded = self.b.cast(new, self.compute);
            self.set(old, rounded, new);
        }
    }
}

/// Whether result `k` of a node is one operation's output that the layer's type rounds.
fn rounds(node: &Node, k: usize) -> bool {
    let source = node.inputs.is_empty();
    match node.op.class {
        Class::Map => !source && node.op.name != "cast" && node.op.name != "gather" && !is_compare(node),
        Class::Composite => k == 0 && !is_reduction(node),
        // The user's own operation has outputs only; others return statistics beside their first result.
        Class::Library => k == 0 || node.op.name == "opaque",
        Class::View | Class::Reduce | Class::Loss | Class::Structural | Class::Collective => false,
    }
}

/// Composites that are reductions or losses: their results stay f32.
fn is_reduction(node: &Node) -> bool {
    matches!(node.op.name, "mean" | "cross_entropy")
}

fn is_compare(node: &Node) -> bool {
    matches!(node.op.name, "lt" | "le" | "gt" | "ge" | "eq" | "ne")
}

/// Replaces placeholder element types by those that linking chose, in types, attributes and nested bodies.
pub fn resolve(func: &mut Func, dtype: &dyn Fn(DType) -> DType) {
    for v in &mut func.values {
        v.ty.dtype = dtype(v.ty.dtype);
    }
    for n in &mut func.nodes {
        for a in n.attrs.values_mut() {
            if let Attr::DType(d) = a {
                *d = dtype(*d);
            }
        }
        for body in &mut n.bodies {
            resolve(body, dtype);
        }
    }
}
