//! The tensors of a layer's body: on the host they compute, under a [`Recorder`] they append nodes to an IR function.
//!
//! A tensor is an index into the session of its thread, so it is `Copy` and stays on its thread. Every method calls one function
//! (`apply`) with the name of the method; the table of methods in the compiler is the only one, so the eager run,
//! the recorded IR and the parsed IR agree node by node. Mistakes in shapes panic with a `K01xx` message, as a body returns no
//! `Result`; while recording they are collected and returned.
//!
//! The eager run is the reference, not the product: it goes through the f64 interpreter and rounds every result to f32.

mod apply;
mod axes;
mod eager;
mod frame;
mod init;
mod layers;
mod loops;
mod methods;
mod operators;
pub(crate) mod record;
mod repeat;
pub(crate) mod session;
mod values;

pub use axes::{IntoAxes, IntoAxis};
pub use frame::Frame;
pub use init::{InitError, init, init_with};
pub use layers::{ArgValue, Args, Parts, Returns, Source, call};
pub use methods::{Causal, Full, IntoMask, Operand, seed, stop_gradient};
pub(crate) use record::make_concrete;
pub use record::{ConfigScalar, RecordError, Recorder, record};
pub use repeat::{Repeat, RepeatIter};
pub use session::Handle;
pub use values::{Ids, Loss, Over, Rope, Tensor};

#[cfg(test)]
mod tests;
