//! Devices: each executes a whole schedule over one arena.

#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub mod cube;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod host;
#[cfg(feature = "wgpu")]
pub mod wgpu;
