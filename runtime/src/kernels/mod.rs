//! Pieces of GPU kernels: what emitted code calls, and the second stage of column sums. Host code names them only to build kernels.

// `#[cube]` makes a module, a struct and a function beside each of ours, without documentation.
#![allow(missing_docs)]

mod arguments;
mod column_sum;
pub mod library;
mod math;
mod placeholders;
mod position;
mod program;
mod random;
mod reduce;
mod rounding;
mod segment;
mod steps;
mod team;
pub mod training;

pub use arguments::{input, number, output, position, words};
pub use column_sum::define_column_sum;
pub use math::{cosine, erf, is_nan, logistic, maximum, minimum, neg, sign, sine, tanh};
pub use placeholders::*;
pub use position::{clamp, first_lane, half_sign, in_range, lanes, rotate};
pub use program::define_program;
pub use random::uniform;
pub use reduce::{accumulate, flush, max_lanes, max_team, store, sum_lanes, sum_team, zeros};
pub use rounding::{Rounding, round};
pub use segment::segment_sum;
pub use team::{Team, has_vector, team_count, team_pos, team_units, turns, unit_of_team};
