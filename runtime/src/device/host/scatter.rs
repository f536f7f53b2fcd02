//! `sort_index`: positions of ids in stable order of id, and where each id's positions start and end.
//!
//! A counting sort. The positions are cut into parts; each part counts its ids, the counts become first places in order of id and then
//! of part, and each part places its own positions. The order is the stable one, whatever the number of parts.
#![allow(unsafe_code)]

use super::buffer::Buf;
use super::pool::Pool;
use super::share::Shared;

// Below this many positions, a part costs more than it saves.
const POSITIONS_PER_PART: usize = 1 << 13;
// Ids whose places a task adds up.
const IDS_PER_TASK: usize = 1 << 12;

/// A planned sort of `n` ids below `bins`.
pub struct SortPlan {
    n: usize,
    bins: usize,
    parts: usize,
}

impl SortPlan {
    /// Plans `n` ids below `bins`.
    pub fn new(n: usize, bins: usize, threads: usize) -> SortPlan {
        // The counts of all parts are no more than the positions themselves, or there is one part.
        let most = (n / POSITIONS_PER_PART).min(n / bins.max(1)).max(1);
        SortPlan { n, bins, parts: threads.clamp(1, most) }
    }

    /// Scratch in f32 elements, whose memory holds the counts of every part, and one sum per task.
    pub fn workspace_len(&self) -> usize {
        self.parts * self.bins + self.tasks()
    }

    fn tasks(&self) -> usize {
        self.bins.div_ceil(IDS_PER_TASK)
    }

    fn part(&self, part: usize) -> std::ops::Range<usize> {
        let each = self.n.div_ceil(self.parts);
        (part * each).min(self.n)..((part + 1) * each).min(self.n)
    }

    /// Writes the positions of ids ≥ 0 in stable order of id and then -1 for each negative one into `order`, and for each id v the
    /// range `starts[v]..ends[v]` of `order` that holds its positions. All are i32.
    ///
    /// # Panics
    /// If a buffer or the workspace is shorter than planned or not of i32, or an id is not below the planned bound.
    pub fn run(&self, pool: &Pool, ids: Buf, order: Buf, starts: Buf, ends: Buf, workspace: &mut [f32]) {
        assert!(workspace.len() >= self.workspace_len(), "workspace of {} f32 is too small", workspace.len());
        // SAFETY: every bit pattern is valid for both types, which have one size and alignment; the borrow passes on.
        let workspace =
            unsafe { std::slice::from_raw_parts_mut(workspace.as_mut_ptr().cast::<u32>(), workspace.len()) };
        let (ids, order) = (ids.i32s(0, self.n), order.i32s_mut(0, self.n));
        let (starts, ends) = (starts.i32s_mut(0, self.bins), ends.i32s_mut(0, self.bins));
        if let Some(id) = ids.iter().find(|&&id| id >= 0 && id as usize >= self.bins) {
            panic!("`sort_index`: id {id} for {} rows", self.bins);
        }
        let (counts, rest) = workspace.split_at_mut(self.parts * self.bins);
        let sums = &mut rest[..self.tasks()];
        counts.fill(0);
        let of_part = Shared::new(counts);
        pool.run(self.parts, |part, _| {
            // SAFETY: each part has its own counts.
            let counts = unsafe { of_part.slice(part * self.bins, self.bins) };
            for &id in &ids[self.part(part)] {
                if id >= 0 {
                    counts[id as usize] += 1;
                }
            }
        });
        let last = self.add_up(pool, counts, sums, starts, ends);
        let (of_part, order) = (Shared::new(counts), Shared::new(order));
        pool.run(self.parts, |part, _| {
            // SAFETY: each part has its own counts.
            let next = unsafe { of_part.slice(part * self.bins, self.bins) };
            for i in self.part(part) {
                let Ok(id) = usize::try_from(ids[i]) else { continue };
                // SAFETY: the counts reserve every place for one position.
                unsafe { order.slice(next[id] as usize, 1)[0] = i as i32 };
                next[id] += 1;
            }
        });
        // SAFETY: all parts have finished.
        unsafe { order.slice(last, self.n - last).fill(-1) };
    }

    /// Turns counts into first places, and returns the first place after all of them.
    fn add_up(&self, pool: &Pool, counts: &mut [u32], sums: &mut [u32], starts: &mut [i32], ends: &mut [i32]) -> usize {
        let bins = self.bins;
        let range = |task: usize| task * IDS_PER_TASK..((task + 1) * IDS_PER_TASK).min(bins);
        let all_sums = Shared::new(sums);
        let read = &*counts;
        pool.run(self.tasks(), |task, _| {
            let part = |part: usize| read[part * bins..][range(task)].iter().sum::<u32>();
            // SAFETY: each task has its own sum.
            unsafe { all_sums.slice(task, 1)[0] = (0..self.parts).map(part).sum() };
        });
        let mut total = 0;
        for sum in sums.iter_mut() {
            let first = total;
            total += *sum;
            *sum = first;
        }
        let firsts = &*sums;
        let (counts, starts, ends) = (Shared::new(counts), Shared::new(starts), Shared::new(ends));
        pool.run(self.tasks(), |task, _| {
            let mut at = firsts[task];
            for id in range(task) {
                // SAFETY: each task has its own ids.
                let (start, end) = unsafe { (starts.slice(id, 1), ends.slice(id, 1)) };
                start[0] = at as i32;
                for part in 0..self.parts {
                    // SAFETY: as above, in the counts of every part.
                    let count = unsafe { counts.slice(part * bins + id, 1) };
                    let first = at;
                    at += count[0];
                    count[0] = first;
                }
                end[0] = at as i32;
            }
        });
        total as usize
    }
}

#[cfg(test)]
mod tests {
    use super::super::buffer::testing::Owned;
    use super::super::oracle::{axes, eval, sizes};
    use super::*;
    use kiln_compiler::ir::{Attrs, DType};

    fn check(ids: &[i32], bins: usize) {
        let bound = sizes("nv", &[ids.len(), bins]);
        let attrs = Attrs::new().with("axis", axes("v")[0]);
        let mut memory = Owned::ids(ids);
        let want = eval("sort_index", attrs, &mut [(&mut memory, "n")], &bound);
        for threads in [1, 2, 3, 7] {
            let pool = Pool::new(threads).unwrap();
            let plan = SortPlan::new(ids.len(), bins, threads);
            let mut results = [ids.len(), bins, bins].map(|n| Owned::poisoned(DType::I32, n));
            let mut workspace = vec![f32::NAN; plan.workspace_len()];
            let [order, starts, ends] = &mut results;
            plan.run(&pool, memory.buf(), order.buf(), starts.buf(), ends.buf(), &mut workspace);
            for (got, want) in results.iter_mut().zip(&want) {
                let got: Vec<f64> = got.buf().i32s(0, want.len()).iter().map(|&i| f64::from(i)).collect();
                assert!(&got == want, "{} ids, {bins} bins, {threads} threads", ids.len());
            }
        }
    }

    /// Scattered ids below `bins`, every seventh one negative.
    fn scattered(n: usize, bins: usize) -> Vec<i32> {
        (0..n).map(|i| if i % 7 == 3 { -(i as i32) } else { (i * 7919 % bins) as i32 }).collect()
    }

    #[test]
    fn every_size_agrees_with_the_interpreter() {
        for bins in [1, 2, 17, IDS_PER_TASK - 1, IDS_PER_TASK, IDS_PER_TASK + 1] {
            for n in [0, 1, 13, 257] {
                check(&scattered(n, bins), bins);
            }
        }
        check(&[-1, -5, -1], 4);
        check(&[3, 3, 3, 0], 4);
    }

    #[test]
    fn parts_keep_the_stable_order() {
        for bins in [3, 97, 5003] {
            check(&scattered(7 * POSITIONS_PER_PART + 11, bins), bins);
        }
        assert!(SortPlan::new(7 * POSITIONS_PER_PART, 97, 7).parts == 7, "the test above has several parts");
    }

    #[test]
    #[should_panic(expected = "id 4 for 4 rows")]
    fn an_id_beyond_the_rows_is_refused() {
        let plan = SortPlan::new(1, 4, 1);
        let [mut ids, mut order] = [Owned::ids(&[4]), Owned::ids(&[0])];
        let [mut starts, mut ends] = [Owned::ids(&[0; 4]), Owned::ids(&[0; 4])];
        let mut workspace = vec![0.0; plan.workspace_len()];
        plan.run(&Pool::serial(), ids.buf(), order.buf(), starts.buf(), ends.buf(), &mut workspace);
    }
}
