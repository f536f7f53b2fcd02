//! What several tiers of tests share: folders, skips that are counted, comparison of tensors.

pub mod folders;
pub mod peers;
pub mod programs;
pub mod regions;
pub mod skips;
pub mod snapshot;
