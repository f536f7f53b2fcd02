//! Whole functions through the passes: values and gradients stay what the interpreter says of the function as written.

mod models;
mod place;
