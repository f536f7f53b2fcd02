//! What an expression of a body stands for while it is lowered.

use kiln_compiler::ir::{Attr, Axis, Type, ValueId};
use proc_macro2::TokenStream;

/// A value of the function at `frame` (0 is the layer's body, deeper ones are bodies of loops and branches).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ref {
    /// Which function.
    pub frame: usize,
    /// Which value.
    pub id: ValueId,
}

/// A host number: known when the model is built.
#[derive(Clone, Debug, PartialEq)]
pub enum Number {
    /// A literal.
    Literal(f64),
    /// A `#[config]` argument.
    Config(String),
    /// A map applied to host numbers.
    Map(&'static str, Vec<Number>),
}

impl Number {
    /// A map of numbers, folded if all are literals.
    pub fn map(op: &'static str, args: Vec<Number>) -> Number {
        let literals: Option<Vec<f64>> = args
            .iter()
            .map(|n| match n {
                Number::Literal(x) => Some(*x),
                Number::Config(_) | Number::Map(..) => None,
            })
            .collect();
        match (op, literals.as_deref()) {
            ("neg", Some([a])) => Number::Literal(-a),
            ("add", Some([a, b])) => Number::Literal(a + b),
            ("sub", Some([a, b])) => Number::Literal(a - b),
            ("mul", Some([a, b])) => Number::Literal(a * b),
            ("div", Some([a, b])) => Number::Literal(a / b),
            _ => Number::Map(op, args),
        }
    }

    /// As an attribute, unless it is a computed number.
    pub fn attr(&self) -> Option<Attr> {
        match self {
            Number::Literal(x) => Some(Attr::Float(*x)),
            Number::Config(name) => Some(Attr::Config(name.clone())),
            Number::Map(..) => None,
        }
    }
}

/// Attention's mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marker {
    /// Query i sees keys up to i.
    Causal,
    /// Every query sees every key.
    Full,
}

/// The value of an expression.
#[derive(Clone, Debug)]
pub enum Val {
    /// A tensor, ids or a mask.
    Tensor(Ref),
    /// A call's result or a child's parameter whose type the next use decides: index into the lowering's list.
    Pending(usize),
    /// An unreduced loss.
    Loss {
        /// Σ of the terms.
        sum: Ref,
        /// Number of terms.
        count: Ref,
    },
    /// Rotary positions: the base, and the axes where an argument declares them.
    Rope {
        /// The base, a scalar.
        base: Ref,
        /// Sequence and head axis.
        axes: Option<(Axis, Axis)>,
    },
    /// `x.over(S)`: repeats over these axes wherever its partner has them.
    Over(Ref, Vec<Axis>),
    /// A host number.
    Number(Number),
    /// A host flag: a `#[config]` argument, and whether it is negated.
    Flag(String, bool),
    /// `Causal` or `Full`.
    Marker(Marker),
    /// A child layer, by its index.
    Sub(usize),
    /// A child that stands for all copies of a `Repeat`.
    Copies(usize),
    /// Several values.
    Tuple(Vec<Val>),
    /// Nothing: a statement.
    Unit,
    /// Wrong, and reported.
    Wrong,
}

impl Val {
    /// For messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Val::Tensor(_) | Val::Pending(_) => "a tensor",
            Val::Loss { .. } => "a loss",
            Val::Rope { .. } => "a `Rope`",
            Val::Over(..) => "a tensor marked by `.over(..)`",
            Val::Number(_) => "a number",
            Val::Flag(..) => "a flag",
            Val::Marker(_) => "a mask marker",
            Val::Sub(_) => "a child layer",
            Val::Copies(_) => "a `Repeat`",
            Val::Tuple(_) => "a tuple",
            Val::Unit => "nothing",
            Val::Wrong => "unknown",
        }
    }
}

/// What the surroundings of an expression say about its type.
#[derive(Clone, Debug, PartialEq)]
pub enum Expected {
    /// A tensor of this type.
    Tensor(Type),
    /// Several tensors.
    Tuple(Vec<Type>),
    /// An unreduced loss.
    Loss,
}

/// A value whose type is not known yet.
pub struct Pending {
    /// How it is made once the type is known.
    pub source: Source,
    /// The tokens that an error underlines.
    pub tokens: TokenStream,
    /// The value, once made.
    pub made: Option<Val>,
    /// An error was reported for it.
    pub reported: bool,
}

/// How a pending value is made.
#[derive(Clone)]
pub enum Source {
    /// A call of child `sub` in function `frame`.
    Call {
        /// Function.
        frame: usize,
        /// Child.
        sub: usize,
        /// What the body calls it.
        name: String,
        /// Operands.
        args: Vec<Ref>,
        /// Position.
        span: kiln_compiler::ir::Span,
    },
    /// A call of an operation of the user's own, in function `frame`.
    Op {
        /// Function.
        frame: usize,
        /// Index into the lowering's calls.
        call: usize,
        /// Operands.
        args: Vec<Ref>,
        /// Position.
        span: kiln_compiler::ir::Span,
    },
    /// A child's parameter.
    Tied {
        /// Child.
        sub: usize,
        /// Path from this layer, such as `trunk.emb`.
        path: String,
    },
}

/// A call of a function that may be an operation of the user's own: becomes one constant check.
pub struct OpCall {
    /// The callee.
    pub path: syn::Path,
    /// Its position.
    pub span: kiln_compiler::ir::Span,
    /// Tokens and type of each operand.
    pub operands: Vec<(TokenStream, Type)>,
    /// What its surroundings demand.
    pub demand: Demand,
}

/// What the surroundings of a call demand of an operation.
#[derive(Clone)]
pub enum Demand {
    /// Results of this type.
    Result(Expected),
    /// Nothing says of which type.
    Untyped,
    /// An argument, by its tokens, is of a kind that no operation takes.
    Unfit(TokenStream, &'static str),
    /// Something that rustc refuses if it is an operation.
    Nothing,
}

/// What a parent assumed about a child: becomes one constant check with the span of the tokens.
pub struct Assumption {
    /// Child.
    pub sub: usize,
    /// What the body calls it: the variable of a loop, or the argument.
    pub name: String,
    /// Where.
    pub tokens: TokenStream,
    /// What.
    pub what: Assumed,
}

/// The assumed type.
#[derive(Clone, Debug, PartialEq)]
pub enum Assumed {
    /// Input `i` is a tensor of this type.
    Input(usize, Type),
    /// Input `i` is a `Rope` over these axes (`?` where unknown).
    Rope(usize, Option<(Axis, Axis)>),
    /// The result.
    Output(Expected),
    /// A parameter by path below the child, such as `emb`.
    Param(String, Type),
}
