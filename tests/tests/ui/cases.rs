//! Reads the cases: files under `ui/fail` and `ui/pass`, and the marks in the failing ones.

use kiln_tests::folders;
use std::fs;

/// Whether a case must be refused or accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Must give exactly the marked errors.
    Fail,
    /// Must give neither error nor warning.
    Pass,
}

/// One file.
#[derive(Clone, Debug)]
pub struct Case {
    /// Refused or accepted.
    pub kind: Kind,
    /// File name without extension; the two files of a pair share it.
    pub stem: String,
    /// The text.
    pub source: String,
}

/// `//~ K0101 token`: on the next line that is no mark, this token gets this code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The code.
    pub code: String,
    /// The text under the caret.
    pub token: String,
    /// Line from 1.
    pub line: usize,
}

impl Case {
    /// Name of the test.
    pub fn name(&self) -> String {
        match self.kind {
            Kind::Fail => format!("fail/{}", self.stem),
            Kind::Pass => format!("pass/{}", self.stem),
        }
    }

    /// Name of the example in the generated crate.
    pub fn example(&self) -> String {
        self.name().replace('/', "_")
    }

    /// The expected errors.
    pub fn marks(&self) -> Vec<Mark> {
        let lines: Vec<&str> = self.source.lines().collect();
        let is_mark = |l: &str| l.trim_start().starts_with("//~");
        let mut marks = Vec::new();
        for (i, line) in lines.iter().enumerate() {
            let Some(mark) = line.trim_start().strip_prefix("//~") else { continue };
            let (code, token) = mark.trim().split_once(' ').unwrap_or((mark.trim(), ""));
            let below = lines[i + 1..].iter().position(|l| !is_mark(l)).unwrap_or(0);
            marks.push(Mark { code: code.to_owned(), token: token.trim().to_owned(), line: i + 2 + below });
        }
        marks
    }
}

/// All cases, failing ones first, in the order of their names.
pub fn read() -> Vec<Case> {
    let mut cases = Vec::new();
    for (kind, folder) in [(Kind::Fail, "fail"), (Kind::Pass, "pass")] {
        for path in folders::files(&folders::root().join("tests/ui").join(folder), "rs") {
            let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
            let source = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            cases.push(Case { kind, stem, source });
        }
    }
    cases
}
