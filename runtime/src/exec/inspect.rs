//! Inspection: runs in which every buffer is filled with NaN at its planned birth and after its death, and what they show.
//!
//! It answers what tests ask of a plan: does a step read what no step wrote (NaN comes out), does it write where nothing is planned
//! ([`Inspection::strays`]), is the planned peak the measured one ([`Inspection::temporary_bytes`]), did the steps run in their order
//! ([`Inspection::events`]). It changes no result of a sound plan.

use crate::plan::arena::align;

/// One executed step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Micro-batch of this rank.
    pub micro: usize,
    /// Number of the step in its plan.
    pub step: usize,
}

/// What inspected runs showed.
#[derive(Clone, Debug, Default)]
pub struct Inspection {
    /// Steps of the last run of a plan, in the order in which they ran.
    pub events: Vec<Event>,
    /// The highest byte of temporaries that any step wrote, counted from 1.
    pub temporary_bytes: usize,
    /// The same for the scratch of library kernels.
    pub workspace_bytes: usize,
    /// Writes outside of living buffers: the step, and the offset among temporaries.
    pub strays: Vec<(usize, usize)>,
}

impl Inspection {
    /// Whether the highest written byte is the planned one, up to the alignment of buffers.
    pub fn reached(&self, planned_temporaries: usize) -> bool {
        align(self.temporary_bytes) == planned_temporaries
    }
}
