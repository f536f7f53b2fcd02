//! Tokens in, the user's own spelling of them out, on one line, for messages. Never parses them.

use proc_macro2::{LineColumn, TokenStream, TokenTree};
use quote::ToTokens;

/// Longer spellings are underlined, not quoted: a message is one line.
const LONGEST: usize = 40;

/// The user's spelling of some tokens: spaces stand where the user put some.
pub fn text(tokens: &impl ToTokens) -> String {
    let mut spelling = Spelling { text: String::new(), end: None };
    spelling.stream(tokens.to_token_stream());
    spelling.text
}

/// A name for some tokens in a message: their spelling, or `this value` where that is long.
pub fn describe(tokens: &impl ToTokens) -> String {
    let s = text(tokens);
    if s.chars().count() <= LONGEST { s } else { "this value".to_owned() }
}

struct Spelling {
    text: String,
    /// Where the last token ends in the user's file.
    end: Option<LineColumn>,
}

impl Spelling {
    fn stream(&mut self, tokens: TokenStream) {
        for t in tokens {
            match t {
                TokenTree::Group(g) => {
                    // Syn makes groups anew, with the whole span for each delimiter.
                    let (open, close) = delimiters(&g);
                    let (start, end) = (g.span_open().start(), g.span_close().end());
                    self.token(open, start, LineColumn { column: start.column + 1, ..start });
                    self.stream(g.stream());
                    self.token(close, LineColumn { column: end.column.saturating_sub(1), ..end }, end);
                }
                other => self.token(&other.to_string(), other.span().start(), other.span().end()),
            }
        }
    }

    fn token(&mut self, token: &str, start: LineColumn, end: LineColumn) {
        // A group without delimiters.
        if token.is_empty() {
            return;
        }
        let apart = self.end.is_some_and(|end| end != start);
        let broken_line = self.end.is_some_and(|end| end.line != start.line);
        // A chain of methods and a list of arguments go on over lines without a space, a list with a spare comma.
        match token {
            ")" | "]" if broken_line => self.text.truncate(self.text.trim_end_matches(',').len()),
            _ if broken_line && (token == "." || self.text.ends_with(['(', '['])) => {}
            _ if apart => self.text.push(' '),
            _ => {}
        }
        self.text.push_str(token);
        self.end = Some(end);
    }
}

fn delimiters(group: &proc_macro2::Group) -> (&'static str, &'static str) {
    match group.delimiter() {
        proc_macro2::Delimiter::Parenthesis => ("(", ")"),
        proc_macro2::Delimiter::Brace => ("{", "}"),
        proc_macro2::Delimiter::Bracket => ("[", "]"),
        proc_macro2::Delimiter::None => ("", ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spelled(source: &str) -> String {
        text(&source.parse::<TokenStream>().unwrap())
    }

    #[test]
    fn spaces_are_the_users() {
        for source in ["Tensor<B, S, { H * K }>", "x.rms_norm(n1, 1e-5)", "!causal", "-x * 2.0", "a::b(&c)[0]"] {
            assert_eq!(spelled(source), source);
        }
    }

    #[test]
    fn groups_made_anew_keep_their_spelling() {
        let e: syn::Expr = syn::parse_str("x.matmul(w1).silu()[f(a)]").unwrap();
        assert_eq!(text(&e), "x.matmul(w1).silu()[f(a)]");
    }

    #[test]
    fn a_chain_over_lines_is_one_line() {
        assert_eq!(spelled("x\n    .matmul(\n        w,\n    )\n    .silu()"), "x.matmul(w).silu()");
    }

    #[test]
    fn long_spellings_are_not_quoted() {
        assert_eq!(describe(&"x.matmul(gate)".parse::<TokenStream>().unwrap()), "x.matmul(gate)");
        assert_eq!(describe(&"a_long_name + ".repeat(9).parse::<TokenStream>().unwrap()), "this value");
    }
}
