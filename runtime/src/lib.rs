//! Train neural networks from annotated Rust functions.

pub mod data;
pub mod device;
pub mod interrupt;
pub mod metrics;
pub mod optim;
pub mod plot;
pub mod progress;
pub mod run_dir;
pub mod scaler;
pub mod schedule;
pub mod state;
