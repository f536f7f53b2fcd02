//! Fusion: partitions a function into regions (one launch each), library calls, calls of children, aliases and collectives.

mod build;
pub mod partition;
mod region;

pub use build::{Launch, LaunchKind, launches};
pub use region::{Abi, Index, Instr, Layout, Reg, Region, ScalarArg, Stream, Template};
