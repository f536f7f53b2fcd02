//! What a model's file imports: `use kiln::prelude::*;`.

pub use crate::layer::{Axis, Layer};
pub use crate::tensor::{Causal, Full, Ids, Loss, Repeat, Rope, Tensor, stop_gradient};
pub use crate::user_op::{HostArray, HostIds};
pub use crate::{axes, checkpoint, layer, op, precision, shard, sizes};
