//! What several tiers of tests share: folders, the book's pages, skips that are counted, comparison of tensors.

pub mod book;
pub mod emulation;
pub mod folders;
pub mod markdown;
pub mod models;
pub mod nvrtc;
pub mod peers;
pub mod programs;
pub mod regions;
pub mod skips;
pub mod snapshot;
pub mod training;
