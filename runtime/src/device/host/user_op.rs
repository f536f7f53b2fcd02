//! A step of the user's own operation: operands leave the arena as arrays, the reference runs, its results are rounded and stored.

use super::buffer::{Buf, round_in_place};
use crate::user_op::{self, HostArray, HostIds, HostValue, UserOp};
use kiln_compiler::ir::{DType, Sizes, Type};

/// One step, with all sizes known.
pub struct ReferencePlan {
    op: &'static UserOp,
    operands: Vec<(DType, Vec<usize>)>,
    results: Vec<Vec<usize>>,
    rounds: Vec<Vec<DType>>,
}

impl ReferencePlan {
    /// A step over operands and results of these types; each result is rounded to its list of `rounds` in turn.
    pub fn new(
        op: &'static UserOp,
        inputs: &[Type],
        outputs: &[Type],
        rounds: &[Vec<DType>],
        sizes: &Sizes,
    ) -> ReferencePlan {
        ReferencePlan {
            op,
            operands: inputs.iter().map(|t| (t.dtype, sizes.shape(&t.shape))).collect(),
            results: outputs.iter().map(|t| sizes.shape(&t.shape)).collect(),
            rounds: rounds.to_vec(),
        }
    }

    /// Runs the reference. It allocates: the arrays are the user's to keep and to make.
    ///
    /// # Panics
    /// If the reference does, or if it returns other sizes than the operation's `sig` says.
    pub fn run(&self, inputs: &[Buf], outputs: &[Buf]) {
        let operands: Vec<HostValue> = self.operands.iter().zip(inputs).map(|(o, b)| operand(o, *b)).collect();
        let results = user_op::run(self.op, &operands, &self.results);
        for ((mut result, rounds), to) in results.into_iter().zip(&self.rounds).zip(outputs) {
            rounds.iter().for_each(|&dtype| round_in_place(dtype, &mut result.data));
            to.store(0, &result.data);
        }
    }
}

fn operand((dtype, dims): &(DType, Vec<usize>), from: Buf) -> HostValue {
    let dims = dims.clone();
    match dtype {
        DType::I32 => HostValue::Ids(HostIds { dims, data: from.i32s(0, from.len()).to_vec() }),
        _ => {
            let mut data = vec![0.0; from.len()];
            from.load(0, &mut data);
            HostValue::Floats(HostArray { dims, data })
        }
    }
}
