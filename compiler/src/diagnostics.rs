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
pub const CODES: &[(&str, &str)] = &[("K0101", "contraction of different axes")];
