//! Diagnostics: a code, a message in the user's words, a suggested edit.

use std::fmt;

/// One mistake, without its position: the caller knows which tokens stand for which operand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Code such as `K0101`, explained in the book.
    pub code: &'static str,
    /// What is wrong, with axis and layer names.
    pub message: String,
    /// What to write instead.
    pub help: Option<String>,
}

impl Diagnostic {
    /// A diagnostic without help.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Diagnostic { code, message: message.into(), help: None }
    }

    /// Adds what to write instead.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)?;
        match &self.help {
            Some(h) => write!(f, "\n  help: {h}"),
            None => Ok(()),
        }
    }
}

/// Every code with its title; one meaning each, explained in the book.
pub const CODES: &[(&str, &str)] = &[
    ("K0101", "contraction of different axes"),
    ("K0102", "element-wise operation on different axes"),
    ("K0103", "the operand lacks an axis"),
    ("K0104", "an axis would appear twice"),
    ("K0105", "wrong kind of elements"),
    ("K0106", "wrong number of axes"),
    ("K0107", "one einsum letter on two axes"),
    ("K0108", "malformed einsum"),
    ("K0109", "an axis of one operand is missing from the result"),
    ("K0110", "attention: queries, keys and values do not fit"),
    ("K0111", "the weight does not lie along the normalised axis"),
    ("K0112", "targets do not cover the positions"),
    ("K0113", "not a permutation"),
    ("K0114", "merged axes are not adjacent"),
    ("K0115", "broadcast would drop an axis"),
    ("K0116", "wrong number of operands"),
    ("K0117", "missing or unfit attribute"),
    ("K0118", "number out of range"),
    ("K0119", "concatenated tensors differ in another axis"),
    ("K0120", "wrong kind of argument"),
    ("K0121", "one axis with two sizes"),
    ("K0122", "wrong number of axes or elements of a host tensor"),
    ("K0123", "size of an axis that an eager run does not know"),
    ("K0124", "reference of an operation against its sig"),
    ("K0341", "rounds of a recorded loop differ"),
    ("K0343", "value of a recorded loop's body read after the loop"),
    ("K0344", "recorded loop left before its end"),
    ("K0345", "recorded body reads a foreign tensor"),
    ("K0346", "value read while recording"),
    ("K0347", "not a child of the recorded layer"),
    ("K0411", "not exactly one axis to split"),
    ("K0417", "an operation needs the split axis whole"),
    ("K0418", "the split axis leaves its layer"),
    ("K0419", "no parameter has the axis to split"),
    ("K0801", "no state file"),
    ("K0802", "state file cannot be read or written"),
    ("K0803", "damaged state file"),
    ("K0804", "not a state file of Kiln"),
    ("K0805", "state file of a later format"),
    ("K0806", "name that a state file cannot hold"),
    ("K0807", "shape that is not its values'"),
    ("K0808", "missing value in a state file"),
    ("K0809", "state that does not fit the model"),
    ("K0811", "corpus cannot be read"),
    ("K0812", "corpus without text"),
    ("K0813", "corpus too small"),
    ("K0814", "no default corpus"),
    ("K0821", "run exists already"),
    ("K0822", "no run to resume"),
    ("K0823", "configuration differs from the run's"),
    ("K0824", "run folder cannot be used"),
    ("K0825", "damaged metrics file"),
    ("K0841", "unusable learning rate"),
    ("K0842", "optimizer value out of range"),
    ("K0843", "conflicting or unusable option"),
];
