//! The methods of `Tensor`, one line each: names and arguments are those of the compiler's method table.

use super::apply::{In, apply};
use super::session;
use super::{Ids, IntoAxes, IntoAxis, Loss, Over, Rope, Tensor};
use kiln_compiler::methods::Mask;

/// `attend(.., Causal)`: a query sees the keys up to its own position.
#[derive(Clone, Copy, Debug)]
pub struct Causal;

/// `attend(.., Full)`: a query sees all keys.
#[derive(Clone, Copy, Debug)]
pub struct Full;

/// [`Causal`] or [`Full`].
pub trait IntoMask {
    /// Which keys a query sees.
    const MASK: Mask;
}

impl IntoMask for Causal {
    const MASK: Mask = Mask::Causal;
}

impl IntoMask for Full {
    const MASK: Mask = Mask::Full;
}

/// An operand of an element-wise method: a tensor, a tensor marked by [`Tensor::over`], or a number.
#[derive(Clone, Debug)]
pub struct Operand(pub(crate) In);

impl From<Tensor> for Operand {
    fn from(x: Tensor) -> Self {
        Operand(In::Value(x.0))
    }
}

impl From<Ids> for Operand {
    fn from(x: Ids) -> Self {
        Operand(In::Value(x.0))
    }
}

impl From<Over> for Operand {
    fn from(x: Over) -> Self {
        Operand(In::Over(x.tensor.0, x.axes))
    }
}

impl From<f64> for Operand {
    fn from(x: f64) -> Self {
        Operand(In::Number(x))
    }
}

impl From<f32> for Operand {
    fn from(x: f32) -> Self {
        Operand(In::Number(x.into()))
    }
}

/// Sets the seed of this thread's eager random operations; it is 0 at first.
pub fn seed(seed: u64) {
    session::with(|s| s.seed = seed);
}

/// `x`, through which no cotangent flows.
#[track_caller]
pub fn stop_gradient(x: Tensor) -> Tensor {
    x.stop_gradient()
}

/// Applies a method that gives one tensor.
#[track_caller]
pub(super) fn tensor(name: &str, args: &[In]) -> Tensor {
    Tensor(apply(name, args)[0])
}

fn v(x: Tensor) -> In {
    In::Value(x.0)
}

fn axis(a: impl IntoAxis) -> In {
    In::Axis(a.into_axis())
}

fn axes(a: impl IntoAxes) -> In {
    In::Axes(a.into_axes())
}

macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        impl Tensor {
            $($(#[$doc])* #[track_caller] pub fn $name(self) -> Tensor { tensor(stringify!($name), &[v(self)]) })+
        }
    };
}

unary! {
    /// eˣ.
    exp,
    /// ln x.
    ln,
    /// √x.
    sqrt,
    /// 1/√x.
    rsqrt,
    /// 1/x.
    recip,
    /// sin x.
    sin,
    /// cos x.
    cos,
    /// tanh x.
    tanh,
    /// erf x.
    erf,
    /// 1/(1+e⁻ˣ).
    sigmoid,
    /// |x|.
    abs,
    /// −1, 0 or 1.
    sign,
    /// x·sigmoid(x) (Elfwing et al. 2017).
    silu,
    /// x·Φ(x), exact (Hendrycks & Gimpel 2016).
    gelu,
    /// The tanh form of [`Tensor::gelu`].
    gelu_tanh,
    /// max(x, 0).
    relu,
    /// The value without rounding to the layer's compute type.
    f32,
    /// The value, through which no cotangent flows.
    stop_gradient,
}

macro_rules! element_wise {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        impl Tensor {
            $($(#[$doc])* #[track_caller] pub fn $name(self, other: impl Into<Operand>) -> Tensor {
                tensor(stringify!($name), &[v(self), other.into().0])
            })+
        }
    };
}

element_wise! {
    /// The larger of both, element by element.
    maximum,
    /// The smaller of both, element by element.
    minimum,
    /// The mask x < other.
    lt,
    /// The mask x ≤ other.
    le,
    /// The mask x > other.
    gt,
    /// The mask x ≥ other.
    ge,
    /// The mask x = other.
    eq,
    /// The mask x ≠ other.
    ne,
}

impl Tensor {
    /// Contracts the last axis of `self` with the first of `w`.
    #[track_caller]
    pub fn matmul(self, w: Tensor) -> Tensor {
        tensor("matmul", &[v(self), v(w)])
    }

    /// Contraction by labels that are bound by position, such as `"b s d, d g k -> b g s k"`.
    #[track_caller]
    pub fn einsum(self, w: Tensor, spec: &str) -> Tensor {
        tensor("einsum", &[v(self), v(w), In::Spec(spec.to_owned())])
    }

    /// Where this mask is true, `a`, elsewhere `b`.
    #[track_caller]
    pub fn select(self, a: impl Into<Operand>, b: impl Into<Operand>) -> Tensor {
        tensor("select", &[v(self), a.into().0, b.into().0])
    }

    /// x/√(mean x² + eps)·w over the last axis (Zhang & Sennrich 2019).
    #[track_caller]
    pub fn rms_norm(self, w: Tensor, eps: impl Into<f64>) -> Tensor {
        tensor("rms_norm", &[v(self), v(w), In::Number(eps.into())])
    }

    /// (x − mean)/√(variance + eps)·w + b over the last axis (Ba et al. 2016).
    #[track_caller]
    pub fn layer_norm(self, w: Tensor, b: Tensor, eps: impl Into<f64>) -> Tensor {
        tensor("layer_norm", &[v(self), v(w), v(b), In::Number(eps.into())])
    }

    /// eˣ/Σeˣ along an axis.
    #[track_caller]
    pub fn softmax(self, along: impl IntoAxis) -> Tensor {
        tensor("softmax", &[v(self), axis(along)])
    }

    /// x − ln Σeˣ along an axis.
    #[track_caller]
    pub fn log_softmax(self, along: impl IntoAxis) -> Tensor {
        tensor("log_softmax", &[v(self), axis(along)])
    }

    /// Sum over axes.
    #[track_caller]
    pub fn sum(self, over: impl IntoAxes) -> Tensor {
        tensor("sum", &[v(self), axes(over)])
    }

    /// Mean over axes.
    #[track_caller]
    pub fn mean(self, over: impl IntoAxes) -> Tensor {
        tensor("mean", &[v(self), axes(over)])
    }

    /// Maximum over axes.
    #[track_caller]
    pub fn max(self, over: impl IntoAxes) -> Tensor {
        tensor("max", &[v(self), axes(over)])
    }

    /// The axis `from` under the name `to`.
    #[track_caller]
    pub fn rename(self, from: impl IntoAxis, to: impl IntoAxis) -> Tensor {
        tensor("rename", &[v(self), axis(from), axis(to)])
    }

    /// One axis as several, slowest first.
    #[track_caller]
    pub fn split(self, from: impl IntoAxis, into: impl IntoAxes) -> Tensor {
        tensor("split", &[v(self), axis(from), axes(into)])
    }

    /// Adjacent axes, in their order, as one.
    #[track_caller]
    pub fn merge(self, from: impl IntoAxes, into: impl IntoAxis) -> Tensor {
        tensor("merge", &[v(self), axes(from), axis(into)])
    }

    /// The axes in another order.
    #[track_caller]
    pub fn permute(self, to: impl IntoAxes) -> Tensor {
        tensor("permute", &[v(self), axes(to)])
    }

    /// Marks the tensor as one that repeats over these axes wherever its partner in an element-wise operation has them.
    pub fn over(self, over: impl IntoAxes) -> Over {
        Over { tensor: self, axes: over.into_axes() }
    }

    /// The elements of `from` that start at `start`; their number is the size of `to`.
    #[track_caller]
    pub fn slice(self, from: impl IntoAxis, start: usize, to: impl IntoAxis) -> Tensor {
        tensor("slice", &[v(self), axis(from), In::Count(start as i64), axis(to)])
    }

    /// Zeros around the elements of `from`, of which `before` come first, up to the size of `to`.
    #[track_caller]
    pub fn pad(self, from: impl IntoAxis, before: usize, to: impl IntoAxis) -> Tensor {
        tensor("pad", &[v(self), axis(from), In::Count(before as i64), axis(to)])
    }

    /// `b` after `self`: axis `from` of this tensor and `other` of `b`, in the same place, become `to`.
    #[track_caller]
    pub fn concat(self, b: Tensor, from: impl IntoAxis, other: impl IntoAxis, to: impl IntoAxis) -> Tensor {
        tensor("concat", &[v(self), v(b), axis(from), axis(other), axis(to)])
    }

    /// Turns pairs (k, k + K/2) of the last axis by the position along the axis before it (Su et al. 2021).
    #[track_caller]
    pub fn rope(self, rope: Rope) -> Tensor {
        tensor("rope", &[v(self), v(rope.base)])
    }

    /// softmax(q·kᵀ/√K)·v for queries `[.., R?, S, K]`, keys and values `[.., T, K]`.
    #[track_caller]
    pub fn attend<M: IntoMask>(self, keys: Tensor, values: Tensor, _mask: M) -> Tensor {
        tensor("attend", &[v(self), v(keys), v(values), In::Mask(M::MASK)])
    }

    /// The rows of this table `[V, ..]` that the ids name.
    #[track_caller]
    pub fn gather(self, ids: Ids) -> Tensor {
        tensor("gather", &[v(self), In::Value(ids.0)])
    }

    /// The loss −Σ ln softmax(x·wᵀ)\[target\], without holding the logits; negative targets are ignored.
    #[track_caller]
    pub fn linear_cross_entropy(self, w: Tensor, targets: Ids) -> Loss {
        loss("linear_cross_entropy", &[v(self), v(w), In::Value(targets.0)])
    }

    /// The loss −Σ ln softmax(x)\[target\] along the last axis; negative targets are ignored.
    #[track_caller]
    pub fn cross_entropy(self, targets: Ids) -> Loss {
        loss("cross_entropy", &[v(self), In::Value(targets.0)])
    }

    /// Zero with probability `rate`, x/(1 − rate) elsewhere (Srivastava et al. 2014).
    #[track_caller]
    pub fn dropout(self, rate: impl Into<f64>) -> Tensor {
        tensor("dropout", &[v(self), In::Number(rate.into())])
    }
}

#[track_caller]
fn loss(name: &str, args: &[In]) -> Loss {
    let outputs = apply(name, args);
    Loss { sum: Tensor(outputs[0]), count: Tensor(outputs[1]) }
}
