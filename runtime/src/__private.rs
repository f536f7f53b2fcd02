//! What expanded macros name; no part of the public interface, and without its promises.

pub use crate::layer::{ArgSig, Axis, KernelDef, KindSig, Layer, LayerDef, LayerEntry, Sig};
pub use crate::tensor::{Frame, Parts, Recorder, Source, call};
pub use inventory;
