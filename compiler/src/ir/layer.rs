//! One annotated function as data: arguments, annotations, body.

use super::{Attr, Axis, DType, Func, Span, Type};
use std::fmt;

/// One `#[layer]` function.
///
/// The inputs of `body` are the arguments of kinds [`ArgKind::Input`], [`ArgKind::Rope`], [`ArgKind::Param`] and
/// [`ArgKind::Tied`], in argument order. Every float value of the primal body is `f32`; the precision pass puts in casts.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// Name of the function.
    pub name: String,
    /// Source file as rustc names it.
    pub file: String,
    /// Axis parameters of a generic layer.
    pub generics: Vec<Axis>,
    /// Arguments in source order (tied parameters, which a body reads as `child.param`, come last).
    pub args: Vec<Arg>,
    /// What the function returns.
    pub output: Output,
    /// Annotations of the function.
    pub annotations: Annotations,
    /// The computation.
    pub body: Func,
}

/// What a layer returns.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Tensors, with their axes in the types of the body's outputs.
    Tensors,
    /// An unreduced loss: the body's outputs are (sum, count), both `f32[]`.
    Loss,
}

/// One argument.
#[derive(Clone, Debug, PartialEq)]
pub struct Arg {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: ArgKind,
    /// Where the user wrote it.
    pub span: Span,
}

/// Kinds of arguments.
#[derive(Clone, Debug, PartialEq)]
pub enum ArgKind {
    /// An activation.
    Input(Type),
    /// Rotary positions over (sequence, head): enters the body as a scalar `f32[]`, the base; has no cotangent.
    Rope {
        /// The axis of positions.
        seq: Axis,
        /// The axis that is rotated.
        head: Axis,
    },
    /// A parameter.
    Param {
        /// Its type (`f32` masters).
        ty: Type,
        /// How it starts.
        init: Init,
        /// No gradient, no optimizer state.
        frozen: bool,
        /// `#[shard(..)]` on the argument.
        shard: Option<Shard>,
    },
    /// A child's parameter read as `child.param`.
    Tied {
        /// Path from this layer, such as `trunk.emb`.
        path: String,
        /// Its type as assumed here; may hold wildcard axes.
        ty: Type,
    },
    /// A child layer.
    Sub(SubLayer),
    /// A host scalar that is fixed when the model is built.
    Config {
        /// Its Rust type.
        ty: ConfigType,
        /// Its value when the session sets none.
        default: Option<ConfigValue>,
    },
}

/// A child.
#[derive(Clone, Debug, PartialEq)]
pub struct SubLayer {
    /// Name of the child's type as written, such as `Attention`.
    pub layer: String,
    /// Axes given to a generic child.
    pub generics: Vec<Axis>,
    /// `Repeat<Child, L>`: the axis that counts copies.
    pub repeat: Option<Axis>,
    /// `#[shard(..)]` on the argument.
    pub shard: Option<Shard>,
}

/// Types of `#[config]` arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigType {
    /// `bool`.
    Bool,
    /// `i64`, `usize`, ..
    Int,
    /// `f32`, `f64`.
    Float,
}

/// Value of a `#[config]` argument.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ConfigValue {
    /// A flag.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A real number.
    Float(f64),
}

impl From<bool> for ConfigValue {
    fn from(x: bool) -> Self {
        ConfigValue::Bool(x)
    }
}

impl From<i64> for ConfigValue {
    fn from(x: i64) -> Self {
        ConfigValue::Int(x)
    }
}

impl From<f64> for ConfigValue {
    fn from(x: f64) -> Self {
        ConfigValue::Float(x)
    }
}

/// Initial values of a parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All 0.
    Zeros,
    /// All 1.
    Ones,
    /// Normal with mean 0 and this standard deviation.
    Normal(f64),
    /// Uniform in [a, b).
    Uniform(f64, f64),
    /// Uniform in ±√(6 / (fan_in + fan_out)) (Glorot & Bengio 2010).
    Xavier,
    /// Normal with standard deviation √(2 / fan_in) (He et al. 2015).
    Kaiming,
}

/// Annotations of a layer, in their full grammar; what is not in force yet is refused at plan time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Annotations {
    /// `#[checkpoint(..)]`.
    pub checkpoint: Option<(Checkpoint, Span)>,
    /// `#[precision(..)]`.
    pub precision: Option<(Precision, Span)>,
    /// `#[shard(..)]`.
    pub shard: Option<(Shard, Span)>,
    /// `#[layer(trace)]`: the body is recorded at start-up.
    pub trace: bool,
}

/// What backward may keep.
#[derive(Clone, Debug, PartialEq)]
pub enum Checkpoint {
    /// Inputs only; the rest is recomputed.
    Inputs,
    /// Results of library operations.
    Selective,
    /// As selective, and recompute library results with the best bytes per flop.
    Lean,
    /// These let-bindings and the inputs.
    Save(Vec<String>),
    /// The fastest entry within this many bytes.
    Budget(u64),
    /// Inputs, in host memory.
    Offload,
    /// Keep everything that backward reads.
    Never,
}

/// How a layer computes.
#[derive(Clone, Debug, PartialEq)]
pub struct Precision {
    /// `f32`, `bf16`, `f16`, `fp8`, `int8`, `int4`.
    pub compute: String,
    /// `master = ..`, `grad = ..`, `reduce = ..`.
    pub options: Vec<(String, String)>,
}

impl fmt::Display for Checkpoint {
    /// As the attribute is written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Checkpoint::Inputs => f.write_str("checkpoint"),
            Checkpoint::Selective => f.write_str("checkpoint(selective)"),
            Checkpoint::Lean => f.write_str("checkpoint(lean)"),
            Checkpoint::Offload => f.write_str("checkpoint(offload)"),
            Checkpoint::Never => f.write_str("checkpoint(never)"),
            Checkpoint::Save(names) => write!(f, "checkpoint(save = [{}])", names.join(", ")),
            Checkpoint::Budget(bytes) => {
                const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
                let whole = UNITS.iter().find(|(_, unit)| bytes.is_multiple_of(*unit));
                let (unit, n) = whole.map_or(("B", *bytes), |(name, unit)| (name, bytes / unit));
                write!(f, "checkpoint(budget = \"{n}{unit}\")")
            }
        }
    }
}

impl fmt::Display for Precision {
    /// As the attribute is written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "precision({}", self.compute)?;
        self.options.iter().try_for_each(|(name, value)| write!(f, ", {name} = {value}"))?;
        f.write_str(")")
    }
}

impl fmt::Display for Shard {
    /// As the attribute is written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.axis {
            None => write!(f, "shard({})", self.mesh),
            Some(axis) => write!(f, "shard({} = {axis})", self.mesh),
        }
    }
}

impl Precision {
    /// The compute type, if it is one that is in force.
    pub fn dtype(&self) -> Option<DType> {
        match self.compute.as_str() {
            "f32" => Some(DType::F32),
            "bf16" => Some(DType::Bf16),
            "f16" => Some(DType::F16),
            _ => None,
        }
    }
}

/// How axes are laid on the mesh.
#[derive(Clone, Debug, PartialEq)]
pub struct Shard {
    /// Mesh axis: `tensor`, `data`, `pipeline`, `sequence`.
    pub mesh: String,
    /// The axis that it splits; `None` asks for the private contracted axis.
    pub axis: Option<Axis>,
}

impl Layer {
    /// Arguments that enter the body, with the body's value for each.
    pub fn body_args(&self) -> impl Iterator<Item = (usize, &Arg)> {
        self.args.iter().enumerate().filter(|(_, a)| {
            matches!(a.kind, ArgKind::Input(_) | ArgKind::Rope { .. } | ArgKind::Param { .. } | ArgKind::Tied { .. })
        })
    }

    /// Children in argument order; a `call` node's attribute `sub` is an index into this list.
    pub fn subs(&self) -> Vec<(&Arg, &SubLayer)> {
        self.args
            .iter()
            .filter_map(|a| match &a.kind {
                ArgKind::Sub(s) => Some((a, s)),
                _ => None,
            })
            .collect()
    }
}

/// Renames axes everywhere in a layer.
pub fn rename_axes(layer: &mut Layer, rename: &dyn Fn(Axis) -> Axis) {
    let ty = |t: &mut Type| t.shape.iter_mut().for_each(|a| *a = rename(*a));
    for arg in &mut layer.args {
        match &mut arg.kind {
            ArgKind::Input(t) | ArgKind::Param { ty: t, .. } | ArgKind::Tied { ty: t, .. } => ty(t),
            ArgKind::Rope { seq, head } => (*seq, *head) = (rename(*seq), rename(*head)),
            ArgKind::Sub(s) => {
                s.generics.iter_mut().for_each(|a| *a = rename(*a));
                s.repeat = s.repeat.map(rename);
            }
            ArgKind::Config { .. } => {}
        }
    }
    rename_func(&mut layer.body, rename);
}

fn rename_func(func: &mut Func, rename: &dyn Fn(Axis) -> Axis) {
    for v in &mut func.values {
        v.ty.shape.iter_mut().for_each(|a| *a = rename(*a));
    }
    for n in &mut func.nodes {
        for attr in n.attrs.values_mut() {
            match attr {
                Attr::Axis(a) => *a = rename(*a),
                Attr::Axes(list) => list.iter_mut().for_each(|a| *a = rename(*a)),
                _ => {}
            }
        }
        for body in &mut n.bodies {
            rename_func(body, rename);
        }
    }
}
