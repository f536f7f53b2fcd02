//! Kernels of a training step that belong to no operation of a model: copies, random positions, gradient norms, optimizers.
//!
//! A step leaves its numbers in a small report on the device, so that nothing waits for the host: the optimizer reads the factor of the
//! gradient from there, and the host reads the whole report when somebody asks.

mod convert;
mod optim;
pub mod report;
mod start;

pub use convert::{define_convert, define_copy_words, define_fill};
pub use optim::{define_adamw, define_sgd};
pub use report::{REPORT, SQUARES_STRIDE, define_close, define_collect, define_factor, define_squares};
pub use start::{START_WORDS, define_start};
