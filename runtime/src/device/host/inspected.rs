//! Inspected runs on the host: buffers are poisoned outside of their planned lives, and what steps write is noted.

use super::arena::Arena;
use crate::exec::inspect::{Event, Inspection};
use crate::exec::layout::ArenaLayout;
use crate::plan::{Plan, Segment};

/// A NaN in every float type, −1 in integers.
const POISON: u8 = 0xFF;

/// An inspected run: memory and the plan that it follows.
pub(super) struct Inspected<'a> {
    pub arena: &'a Arena,
    pub layout: &'a ArenaLayout,
    pub plan: &'a Plan,
    pub micro: usize,
}

impl Inspected<'_> {
    fn temporaries(&self) -> usize {
        self.layout.workspace - self.layout.temporaries
    }

    fn fill(&self, offset: usize, len: usize) {
        self.arena.fill(offset, len, POISON);
    }

    /// Poisons everything that the run may not read.
    pub fn begin(&self, seen: &mut Inspection) {
        seen.events.clear();
        self.fill(self.layout.temporaries, self.temporaries());
        if self.micro == 0 {
            // The first writer of a gradient overwrites it.
            let grads = self.plan.buffers.iter().filter(|b| matches!(b.segment, Segment::Grad(_)));
            grads.for_each(|b| self.fill(b.offset, b.bytes()));
        }
    }

    /// Poisons the buffers that are born in `step`, and the scratch.
    pub fn before(&self, step: usize) {
        let born = self.plan.buffers.iter().filter(|b| b.segment == Segment::Temporary && b.life.0 == step);
        born.for_each(|b| self.fill(b.offset, b.bytes()));
        self.fill(self.layout.workspace, self.layout.workspace_bytes);
    }

    /// Notes what `step` wrote, then poisons the buffers that die in it.
    pub fn after(&self, step: usize, seen: &mut Inspection) {
        seen.events.push(Event { micro: self.micro, step });
        let written = |from: usize, len: usize, known: usize| {
            let above = &self.arena.bytes(from, len)[known..];
            above.iter().rposition(|b| *b != POISON).map_or(known, |last| known + last + 1)
        };
        let Inspection { temporary_bytes, workspace_bytes, .. } = *seen;
        seen.temporary_bytes = written(self.layout.temporaries, self.temporaries(), temporary_bytes);
        seen.workspace_bytes = written(self.layout.workspace, self.layout.workspace_bytes, workspace_bytes);
        seen.strays.extend(self.stray(step).map(|at| (step, at)));
        let dying = self.plan.buffers.iter().filter(|b| b.segment == Segment::Temporary && b.life.1 == step);
        dying.for_each(|b| self.fill(b.offset, b.bytes()));
    }

    /// The first byte outside of the buffers alive in `step` that is not poison.
    fn stray(&self, step: usize) -> Option<usize> {
        let temporary = |b: &&crate::plan::Buffer| b.segment == Segment::Temporary;
        let alive = self.plan.buffers.iter().filter(temporary).filter(|b| b.life.0 <= step && step <= b.life.1);
        let mut taken: Vec<(usize, usize)> = alive.map(|b| (b.offset, b.offset + b.bytes())).collect();
        let end = self.layout.temporaries + self.temporaries();
        taken.push((end, end));
        taken.sort_unstable();
        let mut at = self.layout.temporaries;
        for (from, to) in taken {
            let gap = self.arena.bytes(at, from.saturating_sub(at));
            if let Some(i) = gap.iter().position(|b| *b != POISON) {
                return Some(at + i - self.layout.temporaries);
            }
            at = at.max(to);
        }
        None
    }
}
