//! Devices: each executes a whole schedule over one arena.

pub mod host;
