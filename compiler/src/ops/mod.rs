//! The operations: one folder each, one registry line each.
//!
//! An operation is data: a record of functions ([`OpDef`]). Passes ask the record; none of them matches on names, except where a
//! structural operation *is* the pass's subject (`call` and `repeat` in linking, collectives in placement).

mod attention;
mod binary;
mod broadcast;
mod call;
mod cast;
mod collective;
mod compare;
mod concat;
mod constant;
mod cross_entropy;
mod dot_general;
mod dropout;
mod gather;
mod gelu;
mod layer_norm;
mod linear_cross_entropy;
mod mean;
mod opaque;
mod permute;
mod reduce_max;
mod reduce_sum;
mod relu;
mod rename;
mod repeat;
mod rms_norm;
mod rope;
mod rotate_half;
mod rules;
mod scatter_add;
mod select;
mod select_host;
mod silu;
mod slice;
mod softmax;
mod sources;
mod split;
mod unary;

pub use dot_general::{einsum_axes, matmul_axes};
pub use opaque::{Reference, set_reference};

use crate::diagnostics::Diagnostic;
use crate::interp::Array;
use crate::ir::{Attr, Attrs, Axis, Builder, Node, Sizes, Type, ValueId};
use std::collections::HashMap;
use std::fmt;
use std::sync::LazyLock;

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
    /// A rule for nodes whose attribute `vjp` names the user's derivative; the others have none.
    Declared(VjpRule),
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

/// An argument of the user's that is no operand: an operation knows it as an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Argument {
    /// The name of this axis; the last one if it is named twice.
    Axis(Axis),
    /// The list of axes.
    Axes,
    /// The number.
    Number,
    /// The labels of an einsum.
    Spec,
}

/// Type error of an operation: which operand is at fault, and what to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeError {
    /// Index of the operand to underline (0 is the receiver); `None` for the operation itself.
    pub operand: Option<usize>,
    /// What to underline instead, where the user's method has such an argument.
    pub argument: Option<Argument>,
    /// Code such as `K0101`.
    pub code: &'static str,
    /// Message in which `` `{0}` ``, `` `{1}` ``, .. stand for the operands; [`TypeError::named`] puts in the user's names.
    pub message: String,
    /// Suggested edit.
    pub help: Option<String>,
}

impl TypeError {
    /// An error about the operation as a whole.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        TypeError { operand: None, argument: None, code, message: message.into(), help: None }
    }

    /// An error about operand `i`.
    pub fn at(i: usize, code: &'static str, message: impl Into<String>) -> Self {
        TypeError { operand: Some(i), argument: None, code, message: message.into(), help: None }
    }

    /// Says that an argument is at fault that is no operand.
    pub fn argument(mut self, argument: Argument) -> Self {
        self.argument = Some(argument);
        self
    }

    /// Adds a suggested edit.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The diagnostic, with "the first operand", .. for operands without a name.
    pub fn diagnostic(&self) -> Diagnostic {
        self.named(&[])
    }

    /// The diagnostic, with the user's name of each operand; an empty name or none at all falls back to its ordinal.
    pub fn named(&self, names: &[&str]) -> Diagnostic {
        let fill = |text: &str| {
            (0..names.len().max(ORDINALS.len())).fold(text.to_owned(), |text, i| {
                let word = match (names.get(i), ORDINALS.get(i)) {
                    (Some(name), _) if !name.is_empty() => format!("`{name}`"),
                    (_, Some(ordinal)) => format!("the {ordinal} operand"),
                    _ => format!("operand {}", i + 1),
                };
                text.replace(&format!("`{{{i}}}`"), &word)
            })
        };
        Diagnostic { code: self.code, message: fill(&self.message), help: self.help.as_deref().map(fill) }
    }
}

const ORDINALS: [&str; 6] = ["first", "second", "third", "fourth", "fifth", "sixth"];

impl fmt::Display for TypeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.diagnostic().fmt(f)
    }
}

/// Context of the interpreter and of cost functions: sizes and the random stream of this instance.
pub struct EvalCx<'a> {
    /// Sizes of all axes.
    pub sizes: &'a Sizes,
    /// Value of random number `index` at `site`, uniform in [0, 1).
    pub uniform: &'a dyn Fn(i64, u64) -> f32,
}

/// One node as the interpreter hands it to an operation.
pub struct EvalNode<'a> {
    /// The node.
    pub node: &'a Node,
    /// Values of its operands.
    pub args: &'a [&'a Array],
    /// Types of its operands.
    pub arg_types: &'a [&'a Type],
    /// Types of its results.
    pub result_types: &'a [&'a Type],
}

impl EvalNode<'_> {
    /// The node's attributes.
    pub fn attrs(&self) -> &Attrs {
        &self.node.attrs
    }

    /// Axes of operand `i`.
    pub fn axes(&self, i: usize) -> &[Axis] {
        &self.arg_types[i].shape
    }

    /// Axes of result `i`.
    pub fn out_axes(&self, i: usize) -> &[Axis] {
        &self.result_types[i].shape
    }
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
    pub eval: fn(&EvalCx<'_>, &EvalNode<'_>) -> Vec<Array>,
    /// Expansion into primitives, for composites.
    pub expand: Option<fn(&mut Builder, &Node) -> Vec<ValueId>>,
    /// Scalar function, for maps with one.
    pub scalar: Option<Scalar>,
    /// Floating-point operations for the sizes in force.
    pub flops: fn(&Sizes, &Node, &[&Type], &[&Type]) -> u64,
}

impl OpDef {
    /// Whether it adds to the gradients of a child's parameters: it is needed even if nobody reads its results.
    pub fn writes_gradients(&self) -> bool {
        matches!(self.name, "call_vjp" | "repeat_vjp")
    }
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
    static BY_NAME: LazyLock<HashMap<&str, Op>> = LazyLock::new(|| REGISTRY.iter().map(|op| (op.name, *op)).collect());
    BY_NAME.get(name).copied()
}

/// The user's word for an operation: that of their own is in its attributes.
pub fn word(op: Op, attrs: &Attrs) -> &str {
    match attrs.get("name") {
        Some(Attr::Str(name)) if op.name == "opaque" => name,
        _ => op.name,
    }
}

/// All operations.
pub fn all() -> &'static [Op] {
    REGISTRY
}

/// Axes of `ty` that are not in `axes`, in order.
pub fn without(ty: &Type, axes: &[Axis]) -> Vec<Axis> {
    ty.shape.iter().copied().filter(|a| !axes.contains(a)).collect()
}

static REGISTRY: &[Op] = &[
    &constant::DEF,
    &sources::IOTA,
    &sources::SIZE,
    &sources::HALF_SIGN,
    &sources::UNIFORM,
    &cast::CAST,
    &cast::F32,
    &cast::STOP_GRADIENT,
    &unary::NEG,
    &unary::EXP,
    &unary::LOG,
    &unary::SQRT,
    &unary::RSQRT,
    &unary::RECIP,
    &unary::SIN,
    &unary::COS,
    &unary::TANH,
    &unary::ERF,
    &unary::LOGISTIC,
    &unary::ABS,
    &unary::SIGN,
    &binary::ADD,
    &binary::SUB,
    &binary::MUL,
    &binary::DIV,
    &binary::MAX,
    &binary::MIN,
    &compare::LT,
    &compare::LE,
    &compare::GT,
    &compare::GE,
    &compare::EQ,
    &compare::NE,
    &select::DEF,
    &broadcast::DEF,
    &permute::DEF,
    &rename::DEF,
    &split::SPLIT,
    &split::MERGE,
    &slice::SLICE,
    &slice::PAD,
    &concat::DEF,
    &rotate_half::DEF,
    &reduce_sum::DEF,
    &reduce_max::DEF,
    &mean::DEF,
    &dot_general::DEF,
    &gather::DEF,
    &scatter_add::DEF,
    &scatter_add::SORT_INDEX,
    &scatter_add::SEGMENT_SUM,
    &silu::DEF,
    &gelu::GELU,
    &gelu::GELU_TANH,
    &relu::DEF,
    &softmax::SOFTMAX,
    &softmax::LOG_SOFTMAX,
    &rms_norm::DEF,
    &layer_norm::DEF,
    &rope::DEF,
    &dropout::DEF,
    &attention::DEF,
    &attention::VJP,
    &cross_entropy::DEF,
    &linear_cross_entropy::DEF,
    &linear_cross_entropy::VJP,
    &call::CALL,
    &call::CALL_VJP,
    &repeat::REPEAT,
    &repeat::REPEAT_VJP,
    &select_host::DEF,
    &opaque::DEF,
    &collective::ALL_REDUCE,
    &collective::PBROADCAST,
    &collective::ALL_GATHER,
    &collective::REDUCE_SCATTER,
    &collective::PSLICE,
];
