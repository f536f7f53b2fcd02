//! Launches of attention whose cubes work on tiles together: on tensor cores where a device has them and the operands fit them, through shared
//! memory where barriers are cheap and heads fit. `library` has the scalar form for all others.

use super::library::Attention;
use super::{Barriers, Bound, Buffer, CubeDevice, CubeError, LibraryKernel, Profile};
use crate::kernels::library::{attention_mma, attention_tiled};
use cubecl::ir::features::MmaConfig;
use kiln_compiler::ir::DType;

/// What a cube's tiles are multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tiles {
    /// Tensor cores.
    Mma,
    /// Multiply-adds of f32.
    Shared,
}

impl Tiles {
    /// Lanes of the vectors in which tensors are read, and in which results are written.
    fn lanes(self) -> [usize; 2] {
        match self {
            Tiles::Mma => [attention_mma::READ, attention_mma::WRITTEN],
            Tiles::Shared => [attention_tiled::WIDTH; 2],
        }
    }

    fn forward(self, types: [DType; 4], round: Option<DType>, plan: &Attention) -> LibraryKernel {
        let Attention { head, causal, .. } = *plan;
        match self {
            Tiles::Mma => LibraryKernel::AttentionMma { types, round, head, causal },
            Tiles::Shared => LibraryKernel::AttentionTiled { types, round, head, causal },
        }
    }

    fn queries(self, types: [DType; 4], round: Option<DType>, plan: &Attention) -> LibraryKernel {
        let Attention { head, causal, .. } = *plan;
        match self {
            Tiles::Mma => LibraryKernel::AttentionQueriesMma { types, round, head, causal },
            Tiles::Shared => LibraryKernel::AttentionQueriesTiled { types, round, head, causal },
        }
    }

    fn keys(self, types: [DType; 4], rounds: [Option<DType>; 2], plan: &Attention) -> LibraryKernel {
        let Attention { head, causal, .. } = *plan;
        match self {
            Tiles::Mma => LibraryKernel::AttentionKeysMma { types, rounds, head, causal },
            Tiles::Shared => LibraryKernel::AttentionKeysTiled { types, rounds, head, causal },
        }
    }
}

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
    /// How cubes compute attention over these operands together; none where they do not.
    pub(super) fn attention_tiles(&self, plan: &Attention, operands: &[&Buffer]) -> Option<Tiles> {
        let dtype = operands[0].dtype;
        // Tensor cores take operands of one type.
        if operands.iter().all(|b| b.dtype == dtype) && self.attention_rounds(plan, dtype) {
            return Some(Tiles::Mma);
        }
        let room = self.profile.properties.hardware.max_shared_memory_size;
        let is_shared = self.profile.shape.barriers == Barriers::Cheap
            && attention_tiled::fits(plan.head)
            && attention_tiled::BYTES <= room;
        is_shared.then_some(Tiles::Shared)
    }

    /// Whether attention over operands of a type runs on tensor cores, and so rounds probabilities and the cotangents of scores to it.
    pub fn attention_rounds(&self, plan: &Attention, dtype: DType) -> bool {
        attention_mma::fits(plan.head) && self.profile.has_mma(dtype)
    }

    /// Bound in vectors of so many lanes.
    fn bound_as<'a>(&self, buffer: &'a Buffer, lanes: usize) -> Bound<'a> {
        let bound = self.bound(buffer);
        Bound { ty: bound.ty.with_vector_size(lanes), ..bound }
    }

    fn launch_tiles(&self, kernel: LibraryKernel, plan: &Attention, buffers: &[Bound<'_>]) -> Result<(), CubeError> {
        let cubes = kernel.attention_cubes(plan.indices()).max(1);
        self.launch_cubes(kernel, cubes, buffers, &plan.indices(), &[plan.scale()])
    }

    /// As [`CubeDevice::attention`].
    pub(super) fn attention_by(
        &self,
        tiles: Tiles,
        plan: &Attention,
        [q, k, v]: [&Buffer; 3],
        [o, lse]: [&Buffer; 2],
        round: Option<DType>,
    ) -> Result<(), CubeError> {
        let [read, written] = tiles.lanes();
        let kernel = tiles.forward([q.dtype, k.dtype, v.dtype, o.dtype], round, plan);
        let [q, k, v] = [q, k, v].map(|b| self.bound_as(b, read));
        self.launch_tiles(kernel, plan, &[q, k, v, self.bound_as(o, written), self.bound(lse)])
    }

    /// As [`CubeDevice::attention_vjp`].
    pub(super) fn attention_vjp_by(
        &self,
        tiles: Tiles,
        plan: &Attention,
        [q, k, v, o, lse, d_o]: [&Buffer; 6],
        [d_q, d_k, d_v]: [&Buffer; 3],
        rounds: [Option<DType>; 3],
        delta: &Buffer,
    ) -> Result<(), CubeError> {
        let [read, written] = tiles.lanes();
        let types = |result: &Buffer| [q.dtype, k.dtype, o.dtype, result.dtype];
        let queries = tiles.queries(types(d_q), rounds[0], plan);
        let keys = tiles.keys(types(d_k), [rounds[1], rounds[2]], plan);
        let [q, k, v, o, d_o] = [q, k, v, o, d_o].map(|b| self.bound_as(b, read));
        let [d_q, d_k, d_v] = [d_q, d_k, d_v].map(|b| self.bound_as(b, written));
        let [lse, delta] = [lse, delta].map(|b| self.bound(b));
        self.launch_tiles(queries, plan, &[q, k, v, o, lse, d_o, d_q, delta])?;
        self.launch_tiles(keys, plan, &[q, k, v, lse, d_o, delta, d_k, d_v])
    }
}
