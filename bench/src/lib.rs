//! Measurements of Kiln, one executable each; they print numbers and never judge them.

pub mod gpu;
