//! The peers tier: what Kiln computes is what PyTorch computes.

mod block;
mod gpt;
mod optimizers;
mod scaling;
