//! Launches of attention on tensor cores, where a device has them and the operands fit them; `library` has the scalar form for all others.

use super::library::Attention;
use super::{Bound, Buffer, CubeDevice, CubeError, LibraryKernel, Profile};
use crate::kernels::library::attention_mma;
use cubecl::ir::Type;
use cubecl::ir::features::MmaConfig;
use kiln_compiler::ir::DType;

impl Profile {
    /// Whether products of this type and f32 sums run on tensor cores as `attention_mma` asks for them.
    pub(super) fn has_mma(&self, dtype: DType) -> bool {
        let storage = self.storage(dtype);
        let shape = MmaConfig {
            a_type: storage,
            b_type: storage,
            cd_type: self.storage(DType::F32),
            m: attention_mma::MMA[0],
            n: attention_mma::MMA[1],
            k: attention_mma::MMA[2],
        };
        let matmul = &self.properties.features.matmul;
        matmul.mma.contains(&shape) && matmul.ldmatrix.contains(&storage)
    }
}

impl CubeDevice {
    /// Whether attention over these operands has the form on tensor cores: one type, which they take, and rows of whole fragments.
    pub(super) fn has_attention_mma(&self, plan: &Attention, operands: &[&Buffer]) -> bool {
        let dtype = operands[0].dtype;
        operands.iter().all(|b| b.dtype == dtype) && self.attention_rounds(plan, dtype)
    }

    /// Whether attention over operands of a type runs on tensor cores, and so rounds probabilities and the cotangents of scores to it.
    pub fn attention_rounds(&self, plan: &Attention, dtype: DType) -> bool {
        attention_mma::fits(plan.head) && self.profile.has_mma(dtype)
    }

    /// Bound in vectors of so many lanes, as the form reads and writes its tensors.
    pub(super) fn bound_as<'a>(&self, buffer: &'a Buffer, lanes: usize) -> Bound<'a> {
        Bound { ty: Type::new(self.storage(buffer.dtype)).with_vector_size(lanes), ..self.bound(buffer) }
    }

    /// As [`CubeDevice::attention`].
    pub(super) fn attention_mma(
        &self,
        plan: &Attention,
        [q, k, v]: [&Buffer; 3],
        [o, lse]: [&Buffer; 2],
        round: Option<DType>,
    ) -> Result<(), CubeError> {
        let types = [q.dtype, k.dtype, v.dtype, o.dtype];
        let Attention { head, causal, .. } = *plan;
        let kernel = LibraryKernel::AttentionMma { types, round, head, causal };
        let [q, k, v] = [q, k, v].map(|b| self.bound_as(b, attention_mma::READ));
        let buffers = [q, k, v, self.bound_as(o, attention_mma::WRITTEN), self.bound(lse)];
        let cubes = kernel.attention_cubes(plan.indices()).max(1);
        self.launch_cubes(kernel, cubes, &buffers, &plan.indices(), &[plan.scale()])
    }

    /// As [`CubeDevice::attention_vjp`].
    pub(super) fn attention_vjp_mma(
        &self,
        plan: &Attention,
        [q, k, v, o, lse, d_o]: [&Buffer; 6],
        [d_q, d_k, d_v]: [&Buffer; 3],
        rounds: [Option<DType>; 3],
        delta: &Buffer,
    ) -> Result<(), CubeError> {
        let Attention { head, causal, .. } = *plan;
        let (indices, scale) = (plan.indices(), [plan.scale()]);
        let [d_q_type, d_k_type] = [d_q, d_k].map(|x| [q.dtype, k.dtype, o.dtype, x.dtype]);
        let [q, k, v, o, d_o] = [q, k, v, o, d_o].map(|b| self.bound_as(b, attention_mma::READ));
        let [d_q, d_k, d_v] = [d_q, d_k, d_v].map(|b| self.bound_as(b, attention_mma::WRITTEN));
        let [lse, delta] = [lse, delta].map(|b| self.bound(b));
        let kernel = LibraryKernel::AttentionQueriesMma { types: d_q_type, round: rounds[0], head, causal };
        let cubes = kernel.attention_cubes(indices).max(1);
        let buffers = [q, k, v, o, lse, d_o, d_q, delta];
        self.launch_cubes(kernel, cubes, &buffers, &indices, &scale)?;
        let [q, k, v, _, lse, d_o, _, delta] = buffers;
        let rounds = [rounds[1], rounds[2]];
        let kernel = LibraryKernel::AttentionKeysMma { types: d_k_type, rounds, head, causal };
        let cubes = kernel.attention_cubes(indices).max(1);
        self.launch_cubes(kernel, cubes, &[q, k, v, lse, d_o, delta, d_k, d_v], &indices, &scale)
    }
}
