//! Which ids a batch may hold: a plan's steps that index by an input, or compare it with positions, bound it by the size of an axis.
//!
//! A negative id is legal everywhere: it gathers zeros, and as a target it is not counted. One beyond the last entry has no meaning.

use super::{Buffer, BufferId, Step, Work};
use kiln_compiler::fuse::{Index, Instr, Region};
use kiln_compiler::ir::{Axis, DType};
use kiln_compiler::ops::Scalar;
use std::sync::Arc;

/// Ids of one input must be below `size`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdLimit {
    /// The axis that they index.
    pub axis: Axis,
    /// Its size.
    pub size: usize,
    /// Layer instance that reads them.
    pub path: Arc<str>,
    /// `file:line` of its operation.
    pub at: String,
}

/// An id that no table of the model has an entry for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "K0810: element {position} of input `{input}` is the id {id}, but {} of layer `{}` takes ids below `{}` = {}; negative ids stand for nothing",
    limit.at, limit.path, limit.axis, limit.size
)]
pub struct IdError {
    /// Name of the root's input.
    pub input: String,
    /// Row-major position in the batch.
    pub position: usize,
    /// The id.
    pub id: i32,
    /// What it breaks.
    pub limit: IdLimit,
}

impl IdLimit {
    /// Checks the ids of the input called `input`.
    ///
    /// # Errors
    /// [`IdError`] names the first id that is too large.
    pub fn check(&self, input: &str, ids: &[i32]) -> Result<(), IdError> {
        let too_large = |&id: &i32| id >= 0 && id as usize >= self.size;
        match ids.iter().position(too_large) {
            None => Ok(()),
            Some(position) => {
                Err(IdError { input: input.to_owned(), position, id: ids[position], limit: self.clone() })
            }
        }
    }
}

/// For each of the root's `inputs` the smallest bound of its ids, where there is one.
pub fn id_limits(steps: &[Step], buffers: &[Buffer], inputs: &[BufferId]) -> Vec<Option<IdLimit>> {
    let mut limits: Vec<Option<IdLimit>> = vec![None; inputs.len()];
    for step in steps {
        for (operand, &buffer) in step.inputs.iter().enumerate() {
            let Some(input) = inputs.iter().position(|&b| b == buffer) else { continue };
            if buffers[buffer].dtype != DType::I32 {
                continue;
            }
            for axis in bounding_axes(step, operand) {
                let size = whole(step, axis);
                if limits[input].as_ref().is_none_or(|l| size < l.size) {
                    let at = format!("{}:{}", step.file, step.line);
                    limits[input] = Some(IdLimit { axis, size, path: step.path.clone(), at });
                }
            }
        }
    }
    limits
}

/// Size of an axis over all ranks.
fn whole(step: &Step, axis: Axis) -> usize {
    step.split.filter(|s| s.axis == axis).map_or_else(|| step.sizes.of(axis), |s| s.whole)
}

/// Axes that ids in operand number `operand` of a step index.
fn bounding_axes(step: &Step, operand: usize) -> Vec<Axis> {
    match &step.work {
        Work::Region { region, .. } => region_axes(region, operand),
        Work::Library { op, attrs, .. } if op.name == "sort_index" && operand == 0 => vec![attrs.axis("axis")],
        Work::Library { op, inputs, .. } if op.name == "linear_cross_entropy" && operand == 2 => {
            inputs[1].shape.iter().copied().filter(|a| !inputs[0].shape.contains(a)).collect()
        }
        Work::Library { .. } | Work::Accumulate(_) | Work::AllReduce { .. } => Vec::new(),
    }
}

fn region_axes(region: &Region, operand: usize) -> Vec<Axis> {
    let loaded = |reg: &usize| region.code[*reg] == Instr::Load(operand);
    let indices = region.inputs.iter().flat_map(|l| &l.axes).filter_map(|i| match i {
        Index::Value(reg) => Some(reg),
        Index::Domain(_) | Index::Rotated(_) => None,
    });
    let indexed = indices.zip(&region.extra_axes).filter(|(reg, _)| loaded(reg)).map(|(_, &axis)| axis);
    let compared = region.code.iter().filter_map(|instr| match instr {
        Instr::Binary(Scalar::Eq, a, b) if loaded(a) => Some(*b),
        Instr::Binary(Scalar::Eq, a, b) if loaded(b) => Some(*a),
        _ => None,
    });
    let positions = compared.filter_map(|reg| match region.code[reg] {
        Instr::Iota(axis) => Some(region.domain[axis]),
        _ => None,
    });
    indexed.chain(positions).collect()
}

#[cfg(test)]
mod tests {
    use crate::prelude::*;
    use crate::trainer::{TrainError, Trainer};

    axes! { N: "rows", W: "words", D: "width", E: "entries", C: "classes" }

    /// Ids index a table, targets a tied head.
    #[layer]
    fn lookup(
        ids: Ids<N, W>,
        next: Ids<N, W>,
        #[param(init = normal(0.5))] table: Tensor<E, D>,
        #[param(init = normal(0.5))] head: Tensor<C, D>,
    ) -> Loss {
        table.gather(ids).linear_cross_entropy(head, next)
    }

    /// Targets are compared with positions.
    #[layer]
    fn classify(x: Tensor<N, D>, class: Ids<N>, #[param(init = normal(0.5))] w: Tensor<D, C>) -> Loss {
        x.matmul(w).cross_entropy(class)
    }

    fn message(result: Result<crate::trainer::StepReport, TrainError>) -> String {
        result.expect_err("an id without an entry").to_string()
    }

    #[test]
    fn ids_without_an_entry_are_refused() {
        let mut trainer = Trainer::<Lookup>::new(sizes! { N = 2, W = 3, D = 4, E = 7, C = 5 }).build().unwrap();
        let good = [0, 6, 3, -1, 2, 5];
        trainer.step(&(&[0, 6, 3, -1, 2, 5], &[0, 4, -1, 3, 2, 1])).unwrap();
        let weights = trainer.param("table").unwrap();
        let said = message(trainer.step(&(&[0, 1, 2, 7, 0, 0], &[0; 6])));
        assert!(said.starts_with("K0810: element 3 of input `ids` is the id 7") && said.contains("`E` = 7"), "{said}");
        let said = message(trainer.step(&(&good, &[0, 0, 0, 0, 5, 0])));
        assert!(said.starts_with("K0810: element 4 of input `next` is the id 5") && said.contains("`C` = 5"), "{said}");
        assert_eq!(trainer.param("table").unwrap(), weights, "nothing was trained");
        let mut trainer = Trainer::<Classify>::new(sizes! { N = 2, D = 3, C = 5 }).build().unwrap();
        let said = message(trainer.step(&(&[0.5; 6], &[4, 5])));
        assert!(said.starts_with("K0810: element 1 of input `class` is the id 5"), "{said}");
    }
}
