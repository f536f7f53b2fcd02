//! Text becomes an endless, shuffled sequence of batches that can be continued from a cursor.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// One batch of byte ids, row-major `[batch, seq]`; `next[i]` is the byte after `ids[i]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Inputs.
    pub ids: Vec<i32>,
    /// Targets.
    pub next: Vec<i32>,
}

/// How far the batches have come; with the same text, length and seed it gives the same continuation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Passes over the text that are complete.
    pub epoch: u64,
    /// Rows taken in this pass.
    pub index: u64,
}

/// Endless batches of windows of a text. Each epoch takes every window once, in an order that a keyed permutation gives without
/// memory, and starts at another byte, so that window borders move.
#[derive(Clone, Debug)]
pub struct Batches {
    text: Arc<[u8]>,
    batch: usize,
    seq: usize,
    seed: u64,
    windows: u64,
    cursor: Cursor,
}

impl Batches {
    /// Batches of `batch` rows of `seq` bytes.
    ///
    /// # Panics
    /// If the text is shorter than `2·seq`, which [`super::Corpus::check_length`] refuses, or if `seq` is 0.
    pub fn new(text: Arc<[u8]>, batch: usize, seq: usize, seed: u64) -> Self {
        assert!(seq > 0 && text.len() >= 2 * seq, "a text of {} bytes has no windows of {seq}", text.len());
        // Whatever byte an epoch starts at (less than seq), this many windows and the byte after the last are there.
        let windows = ((text.len() - seq) / seq) as u64;
        Batches { text, batch, seq, seed, windows, cursor: Cursor::default() }
    }

    /// Continues from `cursor`; an index beyond the text, as another text's cursor may have, wraps around.
    pub fn resume(mut self, cursor: Cursor) -> Self {
        self.cursor = Cursor { index: cursor.index % self.windows, ..cursor };
        self
    }

    /// Where the next batch starts; save it beside the weights.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Windows of one epoch.
    pub fn windows(&self) -> u64 {
        self.windows
    }

    /// Writes the next batch into one that is there, without allocating once it has its size.
    pub fn fill(&mut self, batch: &mut Batch) {
        batch.ids.clear();
        batch.next.clear();
        for _ in 0..self.batch {
            let start = self.next_start();
            let window = &self.text[start..=start + self.seq];
            batch.ids.extend(window[..self.seq].iter().map(|&b| i32::from(b)));
            batch.next.extend(window[1..].iter().map(|&b| i32::from(b)));
        }
    }

    /// The first byte of the next row. A batch that reaches the end of an epoch continues in the next one.
    fn next_start(&mut self) -> usize {
        let key = xxh3_64_with_seed(&self.cursor.epoch.to_le_bytes(), self.seed);
        let window = permute(self.cursor.index, self.windows, key);
        let first = key % self.seq as u64;
        self.cursor.index += 1;
        if self.cursor.index >= self.windows {
            self.cursor = Cursor { epoch: self.cursor.epoch + 1, index: 0 };
        }
        (first + window * self.seq as u64) as usize
    }
}

impl Iterator for Batches {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        let mut batch = Batch::default();
        self.fill(&mut batch);
        Some(batch)
    }
}

/// A permutation of 0..n chosen by `key`: a balanced Feistel network on the next even number of bits, walked until it lands
/// below n (Black & Rogaway 2002, "Ciphers with arbitrary finite domains"); fewer than four walks on average.
fn permute(index: u64, n: u64, key: u64) -> u64 {
    /// Four rounds of a pseudorandom function make a strong permutation (Luby & Rackoff 1988).
    const ROUNDS: u64 = 4;
    let half_bits = (64 - n.saturating_sub(1).leading_zeros()).div_ceil(2).max(1);
    let mask = (1u64 << half_bits) - 1;
    let mut value = index;
    loop {
        let (mut left, mut right) = (value >> half_bits, value & mask);
        for round in 0..ROUNDS {
            let mixed = xxh3_64_with_seed(&right.to_le_bytes(), key.wrapping_add(round));
            (left, right) = (right, left ^ (mixed & mask));
        }
        value = left << half_bits | right;
        if value < n {
            return value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn text(n: usize) -> Arc<[u8]> {
        (0..n).map(|i| (i % 251) as u8).collect()
    }

    #[test]
    fn permutation_takes_every_index_once() {
        for n in [1, 2, 3, 7, 64, 65, 1000] {
            for key in 0..5 {
                let image: HashSet<u64> = (0..n).map(|i| permute(i, n, key)).collect();
                assert_eq!(image.len() as u64, n);
                assert!(image.iter().all(|&v| v < n));
            }
        }
        let order = |key| (0..100).map(|i| permute(i, 100, key)).collect::<Vec<_>>();
        assert_ne!(order(1), order(2));
    }

    #[test]
    fn every_window_comes_once_per_epoch() {
        let mut batches = Batches::new(text(1003), 4, 10, 7);
        let windows = batches.windows() as usize;
        for epoch in 0..3 {
            let starts: HashSet<usize> = (0..windows).map(|_| batches.next_start()).collect();
            assert_eq!(starts.len(), windows);
            assert_eq!(starts.iter().map(|s| s % 10).collect::<HashSet<_>>().len(), 1, "windows do not overlap");
            assert!(starts.iter().all(|s| s + 11 <= 1003));
            assert_eq!(batches.cursor(), Cursor { epoch: epoch + 1, index: 0 });
        }
    }

    #[test]
    fn targets_are_the_next_bytes() {
        let batch = Batches::new(text(1003), 3, 10, 7).next().unwrap();
        assert_eq!((batch.ids.len(), batch.next.len()), (30, 30));
        for (id, next) in batch.ids.iter().zip(&batch.next) {
            assert_eq!((id + 1) % 251, *next);
        }
    }

    #[test]
    fn a_cursor_continues_exactly() {
        let mut whole = Batches::new(text(500), 7, 9, 3);
        for _ in 0..20 {
            whole.next();
        }
        let mut resumed = Batches::new(text(500), 7, 9, 3).resume(whole.cursor());
        for _ in 0..40 {
            assert_eq!(whole.next(), resumed.next());
        }
        let other_seed = Batches::new(text(500), 7, 9, 4).next();
        assert_ne!(Batches::new(text(500), 7, 9, 3).next(), other_seed);
    }

    #[test]
    fn a_foreign_cursor_does_no_harm() {
        let cursor = Cursor { epoch: u64::MAX / 2, index: u64::MAX };
        let mut batches = Batches::new(text(500), 7, 9, 3).resume(cursor);
        assert_eq!(batches.next().map(|b| b.ids.len()), Some(63));
    }

    #[test]
    fn shortest_text_has_windows() {
        let mut batches = Batches::new(text(20), 5, 10, 0);
        assert_eq!(batches.windows(), 1);
        assert!((0..50).all(|_| batches.next_start() + 11 <= 20));
    }
}
