//! A small classifier of vectors: a linear stem, residual blocks with layer norm and GELU, a linear head.
#![forbid(unsafe_code)]
#![deny(warnings, missing_docs)]

mod affine;
mod blocks;

pub use affine::{affine, affine_vjp};
pub use blocks::{Block, FeedForward, Linear, PlainBlock, PlainScorer, Scorer};
pub use blocks::{block, feed_forward, linear, plain_block, plain_scorer, scorer};

use forge::prelude::*;

axes! { N: "batch", P: "features", H: "width", M: "inner width", C: "classes", E: "blocks" }
