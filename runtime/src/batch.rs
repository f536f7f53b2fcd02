//! What a batch gives to a root layer: numbers in, checked against the inputs of a plan; it copies and computes nothing.

use crate::data::Batch;
use crate::exec::HostInput;
use crate::link::Model;
use crate::plan::Plan;
use crate::trainer::TrainError;
use kiln_compiler::ir::DType;

/// What a batch gives to the root, in the order of its inputs.
///
/// The numbers of one input are a batch ([`HostValues`]: vectors, arrays and slices of `f32` or `i32`), and so are tuples of up to
/// four of them. A type of your own says what its parts are:
///
/// ```
/// use kiln::batch::HostBatch;
/// use kiln::exec::HostInput;
///
/// struct Sentence {
///     ids: Vec<i32>,
///     weights: Vec<f32>,
/// }
///
/// impl HostBatch for Sentence {
///     fn inputs(&self) -> Vec<HostInput<'_>> {
///         vec![HostInput::I32(&self.ids), HostInput::F32(&self.weights)]
///     }
/// }
/// ```
pub trait HostBatch {
    /// The inputs.
    fn inputs(&self) -> Vec<HostInput<'_>>;
}

/// The numbers of one input, row-major over its axes.
pub trait HostValues {
    /// The numbers.
    fn values(&self) -> HostInput<'_>;
}

impl HostValues for [f32] {
    fn values(&self) -> HostInput<'_> {
        HostInput::F32(self)
    }
}

impl HostValues for [i32] {
    fn values(&self) -> HostInput<'_> {
        HostInput::I32(self)
    }
}

impl<T> HostValues for Vec<T>
where
    [T]: HostValues,
{
    fn values(&self) -> HostInput<'_> {
        self.as_slice().values()
    }
}

impl<T, const N: usize> HostValues for [T; N]
where
    [T]: HostValues,
{
    fn values(&self) -> HostInput<'_> {
        self.as_slice().values()
    }
}

impl<T: HostValues + ?Sized> HostValues for &T {
    fn values(&self) -> HostInput<'_> {
        (**self).values()
    }
}

impl<T: HostValues + ?Sized> HostBatch for T {
    fn inputs(&self) -> Vec<HostInput<'_>> {
        vec![self.values()]
    }
}

macro_rules! tuple_batch {
    ($($name:ident $index:tt),+) => {
        impl<$($name: HostValues),+> HostBatch for ($($name,)+) {
            fn inputs(&self) -> Vec<HostInput<'_>> {
                vec![$(self.$index.values()),+]
            }
        }
    };
}
tuple_batch!(A 0);
tuple_batch!(A 0, B 1);
tuple_batch!(A 0, B 1, C 2);
tuple_batch!(A 0, B 1, C 2, D 3);

impl HostBatch for Vec<HostInput<'_>> {
    fn inputs(&self) -> Vec<HostInput<'_>> {
        self.clone()
    }
}

impl HostBatch for Batch {
    fn inputs(&self) -> Vec<HostInput<'_>> {
        vec![HostInput::I32(&self.ids), HostInput::I32(&self.next)]
    }
}

/// Compares a batch with what a plan takes, `parts` times over.
///
/// # Errors
/// [`TrainError::Inputs`], [`TrainError::Kind`], [`TrainError::Batch`] and [`TrainError::Id`] name the first difference.
pub(crate) fn check(model: &Model, plan: &Plan, parts: usize, inputs: &[HostInput<'_>]) -> Result<(), TrainError> {
    let layer = || model.types[model.root.ty].layer.name.clone();
    if inputs.len() != plan.inputs.len() {
        return Err(TrainError::Inputs { layer: layer(), wanted: plan.inputs.len(), found: inputs.len() });
    }
    for ((&b, limit), given) in plan.inputs.iter().zip(&plan.id_limits).zip(inputs) {
        let buffer = &plan.buffers[b];
        let input = || buffer.name.clone();
        let is_ids = buffer.dtype == DType::I32;
        let (kinds, gives_ids) = (["floats", "ids"], matches!(given, HostInput::I32(_)));
        if is_ids != gives_ids {
            let (wanted, found) = (kinds[usize::from(is_ids)], kinds[usize::from(gives_ids)]);
            return Err(TrainError::Kind { layer: layer(), input: input(), wanted, found });
        }
        let wanted = buffer.elements * parts;
        if given.len() != wanted {
            return Err(TrainError::Batch { layer: layer(), input: input(), wanted, found: given.len() });
        }
        if let (Some(limit), HostInput::I32(ids)) = (limit, given) {
            limit.check(&buffer.name, ids)?;
        }
    }
    Ok(())
}
