//! Launches of attention on tensor cores, where a device has them and the operands fit them; `library` has the scalar form for all others.

use super::library::Attention;
use super::{Bound, Buffer, CubeDevice, CubeError, LibraryKernel, Profile};
use crate::kernels::library::attention_mma;
use cubecl::ir::Type;
use cubecl::ir::features::MmaConfig;
use cubecl::prelude::*;
use kiln_compiler::ir::DType;

impl Profile {
    /// Whether products of this type and f32 sums run on tensor cores as `attention_mma` asks for them.
    fn has_mma(&self, dtype: DType) -> bool {
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

impl<R: Runtime> CubeDevice<R> {
    /// Whether attention over these operands has the form on tensor cores: one type, which they take, and rows of whole fragments.
    pub(super) fn has_attention_mma(&self, plan: &Attention, operands: &[&Buffer]) -> bool {
        let dtype = operands[0].dtype;
        operands.iter().all(|b| b.dtype == dtype) && attention_mma::fits(plan.head) && self.profile.has_mma(dtype)
    }

    /// Bound in vectors of so many lanes, as the form reads and writes its tensors.
    fn bound_as<'a>(&self, buffer: &'a Buffer, lanes: usize) -> Bound<'a> {
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
}
