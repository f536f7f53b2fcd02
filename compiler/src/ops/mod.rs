//! The operations: one folder each, one registry line each.
//!
//! An operation is data: a record of functions ([`OpDef`]). Passes ask the record; none of them matches on names, except where a
//! structural operation *is* the pass's subject (`call` and `repeat` in linking, collectives in placement).

use crate::diagnostics::Diagnostic;
use crate::interp::Array;
use crate::ir::{Attrs, Axis, Builder, Node, Sizes, Type, ValueId};
use std::fmt;

/// A reference to an operation's record. Equality is identity of the name.
pub type Op = &'static OpDef;

/// What kind of work an operation is: decides who executes it and how its output is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Element by element, computed in f32; fuses.
    Map,
    /// Another reading of the same elements; fuses as an index map, or aliases the buffer.
    View,
    /// Reduction over named axes, computed and kept in f32; fuses with maps over the same rows.
    Reduce,
    /// Executed by a library kernel of the device; results are rounded to the layer's type.
    Library,
    /// Loss or statistic executed by a library kernel; results stay f32.
    Loss,
    /// Has its own derivative and an expansion into primitives; its output is rounded as one operation.
    Composite,
    /// Known to the compiler: calls, loops, choices.
    Structural,
    /// Communication on a named mesh axis; never fused.
    Collective,
}

/// Derivative of an operation.
#[derive(Clone, Copy)]
pub enum Vjp {
    /// A rule.
    Rule(VjpRule),
    /// Piecewise constant, or a function of no float operand: its cotangents are exactly zero.
    Zero,
    /// There is none: a gradient path through it is an error.
    Missing,
    /// The differentiation pass itself handles it (calls, loops, collectives).
    Structural,
}

/// Computes the contributions to the cotangents of the operands.
///
/// Returns one entry per operand: `None` where the operand is not a float or gets exactly zero. A contribution has the operand's
/// axes and any float element type; the caller sums contributions in f32 and rounds the sum to the operand's type.
pub type VjpRule = fn(&mut Builder, &VjpNode<'_>) -> Vec<Option<ValueId>>;

/// What a derivative rule sees.
pub struct VjpNode<'a> {
    /// The forward node; its operands and results may be read.
    pub node: &'a Node,
    /// Cotangent of each result; `None` where it is exactly zero. At least one is present.
    pub cotangents: &'a [Option<ValueId>],
}

impl VjpNode<'_> {
    /// The cotangent of the only result.
    ///
    /// # Panics
    /// If it is absent: differentiation skips nodes without any cotangent.
    pub fn dy(&self) -> ValueId {
        self.cotangents[0].expect("differentiation visits nodes with a cotangent only")
    }

    /// The i-th operand.
    pub fn x(&self, i: usize) -> ValueId {
        self.node.inputs[i]
    }

    /// The i-th result.
    pub fn y(&self, i: usize) -> ValueId {
        self.node.outputs[i]
    }
}

/// The scalar function of a map, as fused regions and emitted kernels see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scalar {
    /// −a
    Neg,
    /// eᵃ
    Exp,
    /// ln a
    Log,
    /// √a
    Sqrt,
    /// 1/√a
    Rsqrt,
    /// 1/a
    Recip,
    /// sin a
    Sin,
    /// cos a
    Cos,
    /// tanh a
    Tanh,
    /// erf a
    Erf,
    /// 1/(1+e⁻ᵃ)
    Logistic,
    /// |a|
    Abs,
    /// −1, 0 or 1
    Sign,
    /// a + b
    Add,
    /// a − b
    Sub,
    /// a · b
    Mul,
    /// a / b
    Div,
    /// max(a, b); NaN if either is
    Max,
    /// min(a, b); NaN if either is
    Min,
    /// a < b
    Lt,
    /// a ≤ b
    Le,
    /// a > b
    Gt,
    /// a ≥ b
    Ge,
    /// a = b
    Eq,
    /// a ≠ b
    Ne,
    /// m ? a : b
    Select,
}

/// Type error of an operation: which operand is at fault, and what to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeError {
    /// Index of the operand to underline; `None` for the operation itself.
    pub operand: Option<usize>,
    /// Code such as `K0101`.
    pub code: &'static str,
    /// Message in the user's words.
    pub message: String,
    /// Suggested edit.
    pub help: Option<String>,
}

impl TypeError {
    /// An error about the operation as a whole.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        TypeError { operand: None, code, message: message.into(), help: None }
    }

    /// An error about operand `i`.
    pub fn at(i: usize, code: &'static str, message: impl Into<String>) -> Self {
        TypeError { operand: Some(i), code, message: message.into(), help: None }
    }

    /// Adds a suggested edit.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Without the operand index.
    pub fn diagnostic(&self) -> Diagnostic {
        Diagnostic { code: self.code, message: self.message.clone(), help: self.help.clone() }
    }
}

/// Context of the interpreter and of cost functions: sizes and the random stream of this instance.
pub struct EvalCx<'a> {
    /// Sizes of all axes.
    pub sizes: &'a Sizes,
    /// Value of random number `index` at `site`, uniform in [0, 1).
    pub uniform: &'a dyn Fn(i64, u64) -> f32,
}

/// Everything that Kiln knows about one operation.
pub struct OpDef {
    /// Name in the text form, and of the method in bodies where there is one.
    pub name: &'static str,
    /// Kind of work.
    pub class: Class,
    /// Type rule: result types from attributes and operand types. Float operands may have any float element type.
    pub infer: fn(&Attrs, &[&Type]) -> Result<Vec<Type>, TypeError>,
    /// Derivative.
    pub vjp: Vjp,
    /// Value in f64, the truth that every device is compared with.
    pub eval: fn(&EvalCx<'_>, &Node, &[&Array], &[Type]) -> Vec<Array>,
    /// Expansion into primitives, for composites.
    pub expand: Option<fn(&mut Builder, &Node) -> Vec<ValueId>>,
    /// Scalar function, for maps with one.
    pub scalar: Option<Scalar>,
    /// Floating-point operations for the sizes in force.
    pub flops: fn(&Sizes, &Node, &[&Type], &[&Type]) -> u64,
}

impl PartialEq for OpDef {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl fmt::Debug for OpDef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Op({})", self.name)
    }
}

/// The operation called `name`.
pub fn find(name: &str) -> Option<Op> {
    REGISTRY.iter().copied().find(|op| op.name == name)
}

/// All operations.
pub fn all() -> &'static [Op] {
    REGISTRY
}

/// Axes of `ty` that are not in `axes`, in order.
pub fn without(ty: &Type, axes: &[Axis]) -> Vec<Axis> {
    ty.shape.iter().copied().filter(|a| !axes.contains(a)).collect()
}

static REGISTRY: &[Op] = &[];
