//! Launches of attention through shared memory, where barriers are cheap and heads fit; `library` has the scalar form for all others.

use super::library::Attention;
use super::{Barriers, Buffer, CubeDevice, CubeError, LibraryKernel};
use crate::kernels::library::attention_tiled;
use kiln_compiler::ir::DType;

impl CubeDevice {
    /// Whether attention goes through shared memory, of which a cube needs enough.
    pub(super) fn has_attention_tiled(&self, plan: &Attention) -> bool {
        let room = self.profile.properties.hardware.max_shared_memory_size;
        self.profile.shape.barriers == Barriers::Cheap
            && attention_tiled::fits(plan.head)
            && attention_tiled::BYTES <= room
    }

    /// As [`CubeDevice::attention`].
    pub(super) fn attention_tiled(
        &self,
        plan: &Attention,
        [q, k, v]: [&Buffer; 3],
        [o, lse]: [&Buffer; 2],
        round: Option<DType>,
    ) -> Result<(), CubeError> {
        let types = [q.dtype, k.dtype, v.dtype, o.dtype];
        let Attention { head, causal, .. } = *plan;
        let kernel = LibraryKernel::AttentionTiled { types, round, head, causal };
        let [q, k, v, o] = [q, k, v, o].map(|b| self.bound_as(b, attention_tiled::WIDTH));
        let cubes = kernel.attention_cubes(plan.indices()).max(1);
        self.launch_cubes(kernel, cubes, &[q, k, v, o, self.bound(lse)], &plan.indices(), &[plan.scale()])
    }

    /// As [`CubeDevice::attention_vjp`].
    pub(super) fn attention_vjp_tiled(
        &self,
        plan: &Attention,
        [q, k, v, o, lse, d_o]: [&Buffer; 6],
        [d_q, d_k, d_v]: [&Buffer; 3],
        rounds: [Option<DType>; 3],
        delta: &Buffer,
    ) -> Result<(), CubeError> {
        let Attention { head, causal, .. } = *plan;
        let (indices, scale) = (plan.indices(), [plan.scale()]);
        let [d_q_types, d_k_types] = [d_q, d_k].map(|x| [q.dtype, k.dtype, o.dtype, x.dtype]);
        let wide = |b| self.bound_as(b, attention_tiled::WIDTH);
        let [q, k, v, o, d_o] = [q, k, v, o, d_o].map(wide);
        let [d_q, d_k, d_v] = [d_q, d_k, d_v].map(wide);
        let [lse, delta] = [lse, delta].map(|b| self.bound(b));
        let kernel = LibraryKernel::AttentionQueriesTiled { types: d_q_types, round: rounds[0], head, causal };
        let cubes = kernel.attention_cubes(indices).max(1);
        let buffers = [q, k, v, o, lse, d_o, d_q, delta];
        self.launch_cubes(kernel, cubes, &buffers, &indices, &scale)?;
        let [q, k, v, _, lse, d_o, _, delta] = buffers;
        let rounds = [rounds[1], rounds[2]];
        let kernel = LibraryKernel::AttentionKeysTiled { types: d_k_types, rounds, head, causal };
        let cubes = kernel.attention_cubes(indices).max(1);
        self.launch_cubes(kernel, cubes, &[q, k, v, lse, d_o, delta, d_k, d_v], &indices, &scale)
    }
}
