//! Element types and tensor types.

use super::Axis;
use std::fmt;

/// Element type of a value.
///
/// `Compute` and `Sub` are resolved when a model is linked: they stand for the layer's own compute type and for the compute
/// type of its i-th sub-layer, so one IR and one emitted kernel serve every precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// bfloat16: 8 exponent bits, 7 fraction bits.
    Bf16,
    /// IEEE half precision.
    F16,
    /// 32-bit signed integer: token ids and indices; a negative target is ignored by losses.
    I32,
    /// Result of a comparison.
    Bool,
    /// The layer's own compute type.
    Compute,
    /// The compute type of sub-layer `i` of this layer.
    Sub(u8),
}

impl DType {
    /// Whether cotangents exist for it.
    pub fn is_float(self) -> bool {
        !matches!(self, DType::I32 | DType::Bool)
    }

    /// Bytes per element in memory.
    ///
    /// # Panics
    /// On a type that linking has not resolved.
    pub fn bytes(self) -> usize {
        match self {
            DType::F32 | DType::I32 => 4,
            DType::Bf16 | DType::F16 => 2,
            DType::Bool => 1,
            DType::Compute | DType::Sub(_) => panic!("{self} has no size before linking"),
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DType::F32 => f.write_str("f32"),
            DType::Bf16 => f.write_str("bf16"),
            DType::F16 => f.write_str("f16"),
            DType::I32 => f.write_str("i32"),
            DType::Bool => f.write_str("bool"),
            DType::Compute => f.write_str("compute"),
            DType::Sub(i) => write!(f, "sub{i}"),
        }
    }
}

impl std::str::FromStr for DType {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        Ok(match s {
            "f32" => DType::F32,
            "bf16" => DType::Bf16,
            "f16" => DType::F16,
            "i32" => DType::I32,
            "bool" => DType::Bool,
            "compute" => DType::Compute,
            _ => match s.strip_prefix("sub").and_then(|i| i.parse().ok()) {
                Some(i) => DType::Sub(i),
                None => return Err(format!("`{s}` is not an element type")),
            },
        })
    }
}

/// Type of a tensor value: element type and named, ordered axes. Storage is contiguous and row-major in this order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Type {
    /// Element type.
    pub dtype: DType,
    /// Axes from the slowest to the fastest; no axis appears twice.
    pub shape: Vec<Axis>,
}

impl Type {
    /// A type from its parts.
    pub fn new(dtype: DType, shape: impl Into<Vec<Axis>>) -> Self {
        Type { dtype, shape: shape.into() }
    }

    /// `f32` over `shape`.
    pub fn f32(shape: impl Into<Vec<Axis>>) -> Self {
        Type::new(DType::F32, shape)
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Position of `axis`, if it is one of the axes.
    pub fn position(&self, axis: Axis) -> Option<usize> {
        self.shape.iter().position(|&a| a == axis)
    }

    /// The same axes with another element type.
    pub fn with(&self, dtype: DType) -> Type {
        Type { dtype, shape: self.shape.clone() }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.dtype, AxisList(&self.shape))
    }
}

/// Prints axes as `[B, S, D]`.
pub(crate) struct AxisList<'a>(pub &'a [Axis]);

impl fmt::Display for AxisList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, a) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{a}")?;
        }
        f.write_str("]")
    }
}
