//! Reads what libtest prints, and sums it: cases, failures, skips with their reasons.

use std::collections::BTreeMap;

/// Counts of one tier.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Cases that ran and passed.
    pub passed: u64,
    /// Cases that failed; a command that could not run at all counts as one.
    pub failed: u64,
    /// Skipped cases: reason → how many.
    pub skipped: BTreeMap<String, u64>,
}

impl Counts {
    /// All cases.
    pub fn cases(&self) -> u64 {
        self.passed + self.failed + self.skips()
    }

    /// Skipped cases.
    pub fn skips(&self) -> u64 {
        self.skipped.values().sum()
    }

    /// Adds another count.
    pub fn add(&mut self, other: Counts) {
        self.passed += other.passed;
        self.failed += other.failed;
        for (reason, n) in other.skipped {
            *self.skipped.entry(reason).or_default() += n;
        }
    }

    /// Reads the output of one run of a test command.
    pub fn of_run(output: &str) -> Counts {
        let mut counts = Counts::default();
        let mut ignored = 0;
        for line in output.lines() {
            if let Some(rest) = line.trim_start().strip_prefix("test result:") {
                counts.passed += number_before(rest, " passed");
                counts.failed += number_before(rest, " failed");
                ignored += number_before(rest, " ignored");
            } else if let Some((_, reason)) = line.split_once(" ... ignored, ") {
                counts.skip(reason);
            }
        }
        for _ in counts.skips()..ignored {
            counts.skip("ignored without a reason");
        }
        counts
    }

    /// Moves cases that reported a skip at run time (`name<TAB>reason` lines) from passed to skipped.
    pub fn take_skips(&mut self, lines: &str) {
        for line in lines.lines() {
            let reason = line.split_once('\t').map_or(line, |(_, reason)| reason);
            self.passed = self.passed.saturating_sub(1);
            self.skip(reason);
        }
    }

    /// One more skipped case.
    pub fn skip(&mut self, reason: &str) {
        *self.skipped.entry(reason.to_owned()).or_default() += 1;
    }
}

/// The names in the output of `-- --list`.
pub fn listed(output: &str) -> Vec<String> {
    output.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect()
}

fn number_before(text: &str, word: &str) -> u64 {
    let Some((before, _)) = text.split_once(word) else { return 0 };
    before.rsplit(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_runs_of_several_binaries() {
        let output = "\
test a ... ok
test b ... ignored, no card
test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.1s
test result: FAILED. 10 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out";
        let counts = Counts::of_run(output);
        assert_eq!((counts.passed, counts.failed, counts.skips(), counts.cases()), (13, 2, 2, 17));
        assert_eq!(counts.skipped["no card"], 1);
    }

    #[test]
    fn run_time_skips_are_not_passes() {
        let mut counts = Counts { passed: 2, ..Counts::default() };
        counts.take_skips("kernels::wgpu_maps\tno Vulkan driver\n");
        assert_eq!((counts.passed, counts.skips()), (1, 1));
    }

    #[test]
    fn lists_names() {
        assert_eq!(listed("a::b: test\nc: bench\n\n2 tests, 0 benchmarks"), ["a::b"]);
    }
}
