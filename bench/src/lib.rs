//! Measurements of Kiln, one executable each; they print numbers and never judge them.

#[cfg(feature = "gpu")]
pub mod gpu;
pub mod host;
pub mod models;

/// Whatever went wrong, in words.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;
