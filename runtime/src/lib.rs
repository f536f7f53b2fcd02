//! Train neural networks from annotated Rust functions.

// The macros name this crate `kiln` in its own tests too.
extern crate self as kiln;

pub mod batch;
pub mod check;
pub mod data;
pub mod decoder;
pub mod device;
pub mod exec;
pub mod explain;
pub mod init;
pub mod interrupt;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod kernels;
pub mod layer;
pub mod link;
pub mod metrics;
pub mod optim;
pub mod plan;
pub mod plot;
pub mod prelude;
pub mod profile;
pub mod progress;
pub mod random;
pub mod ranks;
pub mod run_dir;
pub mod scaler;
pub mod schedule;
pub mod session;
mod sig_check;
pub mod state;
pub mod step;
mod submit;
pub mod tensor;
pub mod trainer;
pub mod user_op;

#[doc(hidden)]
pub mod __private;

pub use kiln_compiler::ir::{ConfigValue, DType, Sizes};
pub use kiln_macros::{axes, checkpoint, layer, op, precision, shard, sizes};
pub use layer::{Axis, Layer, layers};
pub use user_op::{HostArray, HostIds, user_ops};
