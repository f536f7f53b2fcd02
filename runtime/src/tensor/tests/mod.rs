//! A transformer, run eagerly against loops over f64, and recorded against IR text and against the parser.

mod agree;
mod eager;
mod model;
mod record;
