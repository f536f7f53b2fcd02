//! Checks of every layer of all linked crates, for tests and tools: each is one call. Training never comes here.

pub mod kernels;
