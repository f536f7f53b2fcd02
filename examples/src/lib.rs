//! Models written in Kiln, and what their executables share.

pub mod cli;
pub mod config;
pub mod failure;
pub mod generate;
pub mod gpt;
pub mod kernels;
pub mod mlp;
pub mod next_kind;
pub mod train;
