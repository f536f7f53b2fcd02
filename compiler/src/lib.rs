//! Kiln's compiler: an ordinary library of IR → IR passes, called by the procedural macros, the start-up planner and the tests.
//!
//! Reading order is the order of the pipeline: [`ir`] (plain data, text form, verifier) → [`ops`] (one folder per operation) →
//! [`methods`] (the user's spellings of them) →
//! [`interp`] (the f64 truth) → [`precision`] → [`place`] → [`diff`] → [`simplify`] → [`fuse`] → [`compile`] → [`variants`] → [`emit`].

pub mod compile;
pub mod diagnostics;
pub mod diff;
#[cfg(feature = "emit")]
pub mod emit;
pub mod fuse;
pub mod interp;
pub mod ir;
pub mod methods;
pub mod ops;
pub mod place;
pub mod precision;
pub mod simplify;
pub mod variants;
