//! The GPU suite: is what a device computes right, does it train as the host does, and how fast is it?
//!
//! In: a device. Out: one JSON file of raw numbers, written again after each part. Parts run in processes of their own, so that one
//! that a driver kills loses no other, and each begins with all of the device's memory. Reading order: [`crate::models`] (what is trained, on
//! what) → `check` → `train` → `kernels` → `step` → `suite` (parts, and the file).

pub mod check;
pub mod kernels;
pub mod step;
pub mod suite;
pub mod train;

use crate::Result;
