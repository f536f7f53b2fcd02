//! The baseline that a language model has to beat: bytes predicted from the byte before, with add-α smoothing.

use super::Batch;

/// Number of different bytes.
const BYTES: usize = 256;

/// How often each byte follows each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairCounts {
    pairs: Vec<u64>,
}

/// P(next | byte) = (count(byte, next) + α) / (count(byte) + 256·α), counted on training text.
#[derive(Clone, Debug, PartialEq)]
pub struct Bigram {
    counts: PairCounts,
    alpha: f64,
}

impl PairCounts {
    /// Counts of a text.
    pub fn of_text(text: &[u8]) -> Self {
        let mut pairs = vec![0; BYTES * BYTES];
        for pair in text.windows(2) {
            pairs[usize::from(pair[0]) * BYTES + usize::from(pair[1])] += 1;
        }
        PairCounts { pairs }
    }

    /// Counts of exactly the tokens that a model is evaluated on. Ids outside 0..256 are left out, as a loss ignores them.
    pub fn of_batches<'b>(batches: impl IntoIterator<Item = &'b Batch>) -> Self {
        let mut pairs = vec![0; BYTES * BYTES];
        for batch in batches {
            for (&id, &next) in batch.ids.iter().zip(&batch.next) {
                if let (Ok(id), Ok(next)) = (u8::try_from(id), u8::try_from(next)) {
                    pairs[usize::from(id) * BYTES + usize::from(next)] += 1;
                }
            }
        }
        PairCounts { pairs }
    }

    fn rows(&self) -> impl Iterator<Item = &[u64]> {
        self.pairs.chunks_exact(BYTES)
    }
}

impl Bigram {
    /// Counts `train` and takes the α that predicts `valid` best: the strongest form of the baseline.
    pub fn tuned(train: &[u8], valid: &PairCounts) -> Self {
        /// α by decades and quarters of decades; the loss has one minimum in between, refined below.
        const EXPONENTS: std::ops::RangeInclusive<i32> = -32..=8;
        let counts = PairCounts::of_text(train);
        let mut bigram = Bigram { counts, alpha: 1.0 };
        let mut at = |log10: f64| {
            bigram.alpha = 10f64.powf(log10);
            bigram.nats_per_byte(valid)
        };
        let mut best = (f64::INFINITY, 0.0);
        let mut consider = |log10: f64| {
            let nats = at(log10);
            if nats < best.0 {
                best = (nats, log10);
            }
            best.1
        };
        let mut centre = 0.0;
        for quarter in EXPONENTS {
            centre = consider(f64::from(quarter) / 4.0);
        }
        for halving in 3..12 {
            let step = 1.0 / f64::from(1 << halving);
            consider(centre - step);
            centre = consider(centre + step);
        }
        bigram.alpha = 10f64.powf(centre);
        bigram
    }

    /// α.
    pub fn alpha(&self) -> f64 {
        self.alpha
    }

    /// Mean of −ln P(next | byte) over these pairs; 0 when there are none.
    pub fn nats_per_byte(&self, pairs: &PairCounts) -> f64 {
        let (mut nats, mut n) = (0.0, 0u64);
        for (trained, asked) in self.counts.rows().zip(pairs.rows()) {
            let total = trained.iter().sum::<u64>() as f64 + BYTES as f64 * self.alpha;
            for (&count, &times) in trained.iter().zip(asked).filter(|&(_, &times)| times > 0) {
                nats -= times as f64 * ((count as f64 + self.alpha) / total).ln();
                n += times;
            }
        }
        if n == 0 { 0.0 } else { nats / n as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_follow_the_formula() {
        let bigram = Bigram { counts: PairCounts::of_text(b"ababac"), alpha: 0.5 };
        let expected = -((2.5f64 / 131.0).ln() + (2.5f64 / 130.0).ln()) / 2.0;
        assert!((bigram.nats_per_byte(&PairCounts::of_text(b"aba")) - expected).abs() < 1e-12);
    }

    #[test]
    fn no_alpha_on_the_grid_is_better_than_the_tuned_one() {
        let train = include_bytes!("corpus.rs");
        let valid = PairCounts::of_text(include_bytes!("batches.rs"));
        let tuned = Bigram::tuned(train, &valid);
        let nats = tuned.nats_per_byte(&valid);
        assert!((1.0..5.0).contains(&nats), "{nats}");
        for i in -400..200 {
            let other = Bigram { alpha: 10f64.powf(f64::from(i) / 50.0), ..tuned.clone() };
            assert!(nats <= other.nats_per_byte(&valid) + 1e-6, "α = {} is better than {}", other.alpha, tuned.alpha);
        }
    }

    #[test]
    fn random_bytes_cost_about_ln_256() {
        let mut state = 1u64;
        let mut byte = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        };
        let (train, valid): (Vec<u8>, Vec<u8>) =
            ((0..100_000).map(|_| byte()).collect(), (0..50_000).map(|_| byte()).collect());
        let valid = PairCounts::of_text(&valid);
        assert!(Bigram::tuned(&train, &valid).nats_per_byte(&valid) > 5.5);
    }

    #[test]
    fn batches_count_as_their_text() {
        let text: std::sync::Arc<[u8]> = b"the same tokens".as_slice().into();
        let batch = Batch {
            ids: text[..14].iter().map(|&b| b.into()).collect(),
            next: text[1..].iter().map(|&b| b.into()).collect(),
        };
        assert_eq!(PairCounts::of_batches([&batch]), PairCounts::of_text(&text));
    }
}
