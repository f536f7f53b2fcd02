//! What expanded macros name; no part of the public interface, and without its promises.

pub use crate::layer::{ArgSig, Axis, KernelDef, KindSig, Layer, LayerDef, LayerEntry, Sig};
pub use crate::sig_check::{check_axis, check_input, check_output, check_param};
pub use crate::tensor::{Frame, Parts, Recorder, Source, Tensor, call};
pub use crate::user_op::{
    Callee, HostResults, IsNoOperation, IsOperation, OpUse, Operand, OperandKind, OperandSig, Operation, Standing,
    UserOp, UserOpEntry, call as call_op, check_derivative, check_operand, check_result, check_vjp, is_operation,
    is_poisoned, operation,
};
pub use inventory;
pub use kiln_compiler::ir::{Axis as AxisName, Sizes};

pub use crate::{__kernel_table as kernel_table, __kernels as kernels};
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub use cubecl;

/// Pieces of kernels.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub mod gpu {
    pub use crate::device::cube::{DefineFn, Spec};
    pub use crate::kernels::*;
}

/// Passes its tokens on where a GPU feature is compiled in: emitted kernels.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
#[macro_export]
macro_rules! __kernels {
    ($($tokens:tt)*) => { $($tokens)* };
}

/// Drops its tokens where no GPU feature is compiled in.
#[cfg(not(any(feature = "wgpu", feature = "cuda")))]
#[macro_export]
macro_rules! __kernels {
    ($($tokens:tt)*) => {};
}

/// The table of a layer's kernels: `[hash, name, define;]*`.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
#[macro_export]
macro_rules! __kernel_table {
    ($($hash:expr, $name:expr, $define:path;)*) => {
        &[$($crate::__private::KernelDef { hash: $hash, name: $name, define: $define }),*]
    };
}

/// Without a GPU feature there are no kernels.
#[cfg(not(any(feature = "wgpu", feature = "cuda")))]
#[macro_export]
macro_rules! __kernel_table {
    ($($tokens:tt)*) => {
        &[]
    };
}
