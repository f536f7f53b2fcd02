//! Collectives between ranks that are threads of one process: they meet at a barrier and reduce each other's memory.
//!
//! Each element is summed by one rank, over ranks in order, so all ranks hold the same bits and so does every run.
#![allow(unsafe_code)]

use std::sync::Barrier;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// The ranks of one mesh axis that reduce together.
pub struct Comm {
    barrier: Barrier,
    slots: Vec<AtomicPtr<f32>>,
    bytes: AtomicU64,
}

impl Comm {
    /// A group of `ranks`.
    pub fn new(ranks: usize) -> Comm {
        let slots = (0..ranks).map(|_| AtomicPtr::new(std::ptr::null_mut())).collect();
        Comm { barrier: Barrier::new(ranks), slots, bytes: AtomicU64::new(0) }
    }

    /// Number of ranks.
    pub fn size(&self) -> usize {
        self.slots.len()
    }

    /// Bytes that one rank has given to collectives so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Replaces `data` on every rank by the sum over ranks. Every rank calls it with the same length, in the same order of calls:
    /// the plan, which is the same on all ranks, is the only caller.
    pub fn all_reduce(&self, rank: usize, data: &mut [f32]) {
        if self.size() == 1 {
            return;
        }
        if rank == 0 {
            self.bytes.fetch_add(size_of_val(data) as u64, Ordering::Relaxed);
        }
        self.slots[rank].store(data.as_mut_ptr(), Ordering::Release);
        self.barrier.wait();
        let part = data.len().div_ceil(self.size());
        let range = (rank * part).min(data.len())..((rank + 1) * part).min(data.len());
        for i in range {
            // SAFETY: between the barriers every rank's slice stays where it is, has the same length, and element `i` is read
            // and written by this rank alone.
            let sum = self.slots.iter().fold(0.0, |s, p| s + unsafe { *p.load(Ordering::Acquire).add(i) });
            for p in &self.slots {
                // SAFETY: as above.
                unsafe { *p.load(Ordering::Acquire).add(i) = sum };
            }
        }
        self.barrier.wait();
    }
}

/// A rank's place in a group.
#[derive(Clone)]
pub struct Member {
    /// The group.
    pub comm: std::sync::Arc<Comm>,
    /// Number in it.
    pub rank: usize,
}

impl Member {
    /// A group of one.
    pub fn alone() -> Member {
        Member { comm: std::sync::Arc::new(Comm::new(1)), rank: 0 }
    }

    /// [`Comm::all_reduce`] as this member.
    pub fn all_reduce(&self, data: &mut [f32]) {
        self.comm.all_reduce(self.rank, data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn every_rank_gets_the_sum() {
        let comm = Arc::new(Comm::new(3));
        let results: Vec<Vec<f32>> = std::thread::scope(|s| {
            let threads: Vec<_> = (0..3)
                .map(|rank| {
                    let member = Member { comm: comm.clone(), rank };
                    s.spawn(move || {
                        let mut x: Vec<f32> = (0..7).map(|i| (i * 10 + rank) as f32).collect();
                        member.all_reduce(&mut x);
                        x
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        let expected: Vec<f32> = (0..7).map(|i| (i * 30 + 3) as f32).collect();
        assert!(results.iter().all(|r| *r == expected));
        assert_eq!(comm.bytes(), 28);
    }
}
