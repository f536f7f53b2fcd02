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
    ("K0201", "a layer is a plain function"),
    ("K0202", "an argument is a single name"),
    ("K0203", "not an axis of the layer"),
    ("K0204", "an axis twice in one tensor"),
    ("K0205", "not the type of an input"),
    ("K0206", "not what a layer returns"),
    ("K0207", "a parameter without its initial value"),
    ("K0208", "not an initial value"),
    ("K0209", "`frozen` without `param`"),
    ("K0210", "two kinds of one argument"),
    ("K0211", "not a child layer"),
    ("K0212", "`state` is not in force"),
    ("K0213", "not a host scalar"),
    ("K0214", "layer and axis of one name"),
    ("K0215", "generic parameters are axes"),
    ("K0216", "`cfg` on an argument"),
    ("K0217", "not an option of `layer`"),
    ("K0218", "a parameter is a float tensor"),
    ("K0219", "a tensor type without its axes"),
    ("K0220", "the axis of the copies is a dimension too"),
    ("K0222", "not the name of an axis"),
    ("K0223", "malformed `axes!`"),
    ("K0224", "an axis declared twice"),
    ("K0225", "malformed `sizes!`"),
    ("K0226", "two sizes of one axis"),
    ("K0240", "not an option of `op`"),
    ("K0241", "malformed `sig` of an operation"),
    ("K0242", "arguments that are not those of an operation's `sig`"),
    ("K0243", "an operation is a plain function"),
    ("K0244", "the host reference of an operation"),
    ("K0245", "a derivative that does not fit its operation"),
    ("K0301", "outside the grammar of a body"),
    ("K0302", "not a method of tensors"),
    ("K0305", "the type of a call's result is unknown"),
    ("K0306", "the carried value changes its type"),
    ("K0307", "the value is not of the `let` type"),
    ("K0308", "the value is not of the returned type"),
    ("K0309", "a loop carries one tensor"),
    ("K0310", "not a host flag"),
    ("K0311", "branches of different types"),
    ("K0317", "a child has `forward` only"),
    ("K0318", "a `Repeat` outside a loop"),
    ("K0321", "the base of a rope is a number"),
    ("K0323", "not a tensor"),
    ("K0324", "`no_fuse` on no operation"),
    ("K0328", "an early return"),
    ("K0329", "not an argument of a child"),
    ("K0330", "a rope over other axes"),
    ("K0331", "an item in a body"),
    ("K0341", "rounds of a recorded loop differ"),
    ("K0343", "value of a recorded loop's body read after the loop"),
    ("K0344", "recorded loop left before its end"),
    ("K0345", "recorded body reads a foreign tensor"),
    ("K0346", "value read while recording"),
    ("K0347", "not a child of the recorded layer"),
    ("K0401", "an annotation without `layer`"),
    ("K0402", "not a form of `checkpoint`"),
    ("K0403", "`save` of an unknown name"),
    ("K0404", "not a number of bytes"),
    ("K0405", "an annotation twice"),
    ("K0406", "not a compute type"),
    ("K0407", "not an option of `precision`"),
    ("K0408", "f16 without f32 master weights"),
    ("K0409", "not a mesh axis"),
    ("K0411", "not exactly one axis to split"),
    ("K0412", "`pipeline` without a `Repeat`"),
    ("K0413", "`shard` on another argument"),
    ("K0414", "`shard` of an argument on a layer"),
    ("K0415", "trained parameters of a weight-only type"),
    ("K0416", "an annotation of layers on an argument"),
    ("K0417", "an operation needs the split axis whole"),
    ("K0418", "the split axis leaves its layer"),
    ("K0419", "no parameter has the axis to split"),
    ("K0501", "an argument over other axes than the child's"),
    ("K0502", "an argument of another kind than the child's"),
    ("K0503", "a result of another type than the child's"),
    ("K0504", "the child has no such parameter"),
    ("K0505", "a child's parameter of another type"),
    ("K0506", "an axis under another name"),
    ("K0507", "a result over other axes than the operation's"),
    ("K0601", "a gradient path without a derivative"),
    ("K0602", "two operations of one name"),
    ("K0801", "out of memory"),
    ("K0802", "no worker threads"),
    ("K0804", "operation without a kernel on the device"),
    ("K0805", "batch that does not fit the model"),
    ("K0806", "batch without targets"),
    ("K0807", "loss that is not finite"),
    ("K0808", "state of another session"),
    ("K0809", "region that the device cannot plan"),
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
    ("K0861", "no state file"),
    ("K0862", "state file cannot be read or written"),
    ("K0863", "damaged state file"),
    ("K0864", "not a state file of Kiln"),
    ("K0865", "state file of a later format"),
    ("K0866", "name that a state file cannot hold"),
    ("K0867", "shape that is not its values'"),
    ("K0868", "missing value in a state file"),
    ("K0869", "state that does not fit the model"),
];
