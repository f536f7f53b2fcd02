//! A classification of real text: which kind of character comes next in Rust source, from the eight characters before it.

use std::sync::Arc;

use kiln::random;

/// Characters that a model sees.
pub const WINDOW: usize = 8;
/// The printable ASCII characters, and one symbol for everything else.
const SYMBOLS: usize = 96;
/// Length of an input: one-hot symbols, position by position.
pub const FEATURES: usize = WINDOW * SYMBOLS;

/// Kinds of characters, by class id.
pub const KINDS: [&str; 10] = [
    "lower case",
    "upper case",
    "digit",
    "underscore",
    "space",
    "line break",
    "bracket",
    "punctuation",
    "quote",
    "other",
];

/// Inputs `[rows, FEATURES]` and classes `[rows]`.
pub type Rows = (Vec<f32>, Vec<i32>);

/// Random windows of a text: row `i` depends on the seed and on `i` alone.
#[derive(Clone, Debug)]
pub struct Windows {
    text: Arc<[u8]>,
    seed: u64,
    rows: usize,
    next_row: u64,
}

impl Windows {
    /// Batches of `rows` windows.
    ///
    /// # Panics
    /// If the text has no window and a character after it; `Corpus::check_length(WINDOW)` refuses such texts.
    pub fn new(text: Arc<[u8]>, rows: usize, seed: u64) -> Self {
        assert!(text.len() > WINDOW, "a text of {} bytes has no window of {WINDOW}", text.len());
        Windows { text, seed, rows, next_row: 0 }
    }
}

impl Iterator for Windows {
    type Item = Rows;

    fn next(&mut self) -> Option<Rows> {
        let (mut features, mut kinds) = (vec![0.0; self.rows * FEATURES], Vec::with_capacity(self.rows));
        let starts = (self.text.len() - WINDOW) as u64;
        for row in features.chunks_exact_mut(FEATURES) {
            let [low, high, ..] = random::block(self.seed, self.next_row, 0);
            self.next_row += 1;
            let start = ((u64::from(high) << 32 | u64::from(low)) % starts) as usize;
            for (position, &byte) in self.text[start..start + WINDOW].iter().enumerate() {
                row[position * SYMBOLS + symbol(byte)] = 1.0;
            }
            kinds.push(kind(self.text[start + WINDOW]));
        }
        Some((features, kinds))
    }
}

/// Index of a character among the symbols; 0 is everything else.
fn symbol(byte: u8) -> usize {
    match byte {
        b' '..=b'~' => usize::from(byte - b' ') + 1,
        _ => 0,
    }
}

/// Class of a character.
pub fn kind(byte: u8) -> i32 {
    match byte {
        b'a'..=b'z' => 0,
        b'A'..=b'Z' => 1,
        b'0'..=b'9' => 2,
        b'_' => 3,
        b' ' => 4,
        b'\n' | b'\r' | b'\t' => 5,
        b'(' | b')' | b'[' | b']' | b'{' | b'}' | b'<' | b'>' => 6,
        b'.' | b',' | b';' | b':' => 7,
        b'"' | b'\'' => 8,
        _ => 9,
    }
}

/// Share of rows whose largest logit is at their class.
pub fn accuracy(logits: &[f32], kinds: &[i32]) -> f64 {
    let right = logits.chunks_exact(KINDS.len()).zip(kinds).filter(|(row, kind)| {
        let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(i, _)| i as i32);
        best == Some(**kind)
    });
    right.count() as f64 / kinds.len().max(1) as f64
}

/// Share of the commonest class.
pub fn majority(kinds: &[i32]) -> f64 {
    let mut counts = [0usize; KINDS.len()];
    kinds.iter().filter_map(|&k| usize::try_from(k).ok()).for_each(|k| counts[k] += 1);
    counts.into_iter().max().unwrap_or(0) as f64 / kinds.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_one_hot_windows_with_the_kind_of_the_next_byte() {
        let text: Arc<[u8]> = b"let x = 1;".as_slice().into();
        let (features, kinds) = Windows::new(text.clone(), 50, 1).next().unwrap();
        for (row, kind) in features.chunks_exact(FEATURES).zip(kinds) {
            assert_eq!(row.iter().sum::<f32>(), WINDOW as f32);
            let first_is_l = row[symbol(b'l')] == 1.0;
            assert_eq!(kind, if first_is_l { 2 } else { 7 }, "`1` follows `let x = `, `;` follows `et x = 1`");
        }
    }

    #[test]
    fn every_symbol_and_kind_is_in_range() {
        assert!((0..=255).all(|b| symbol(b) < SYMBOLS && (0..KINDS.len() as i32).contains(&kind(b))));
        assert_eq!([b' ', b'~', b'\n', 200].map(symbol), [1, 95, 0, 0]);
    }

    #[test]
    fn accuracy_and_majority_count() {
        let mut logits = vec![0.0; 30];
        (logits[3], logits[12], logits[29]) = (1.0, 1.0, 1.0);
        assert_eq!(accuracy(&logits, &[3, 2, 0]), 2.0 / 3.0);
        assert_eq!(majority(&[1, 1, 4]), 2.0 / 3.0);
    }
}
