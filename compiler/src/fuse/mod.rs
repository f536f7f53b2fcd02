//! Fusion: partitions a function into regions (one launch each), library calls, calls of children, aliases and collectives.

mod build;
pub mod kernel;
pub mod partition;
pub mod reference;
mod region;

pub use build::{Launch, LaunchKind, launches};
pub use region::{Abi, BufferArg, Index, IndexArg, Instr, Layout, Reg, Region, ScalarArg, Stream, Template};
