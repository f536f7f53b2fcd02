//! The error bag of one expansion: every mistake with the tokens that must change, reported together; losing one is a panic.

use kiln_compiler::diagnostics::Diagnostic;
use kiln_compiler::ops::TypeError;
use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote_spanned};
use std::cell::{Cell, RefCell};

/// One mistake and the tokens under which it is shown.
pub struct Reported {
    /// The smallest tokens that must change.
    pub tokens: TokenStream,
    /// What is wrong.
    pub diagnostic: Diagnostic,
}

impl Reported {
    /// First position of the tokens.
    pub fn span(&self) -> Span {
        self.tokens.clone().into_iter().next().map_or_else(Span::call_site, |t| t.span())
    }

    /// `compile_error!` shown under the tokens.
    pub fn to_compile_error(&self) -> TokenStream {
        syn::Error::new_spanned(&self.tokens, self.diagnostic.to_string()).to_compile_error()
    }
}

/// All mistakes of one layer, in source order.
pub struct Diagnosed {
    /// The mistakes.
    pub list: Vec<Reported>,
    /// Whether rustc would refuse the body for a reason that is reported here already: one mistake, one error.
    pub rustc_repeats: bool,
}

/// Collects the mistakes of one layer.
///
/// Dropping it without [`Errors::finish`] is a bug of Kiln and panics, so no diagnostic is lost.
pub struct Errors {
    list: RefCell<Option<Vec<Reported>>>,
    rustc_repeats: Cell<bool>,
}

impl Errors {
    /// None yet.
    pub fn new() -> Self {
        Errors { list: RefCell::new(Some(Vec::new())), rustc_repeats: Cell::new(false) }
    }

    /// Adds a mistake.
    pub fn report(&self, tokens: impl ToTokens, diagnostic: Diagnostic) {
        if let Some(list) = self.list.borrow_mut().as_mut() {
            list.push(Reported { tokens: tokens.into_token_stream(), diagnostic });
        }
    }

    /// Adds a mistake from its parts.
    pub fn push(&self, tokens: impl ToTokens, code: &'static str, message: impl Into<String>, help: impl Into<String>) {
        self.report(tokens, Diagnostic::new(code, message).help(help));
    }

    /// Adds what an operation's type rule says.
    pub fn type_error(&self, tokens: impl ToTokens, error: &TypeError) {
        self.report(tokens, error.diagnostic());
    }

    /// Adds a mistake that rustc would report again in the emitted body; see [`Diagnosed::rustc_repeats`].
    pub fn push_instead_of_rustc(
        &self,
        tokens: impl ToTokens,
        code: &'static str,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.rustc_repeats.set(true);
        self.push(tokens, code, message, help);
    }

    /// Leaves the body to rustc no more: what is wrong with it is reported by a check outside of this bag.
    pub fn leave_body_out(&self) {
        self.rustc_repeats.set(true);
    }

    /// As [`Errors::push_instead_of_rustc`], for what an operation's type rule says.
    pub fn type_error_instead_of_rustc(&self, tokens: impl ToTokens, error: &TypeError) {
        self.rustc_repeats.set(true);
        self.type_error(tokens, error);
    }

    /// Whether nothing was reported so far.
    pub fn is_empty(&self) -> bool {
        self.list.borrow().as_ref().is_none_or(Vec::is_empty)
    }

    /// All mistakes in source order; this is the check without which dropping panics.
    pub fn finish(self) -> Diagnosed {
        let mut list = self.list.borrow_mut().take().unwrap_or_default();
        list.sort_by_key(|r| (r.span().start().line, r.span().start().column));
        Diagnosed { list, rustc_repeats: self.rustc_repeats.get() }
    }
}

impl Drop for Errors {
    fn drop(&mut self) {
        if self.list.borrow().is_some() && !std::thread::panicking() {
            panic!("Kiln forgot to check for errors of a layer");
        }
    }
}

/// `compile_error!` for each mistake.
pub fn compile_errors(list: &[Reported]) -> TokenStream {
    list.iter().map(Reported::to_compile_error).collect()
}

/// A single mistake in one of the small macros.
pub fn single(span: Span, code: &'static str, message: impl Into<String>, help: impl Into<String>) -> TokenStream {
    let text = Diagnostic::new(code, message).help(help).to_string();
    quote_spanned! { span => ::core::compile_error! { #text } }
}

/// As [`single`], under some tokens.
pub fn single_under(
    tokens: &TokenStream,
    code: &'static str,
    message: impl Into<String>,
    help: impl Into<String>,
) -> TokenStream {
    Reported { tokens: tokens.clone(), diagnostic: Diagnostic::new(code, message).help(help) }.to_compile_error()
}

/// The candidate closest to `word`, if one is close enough to be a slip of the keyboard.
pub fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // One edit for three letters is a typing error; more is another word.
    let limit = 1 + word.chars().count() / 3;
    candidates.into_iter().map(|c| (distance(word, c), c)).filter(|(d, _)| *d <= limit).min().map(|(_, c)| c)
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// Names as an enumeration: `B, S and D`.
pub fn listed<T: ToString>(names: impl IntoIterator<Item = T>) -> String {
    let names: Vec<String> = names.into_iter().map(|n| n.to_string()).collect();
    match names.as_slice() {
        [] => "none".to_owned(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "forgot to check")]
    fn an_unchecked_bag_panics() {
        let errors = Errors::new();
        errors.push(quote::quote!(x), "K0301", "message", "help");
    }

    #[test]
    fn slips_of_the_keyboard_are_found() {
        assert_eq!(closest("sliu", ["silu", "gelu"]), Some("silu"));
        assert_eq!(closest("convolve", ["silu", "gelu"]), None);
    }
}
