//! The text form of the IR: prints functions and layers and reads them back, `parse(print(x)) == x`. Checks syntax, never types.
//!
//! ```text
//! layer swiglu "src/model.rs" {
//!   arg x @3:5 input f32[B, S, D]
//!   arg gate @4:5 param f32[D, F] normal(0.02)
//!   checkpoint selective @1:1
//!   fn(%0 x: f32[B, S, D], %1 gate: f32[D, F]) {
//!     %2 h: f32[B, S, F] = dot_general(%0, %1) {out=[B, S, F]} @7:13
//!     return %2
//!   }
//! }
//! ```
//! Attribute values tell their kind: `3` `0.5` `true` `"word"` `'S` (axis) `[B, S]` (axes) `:f32` (element type) `$eps` (config).

mod parse;
mod print;

pub use parse::{ParseError, parse_func, parse_layer};
pub use print::{print_func, print_layer};

/// Characters of a name that needs no quotes. `?` starts wildcard axes, `.` joins paths.
fn is_word(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'.' | b'?' | b'#')
}
