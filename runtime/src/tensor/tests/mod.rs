//! A transformer written as the macro expands it, run eagerly against loops over f64 and recorded against IR text.

mod eager;
mod model;
mod record;
