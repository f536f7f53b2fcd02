//! Train neural networks from annotated Rust functions.

pub mod device;
pub mod optim;
pub mod scaler;
pub mod schedule;
pub mod state;
