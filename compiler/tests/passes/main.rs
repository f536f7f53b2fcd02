//! Whole functions through the passes: values and gradients stay what the interpreter says of the function as written.

mod diff;
mod fuse;
mod models;
mod place;
mod programs;
