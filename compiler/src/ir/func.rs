//! Straight-line functions in SSA form and the builder that every pass uses to make them.

use super::{Attrs, Axis, DType, Type};
use crate::ops::{self, Op, TypeError};

/// Index of a value in its function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub u32);

impl ValueId {
    /// As an index into [`Func::values`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Position in the user's source: line from 1, column from 1; 0:0 when there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Span {
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

/// One SSA value.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// Its type.
    pub ty: Type,
    /// The user's name: a `let` binding or an argument.
    pub name: Option<String>,
}

/// One operation applied to values.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The operation.
    pub op: Op,
    /// Operands.
    pub inputs: Vec<ValueId>,
    /// Results.
    pub outputs: Vec<ValueId>,
    /// Constants of the operation.
    pub attrs: Attrs,
    /// Bodies of structural operations (`repeat`: one, over carried then captured values; `select_host`: one per branch).
    pub bodies: Vec<Func>,
    /// Where the user wrote it. A backward node keeps the position of its forward operation.
    pub span: Span,
}

/// A function: inputs, nodes in execution order, outputs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Func {
    /// All values, by [`ValueId`].
    pub values: Vec<Value>,
    /// Nodes in an order in which operands come before their uses.
    pub nodes: Vec<Node>,
    /// Arguments.
    pub inputs: Vec<ValueId>,
    /// Results.
    pub outputs: Vec<ValueId>,
}

impl Func {
    /// The type of a value.
    pub fn ty(&self, v: ValueId) -> &Type {
        &self.values[v.index()].ty
    }

    /// Adds a value that no node defines yet.
    pub fn add_value(&mut self, ty: Type, name: Option<String>) -> ValueId {
        self.values.push(Value { ty, name });
        ValueId(self.values.len() as u32 - 1)
    }

    /// Adds an argument.
    pub fn add_input(&mut self, ty: Type, name: &str) -> ValueId {
        let v = self.add_value(ty, Some(name.to_owned()));
        self.inputs.push(v);
        v
    }

    /// For each value the index of the node that defines it; `None` for arguments.
    pub fn definitions(&self) -> Vec<Option<usize>> {
        let mut def = vec![None; self.values.len()];
        for (i, n) in self.nodes.iter().enumerate() {
            for &o in &n.outputs {
                def[o.index()] = Some(i);
            }
        }
        def
    }

    /// For each value the indices of the nodes that read it, in order, once per operand.
    pub fn uses(&self) -> Vec<Vec<usize>> {
        let mut uses = vec![Vec::new(); self.values.len()];
        for (i, n) in self.nodes.iter().enumerate() {
            for &v in &n.inputs {
                uses[v.index()].push(i);
            }
        }
        uses
    }
}

/// Appends checked nodes to a function.
#[derive(Debug, Default)]
pub struct Builder {
    /// The function so far.
    pub func: Func,
    /// Position given to new nodes.
    pub span: Span,
}

impl Builder {
    /// Continues `func`.
    pub fn on(func: Func) -> Self {
        Builder { func, span: Span::default() }
    }

    /// Appends `op`, inferring its result types.
    pub fn try_op(&mut self, op: Op, attrs: Attrs, inputs: &[ValueId]) -> Result<Vec<ValueId>, TypeError> {
        let types: Vec<&Type> = inputs.iter().map(|&v| self.func.ty(v)).collect();
        let outs = (op.infer)(&attrs, &types)?;
        let outputs: Vec<ValueId> = outs.into_iter().map(|t| self.func.add_value(t, None)).collect();
        self.func.nodes.push(Node {
            op,
            inputs: inputs.to_vec(),
            outputs: outputs.clone(),
            attrs,
            bodies: Vec::new(),
            span: self.span,
        });
        Ok(outputs)
    }

    /// Appends the operation called `name` and returns all its results. For passes, whose operands are known to fit.
    ///
    /// # Panics
    /// If the operation does not exist or the operands do not fit: a bug of the calling pass.
    pub fn ops(&mut self, name: &str, attrs: Attrs, inputs: &[ValueId]) -> Vec<ValueId> {
        let op = ops::find(name).unwrap_or_else(|| panic!("no operation `{name}`"));
        let types: Vec<String> = inputs.iter().map(|&v| self.func.ty(v).to_string()).collect();
        self.try_op(op, attrs, inputs).unwrap_or_else(|e| panic!("`{name}` on {types:?}: {}", e.message))
    }

    /// As [`Builder::ops`], for operations with one result.
    pub fn op(&mut self, name: &str, attrs: Attrs, inputs: &[ValueId]) -> ValueId {
        self.ops(name, attrs, inputs)[0]
    }

    /// The type of a value.
    pub fn ty(&self, v: ValueId) -> &Type {
        self.func.ty(v)
    }

    /// The axes of a value.
    pub fn shape(&self, v: ValueId) -> Vec<Axis> {
        self.func.ty(v).shape.clone()
    }

    /// A constant over `shape`.
    pub fn constant(&mut self, value: f64, shape: &[Axis]) -> ValueId {
        self.op("const", Attrs::new().with("value", value).with("shape", shape), &[])
    }

    /// A constant with the axes of `like`.
    pub fn constant_like(&mut self, value: f64, like: ValueId) -> ValueId {
        let shape = self.shape(like);
        self.constant(value, &shape)
    }

    /// `x` repeated over the axes that it lacks; the identity when it lacks none.
    pub fn broadcast(&mut self, x: ValueId, to: &[Axis]) -> ValueId {
        if self.func.ty(x).shape == to {
            return x;
        }
        self.op("broadcast", Attrs::new().with("to", to), &[x])
    }

    /// Sum over `axes`; the identity when there is none.
    pub fn sum(&mut self, x: ValueId, axes: &[Axis]) -> ValueId {
        if axes.is_empty() {
            return x;
        }
        self.op("reduce_sum", Attrs::new().with("axes", axes), &[x])
    }

    /// A one-operand map.
    pub fn unary(&mut self, name: &str, x: ValueId) -> ValueId {
        self.op(name, Attrs::new(), &[x])
    }

    /// A two-operand map of equal shapes.
    pub fn binary(&mut self, name: &str, a: ValueId, b: ValueId) -> ValueId {
        self.op(name, Attrs::new(), &[a, b])
    }

    /// `a + b`.
    pub fn add(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.binary("add", a, b)
    }

    /// `a - b`.
    pub fn sub(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.binary("sub", a, b)
    }

    /// `a · b`, element by element.
    pub fn mul(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.binary("mul", a, b)
    }

    /// `a / b`, element by element.
    pub fn div(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.binary("div", a, b)
    }

    /// `c · x`.
    pub fn scale(&mut self, x: ValueId, c: f64) -> ValueId {
        let k = self.constant_like(c, x);
        self.mul(x, k)
    }

    /// Contraction of `a` with `b`: axes in both and not in `out` are summed.
    pub fn dot(&mut self, a: ValueId, b: ValueId, out: &[Axis]) -> ValueId {
        self.op("dot_general", Attrs::new().with("out", out), &[a, b])
    }

    /// `x` rounded to `dtype`; the identity when it has that type.
    pub fn cast(&mut self, x: ValueId, dtype: DType) -> ValueId {
        if self.func.ty(x).dtype == dtype {
            return x;
        }
        self.op("cast", Attrs::new().with("dtype", dtype), &[x])
    }
}
