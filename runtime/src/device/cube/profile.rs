//! What the code of kernels depends on, on one kind of device: launch shapes, properties, the target of CubeCL's expansion. It needs no
//! open device, so code can be made, read and compiled for a card that is not there.

use super::{Arithmetic, CubeError, DefineFn, Shape, Spec};
use crate::kernels::{self, Rounding};
use cubecl::ir::{DeviceProperties, ElemType, FloatKind, IntKind, StorageType, TargetProperties, UIntKind};
use cubecl::prelude::*;
use kiln_compiler::fuse::kernel::MAX_DTYPES;
use kiln_compiler::ir::DType;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Masters, sums, reports.
pub(super) const F32: StorageType = StorageType::Scalar(ElemType::Float(FloatKind::F32));
/// Words: tables, places of random streams, copies.
pub(super) const U32: StorageType = StorageType::Scalar(ElemType::UInt(UIntKind::U32));

/// A kind of device.
#[derive(Clone)]
pub struct Profile {
    pub(super) shape: Shape,
    pub(super) properties: DeviceProperties,
    /// CubeCL's value cannot be shared by threads.
    pub(super) target: fn() -> TargetProperties,
}

impl Profile {
    /// How it stores an element type: as it is, or wider where it has no such storage.
    pub fn storage(&self, dtype: DType) -> StorageType {
        let wanted = match dtype {
            DType::F32 => FloatKind::F32,
            DType::Bf16 => FloatKind::BF16,
            DType::F16 => FloatKind::F16,
            DType::I32 => return StorageType::Scalar(ElemType::Int(IntKind::I32)),
            DType::Bool => return U32,
            DType::Compute | DType::Sub(_) => panic!("{dtype} is resolved when a model is linked"),
        };
        let native = StorageType::Scalar(ElemType::Float(wanted));
        if self.properties.supports_type(native) {
            return native;
        }
        F32
    }

    /// The key of a map over slots of these types, one lane at a time; callers say where theirs differs.
    pub(super) fn spec(&self, name: String, types: &[DType]) -> Spec {
        let mut spec = Spec {
            name,
            hash: 0,
            types: [F32; MAX_DTYPES],
            roundings: [Rounding::None; MAX_DTYPES],
            width: 1,
            cube_dim: self.shape.map_units,
            row_units: self.shape.map_units,
            plane: self.shape.plane,
            turns: 0,
            is_full: false,
            accumulate: 0,
            constants: [0; 2],
            arithmetic: Arithmetic::AsWritten,
            shared: None,
            program: None,
        };
        for (slot, &dtype) in types.iter().enumerate() {
            spec.types[slot] = self.storage(dtype);
            spec.roundings[slot] = self.rounding(dtype);
        }
        spec
    }

    /// What values of a type are rounded to before they are stored.
    pub(super) fn rounding(&self, dtype: DType) -> Rounding {
        match (dtype, self.shape.converts) {
            (DType::F32 | DType::I32 | DType::Bool, _) => Rounding::None,
            (DType::Bf16, false) => Rounding::Bf16,
            (DType::F16, false) => Rounding::F16,
            (DType::Bf16, true) => Rounding::ByBf16,
            (DType::F16, true) => Rounding::ByF16,
            (DType::Compute | DType::Sub(_), _) => panic!("{dtype} is resolved when a model is linked"),
        }
    }

    /// Multiprocessors, if the driver says how many.
    pub(super) fn processors(&self) -> usize {
        self.properties.hardware.num_streaming_multiprocessors.map_or(usize::MAX, |n| n as usize)
    }

    /// Most cubes along the first dimension of a grid.
    pub(super) fn max_cubes(&self) -> usize {
        self.properties.hardware.max_cube_count.0 as usize
    }

    /// The kernel in CubeCL's IR.
    pub(super) fn define(&self, spec: &Spec, define: DefineFn) -> KernelDefinition {
        let settings = settings(spec);
        let mut builder = KernelBuilder::default();
        builder.runtime_properties((self.target)());
        builder.device_properties(&self.properties);
        kernels::register(&mut builder.scope, &spec.types, spec.width);
        settings.address_type.register(&mut builder.scope);
        define(&mut builder, spec);
        builder.build(settings)
    }

    /// As [`Profile::define`], where a panic of the body can be told: on a server's thread it would only skip the launch.
    ///
    /// # Errors
    /// [`CubeError::Build`] with the panic's words.
    pub(super) fn try_define(&self, spec: &Spec, define: DefineFn) -> Result<KernelDefinition, CubeError> {
        let built = catch_unwind(AssertUnwindSafe(|| self.define(spec, define)));
        built.map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            CubeError::Build { kernel: spec.name.clone(), message: text.unwrap_or_default() }
        })
    }
}

/// Name and cube of a kernel; positions and lengths are u32 everywhere.
pub(super) fn settings(spec: &Spec) -> KernelSettings {
    KernelSettings::default().kernel_name(&spec.name).cube_dim(CubeDim::new_1d(spec.cube_dim))
}
