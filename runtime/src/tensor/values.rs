//! The types that a body handles: `Tensor`, `Ids`, `Rope`, `Loss`; how they are made from host numbers and read back.

use super::apply::{Rule, apply_rule};
use super::session::{self, Handle, HostValue};
use super::{IntoAxes, eager};
use kiln_compiler::interp::Array;
use kiln_compiler::ir::{Axis, DType, Type};
use std::fmt;
use std::rc::Rc;

/// A float tensor, or the mask that a comparison gives.
///
/// ```
/// use kiln::prelude::*;
/// let x = Tensor::new(&[2, 2], vec![1.0, 2.0, 3.0, 4.0]);
/// assert_eq!((x * x + 1.0).to_vec(), [2.0, 5.0, 10.0, 17.0]);
/// ```
#[derive(Clone, Copy)]
pub struct Tensor(pub(crate) Handle);

/// Token ids or class labels; a negative target is ignored by losses.
#[derive(Clone, Copy)]
pub struct Ids(pub(crate) Handle);

/// Rotary positions (Su et al. 2021): the base of the angles. The axes come from the tensor that is turned.
#[derive(Clone, Copy, Debug)]
pub struct Rope {
    pub(crate) base: Tensor,
}

/// An unreduced loss: Σ of the terms and their number, so that micro-batches and ranks add up exactly.
#[derive(Clone, Copy, Debug)]
pub struct Loss {
    pub(crate) sum: Tensor,
    pub(crate) count: Tensor,
}

/// A tensor that repeats over more axes wherever its partner in an element-wise operation has them; made by [`Tensor::over`].
#[derive(Clone, Debug)]
pub struct Over {
    pub(crate) tensor: Tensor,
    pub(crate) axes: Vec<Axis>,
}

/// Axes that nobody has named: position k is called `_k`.
fn unnamed(rank: usize) -> Vec<Axis> {
    (0..rank).map(|i| Axis::new(&format!("_{i}"))).collect()
}

#[track_caller]
fn keep(dtype: DType, dims: &[usize], data: Vec<f64>) -> Handle {
    let elements: usize = dims.iter().product();
    assert_eq!(
        elements,
        data.len(),
        "K0122: a tensor of sizes {dims:?} has {elements} elements, {} are given",
        data.len()
    );
    session::keep(HostValue { ty: Type::new(dtype, unnamed(dims.len())), array: Rc::new(Array::new(dims, data)) })
}

impl Tensor {
    /// A host tensor with these sizes, slowest axis first.
    ///
    /// # Panics
    /// If the number of elements is not the product of the sizes.
    #[track_caller]
    pub fn new(dims: &[usize], data: impl Into<Vec<f32>>) -> Tensor {
        Tensor(keep(DType::F32, dims, data.into().into_iter().map(f64::from).collect()))
    }

    /// A host tensor whose elements are all `x`.
    #[track_caller]
    pub fn full(dims: &[usize], x: f32) -> Tensor {
        Tensor::new(dims, vec![x; dims.iter().product()])
    }

    /// A host tensor of zeros.
    #[track_caller]
    pub fn zeros(dims: &[usize]) -> Tensor {
        Tensor::full(dims, 0.0)
    }

    /// A host tensor of ones.
    #[track_caller]
    pub fn ones(dims: &[usize]) -> Tensor {
        Tensor::full(dims, 1.0)
    }

    /// The same elements with names for the axes, as a layer gives them to its arguments.
    ///
    /// # Panics
    /// If the number of names is not the number of axes.
    #[track_caller]
    pub fn named(self, axes: impl IntoAxes) -> Tensor {
        Tensor(eager::rename_all(self.0, &axes.into_axes()))
    }

    /// Elements, row-major; a mask gives 0 and 1.
    ///
    /// # Panics
    /// While a layer is recorded.
    #[track_caller]
    pub fn to_vec(self) -> Vec<f32> {
        session::host(self.0, "to_vec").array.data.iter().map(|&x| x as f32).collect()
    }

    /// Sizes, slowest axis first.
    ///
    /// # Panics
    /// While a layer is recorded: sizes are bound when the model is linked.
    #[track_caller]
    pub fn dims(self) -> Vec<usize> {
        session::host(self.0, "dims").array.dims.clone()
    }

    /// The only element.
    ///
    /// # Panics
    /// If there are more or none, or while a layer is recorded.
    #[track_caller]
    pub fn item(self) -> f32 {
        let value = session::host(self.0, "item");
        match value.array.data[..] {
            [x] => x as f32,
            _ => panic!("K0122: `item` reads the only element, but the tensor has sizes {:?}", value.array.dims),
        }
    }
}

impl Ids {
    /// Host ids with these sizes, slowest axis first.
    ///
    /// # Panics
    /// If the number of elements is not the product of the sizes.
    #[track_caller]
    pub fn new(dims: &[usize], data: impl Into<Vec<i32>>) -> Ids {
        Ids(keep(DType::I32, dims, data.into().into_iter().map(f64::from).collect()))
    }

    /// The same ids with names for the axes.
    ///
    /// # Panics
    /// If the number of names is not the number of axes.
    #[track_caller]
    pub fn named(self, axes: impl IntoAxes) -> Ids {
        Ids(eager::rename_all(self.0, &axes.into_axes()))
    }

    /// Elements, row-major.
    ///
    /// # Panics
    /// While a layer is recorded.
    #[track_caller]
    pub fn to_vec(self) -> Vec<i32> {
        session::host(self.0, "to_vec").array.data.iter().map(|&x| x as i32).collect()
    }

    /// Sizes, slowest axis first.
    ///
    /// # Panics
    /// While a layer is recorded.
    #[track_caller]
    pub fn dims(self) -> Vec<usize> {
        session::host(self.0, "dims").array.dims.clone()
    }
}

impl Rope {
    /// Rotary positions with this base, 10 000 in the paper.
    #[track_caller]
    pub fn new(base: impl Into<f64>) -> Rope {
        Rope { base: Tensor(apply_rule(Rule::Scalar(base.into()), &[])) }
    }
}

impl Loss {
    /// Σ of the terms.
    pub fn sum(self) -> Tensor {
        self.sum
    }

    /// Number of terms.
    pub fn count(self) -> Tensor {
        self.count
    }

    /// Σ of the terms / number of terms.
    ///
    /// # Panics
    /// While a layer is recorded: the ratio is taken at the root, after the last micro-batch.
    #[track_caller]
    pub fn ratio(self) -> f32 {
        self.sum.item() / self.count.item()
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_handle("Tensor", self.0, f)
    }
}

impl fmt::Debug for Ids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_handle("Ids", self.0, f)
    }
}

fn write_handle(kind: &str, handle: Handle, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let found = session::with(|s| match handle.session {
        0 => s.values.get(handle.index as usize).cloned(),
        _ => None,
    });
    match found {
        Some(v) => write!(f, "{kind}({}, {:?}, {:?})", v.ty, v.array.dims, v.array.data),
        None => write!(f, "{kind}(recorded)"),
    }
}
