//! The intermediate representation: layers in pure SSA form, as plain data with spans.
//!
//! A [`Layer`] is one annotated function; its body is a [`Func`]. Dimensions are *named axes* whose sizes are bound only when a
//! model is linked, so the same IR serves every size. Nothing here knows about devices or Rust tokens.

mod attr;
mod axis;
mod func;
mod layer;
pub mod text;
mod types;
pub mod verify;

pub use attr::{Attr, Attrs};
pub use axis::{Axis, Sizes};
pub use func::{Builder, Func, Node, Span, Value, ValueId};
pub use layer::{
    Annotations, Arg, ArgKind, Checkpoint, ConfigType, ConfigValue, Init, Layer, Output, Precision, Shard, SubLayer,
    rename_axes,
};
pub use types::{DType, Type};
pub use verify::{Verified, VerifyError};
