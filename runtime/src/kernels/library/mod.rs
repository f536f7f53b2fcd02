//! Kernels of library operations: what is not a fused region. Each file holds the kernel and how a launch builds it; the arguments of a
//! launch are put together in `device/cube/library.rs`.

// CubeCL's integers have neither `div_ceil` nor `is_multiple_of`.
#![allow(clippy::manual_div_ceil, clippy::manual_is_multiple_of)]

mod attention;
pub mod attention_mma;
pub mod attention_tiled;
mod dot;
mod dot_tiled;
mod loss;
mod pack;
mod sort;
mod window;

pub use attention::{define_attention, define_attention_keys, define_attention_queries};
pub use dot::define_dot_general;
pub use dot_tiled::define_dot_general_tiled;
pub use loss::{
    define_loss_gradient, define_loss_gradient_rounded, define_loss_rows, define_loss_rows_rounded, define_loss_sum,
};
pub use pack::{define_pack, define_unpack};
pub use sort::{SORT_CHUNK, define_sort_offsets, define_sort_places, define_sort_ranks, define_sort_starts};
pub use window::define_window;

/// Rows and columns of the results that one unit of a product keeps in registers: 16 sums and 8 operands fit into the registers of any device.
pub const DOT_BLOCK: usize = 4;
