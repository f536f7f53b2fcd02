//! Train neural networks from annotated Rust functions.
