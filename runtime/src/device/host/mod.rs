//! Kernels of the host device: pure functions over views of an arena, planned once and run without allocating.
//!
//! Every kernel has a plan (built from shapes) and a `run`, which allocates nothing except in [`user_op`]. Scratch is passed in; its size comes from the plan. Results have the
//! same bits for any number of threads: work is split over outputs only, and reductions follow trees fixed by shapes.
//!
//! Reading order: [`cpu`] (which instructions) → [`pool`] (who runs) → [`buffer`] (what memory) → `micro` (inner loop of products) →
//! [`gemm`] → [`tile`], [`attention`], [`loss`], [`optim`], [`scatter`], [`copy`], [`user_op`].

// `multiversion!` hands every body its arithmetic; those that only copy or compare have no use for it.
#![allow(clippy::extra_unused_type_parameters)]

pub mod attention;
pub mod buffer;
pub mod copy;
pub mod cpu;
pub mod gemm;
pub mod loss;
pub mod math;
mod micro;
pub mod optim;
#[cfg(test)]
mod oracle;
mod pack;
pub mod pool;
pub mod scatter;
mod share;
pub mod tile;
mod transpose;
pub mod user_op;
