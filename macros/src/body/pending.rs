//! Values whose types the next use decides, and the unification of axes that nobody has named yet.

use super::value::{Assumed, Assumption, Demand, Expected, Pending, Source, Val};
use super::{Lowering, Ref};
use kiln_compiler::ir::{Attr, Attrs, Axis, DType, Func, Node, Type};
use kiln_compiler::ops;
use proc_macro2::TokenStream;

impl Lowering<'_> {
    /// A fresh axis that nobody has named.
    pub(super) fn wildcard(&mut self) -> Axis {
        self.wildcards += 1;
        Axis::new(&format!("?{}", self.wildcards - 1))
    }

    /// A value whose type is not known yet.
    pub(super) fn pend(&mut self, source: Source, tokens: TokenStream) -> Val {
        self.pending.push(Pending { source, tokens, made: None, reported: false });
        Val::Pending(self.pending.len() - 1)
    }

    /// The value behind a pending one, if it has been made.
    pub(super) fn known(&self, val: &Val) -> Val {
        match val {
            Val::Pending(i) => match &self.pending[*i].made {
                Some(made) => made.clone(),
                None if self.pending[*i].reported => Val::Wrong,
                None => Val::Pending(*i),
            },
            other => other.clone(),
        }
    }

    /// Makes a pending value of the expected type.
    pub(super) fn resolve(&mut self, i: usize, expected: &Expected) -> Val {
        if let Some(made) = &self.pending[i].made {
            return made.clone();
        }
        let tokens = self.pending[i].tokens.clone();
        let made = match self.pending[i].source.clone() {
            Source::Tied { sub, path } => match expected {
                Expected::Tensor(ty) => Val::Tensor(self.tied(sub, &path, ty, tokens)),
                Expected::Tuple(_) | Expected::Loss => Val::Wrong,
            },
            Source::Op { frame, call, args, span } => {
                let inputs = self.values_at(&args, frame);
                match self.op_node(call, expected, inputs, span) {
                    Some(node) => self.push_call(frame, node, expected),
                    None => Val::Wrong,
                }
            }
            Source::Call { frame, sub, name, args, span } => {
                self.assumptions.push(Assumption { sub, name, tokens, what: Assumed::Output(expected.clone()) });
                let node = call_node(sub, expected, self.values_at(&args, frame), span);
                self.push_call(frame, node, expected)
            }
        };
        self.pending[i].made = Some(made.clone());
        made
    }

    fn values_at(&mut self, args: &[Ref], frame: usize) -> Vec<kiln_compiler::ir::ValueId> {
        args.iter().map(|&r| self.local_at(r, frame)).collect()
    }

    fn push_call(&mut self, frame: usize, mut node: Node, expected: &Expected) -> Val {
        let types = match expected {
            Expected::Tensor(t) => vec![t.clone()],
            Expected::Tuple(ts) => ts.clone(),
            Expected::Loss => vec![Type::f32(vec![]), Type::f32(vec![])],
        };
        let func = &mut self.frames[frame].builder.func;
        node.outputs = types.into_iter().map(|t| func.add_value(t, None)).collect();
        let refs: Vec<Ref> = node.outputs.iter().map(|&id| Ref { frame, id }).collect();
        func.nodes.push(node);
        match (expected, refs.as_slice()) {
            (Expected::Tensor(_), [r]) => Val::Tensor(*r),
            (Expected::Loss, [sum, count]) => Val::Loss { sum: *sum, count: *count },
            _ => Val::Tuple(refs.into_iter().map(Val::Tensor).collect()),
        }
    }

    /// A child's parameter as an input of the layer's function.
    fn tied(&mut self, sub: usize, path: &str, ty: &Type, tokens: TokenStream) -> Ref {
        if let Some((_, r)) = self.tied.get(path) {
            return *r;
        }
        let below = path.split_once('.').map_or(path, |(_, rest)| rest).to_owned();
        let name = self.sub_name(sub);
        self.assumptions.push(Assumption { sub, name, tokens, what: Assumed::Param(below, ty.clone()) });
        let r = Ref { frame: 0, id: self.frames[0].builder.func.add_input(ty.clone(), path) };
        self.tied.insert(path.to_owned(), (sub, r));
        r
    }

    /// Says that the type of a pending value must be written.
    pub(super) fn report_pending(&mut self, i: usize) {
        if self.pending[i].made.is_some() || std::mem::replace(&mut self.pending[i].reported, true) {
            return;
        }
        let tokens = self.pending[i].tokens.clone();
        let what = match &self.pending[i].source {
            // Whether it is an operation at all is the constant check's to say first.
            Source::Op { .. } => return,
            Source::Call { name, .. } => format!("the type of what `{name}` returns"),
            Source::Tied { path, .. } => format!("the type of `{path}`"),
        };
        let help = "write it: `let y: Tensor<B, S, D> = ..;`";
        self.errors.push(tokens, "K0305", format!("{what} does not follow from this line"), help);
    }

    /// At the end: every call must have got a type.
    pub(super) fn unresolved_calls(&mut self) {
        for i in 0..self.pending.len() {
            if matches!(self.pending[i].source, Source::Call { .. }) {
                self.report_pending(i);
            }
        }
    }

    /// Name of a child, as written in the arguments.
    pub(super) fn sub_name(&self, sub: usize) -> String {
        self.signature.subs().nth(sub).map_or_else(String::new, |(arg, _)| arg.name.to_string())
    }

    /// Whether a child is one copy of a `Repeat`.
    pub(super) fn is_copy(&self, sub: usize) -> bool {
        self.signature.subs().nth(sub).is_some_and(|(_, s)| s.repeat.is_some())
    }

    /// Gives names to unknown axes so that two shapes agree, where they can.
    pub(super) fn unify(&mut self, a: &[Axis], b: &[Axis]) {
        if a.len() != b.len() {
            return;
        }
        for (&x, &y) in a.iter().zip(b) {
            match (x.is_wildcard(), y.is_wildcard()) {
                _ if x == y => {}
                (true, _) => self.substitute(x, y),
                (false, true) => self.substitute(y, x),
                (false, false) => {}
            }
        }
    }

    fn substitute(&mut self, from: Axis, to: Axis) {
        for f in &mut self.frames {
            substitute_func(&mut f.builder.func, from, to);
        }
        for call in &mut self.op_calls {
            call.operands.iter_mut().for_each(|(_, ty)| substitute_shape(&mut ty.shape, from, to));
            match &mut call.demand {
                Demand::Result(Expected::Tensor(ty)) => substitute_shape(&mut ty.shape, from, to),
                Demand::Result(Expected::Tuple(types)) => {
                    types.iter_mut().for_each(|t| substitute_shape(&mut t.shape, from, to));
                }
                Demand::Result(Expected::Loss) | Demand::Untyped | Demand::Unfit(..) | Demand::Nothing => {}
            }
        }
        for a in &mut self.assumptions {
            match &mut a.what {
                Assumed::Input(_, ty) | Assumed::Param(_, ty) | Assumed::Output(Expected::Tensor(ty)) => {
                    substitute_shape(&mut ty.shape, from, to);
                }
                Assumed::Output(Expected::Tuple(types)) => {
                    types.iter_mut().for_each(|t| substitute_shape(&mut t.shape, from, to));
                }
                Assumed::Output(Expected::Loss) | Assumed::Rope(..) => {}
            }
        }
    }
}

fn call_node(
    sub: usize,
    expected: &Expected,
    inputs: Vec<kiln_compiler::ir::ValueId>,
    span: kiln_compiler::ir::Span,
) -> Node {
    let op = ops::find("call").unwrap_or_else(|| panic!("no operation `call`: a bug of Kiln's registry"));
    let mut attrs = Attrs::new().with("sub", sub as i64).with("dtype", DType::F32);
    let shapes: Vec<Vec<Axis>> = match expected {
        Expected::Tensor(t) => vec![t.shape.clone()],
        Expected::Tuple(ts) => ts.iter().map(|t| t.shape.clone()).collect(),
        Expected::Loss => vec![Vec::new(), Vec::new()],
    };
    attrs.set("outs", shapes.len() as i64);
    for (i, shape) in shapes.into_iter().enumerate() {
        attrs.set(&format!("out{i}"), shape);
    }
    if *expected == Expected::Loss {
        attrs.set("loss", true);
    }
    Node { op, inputs, outputs: Vec::new(), attrs, bodies: Vec::new(), span }
}

fn substitute_shape(shape: &mut [Axis], from: Axis, to: Axis) {
    for a in shape {
        if *a == from {
            *a = to;
        }
    }
}

fn substitute_func(func: &mut Func, from: Axis, to: Axis) {
    for v in &mut func.values {
        substitute_shape(&mut v.ty.shape, from, to);
    }
    for n in &mut func.nodes {
        for a in n.attrs.values_mut() {
            match a {
                Attr::Axis(x) if *x == from => *x = to,
                Attr::Axes(xs) => substitute_shape(xs, from, to),
                _ => {}
            }
        }
        for b in &mut n.bodies {
            substitute_func(b, from, to);
        }
    }
}
