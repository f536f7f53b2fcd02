//! The `sig` of an operation: `b s d, d -> b s d` in, labels per operand and result out.

use crate::diagnostics::Errors;
use syn::LitStr;

/// Most operands; with its results' cotangents the derivative of an operation must stay below as well.
pub const MOST_OPERANDS: usize = 12;
/// Most results.
pub const MOST_RESULTS: usize = 8;

/// Labels of the axes.
pub struct OpSig {
    /// Of each operand.
    pub operands: Vec<Vec<String>>,
    /// Of each result.
    pub results: Vec<Vec<String>>,
}

impl OpSig {
    /// Every label once, in order of appearance.
    pub fn labels(&self) -> Vec<&str> {
        let mut labels: Vec<&str> = Vec::new();
        for label in self.operands.iter().flatten() {
            if !labels.contains(&label.as_str()) {
                labels.push(label);
            }
        }
        labels
    }
}

const HELP: &str = "such as `\"b s d, d -> b s d\"`: a label for each axis of each operand, then of each result";

/// Reads the text; a mistake is reported on it.
pub fn parse_sig(literal: &LitStr, errors: &Errors) -> Option<OpSig> {
    match read(&literal.value()) {
        Ok(sig) => Some(sig),
        Err(message) => {
            errors.push(literal, "K0241", message, HELP);
            None
        }
    }
}

fn read(text: &str) -> Result<OpSig, String> {
    let (operands, results) = match text.split("->").collect::<Vec<_>>()[..] {
        [operands, results] => (operands, results),
        [_] => return Err(format!("`{text}` has no `->` between operands and results")),
        _ => return Err(format!("`{text}` has more than one `->`")),
    };
    if operands.trim().is_empty() {
        return Err(format!("`{text}` has no operand"));
    }
    let sig = OpSig { operands: lists(operands)?, results: lists(results)? };
    check(&sig)?;
    Ok(sig)
}

/// Lists of labels between commas; an empty one is a scalar.
fn lists(side: &str) -> Result<Vec<Vec<String>>, String> {
    side.split(',').map(|list| list.split_whitespace().map(label).collect()).collect()
}

fn label(word: &str) -> Result<String, String> {
    let starts = word.starts_with(|c: char| c.is_ascii_alphabetic());
    let goes_on = word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if starts && goes_on { Ok(word.to_owned()) } else { Err(format!("`{word}` is not a label")) }
}

fn check(sig: &OpSig) -> Result<(), String> {
    for list in sig.operands.iter().chain(&sig.results) {
        if let Some((_, label)) = list.iter().enumerate().find(|(i, label)| list[..*i].contains(label)) {
            return Err(format!(
                "`{label}` stands twice in `{}`: two axes of one tensor have two labels",
                list.join(" ")
            ));
        }
    }
    let labels = sig.labels();
    if let Some(unknown) = sig.results.iter().flatten().find(|l| !labels.contains(&l.as_str())) {
        return Err(format!("`{unknown}` is a label of a result, but of no operand"));
    }
    let counts = [(sig.operands.len(), MOST_OPERANDS, "operands"), (sig.results.len(), MOST_RESULTS, "results")];
    match counts.into_iter().find(|(n, most, _)| n > most) {
        Some((n, most, what)) => Err(format!("an operation has at most {most} {what}, this one has {n}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::read;

    #[test]
    fn labels_of_operands_and_results() {
        let sig = read("b s d, d, -> b s, ").expect("a sig");
        assert_eq!(sig.operands, [vec!["b", "s", "d"], vec!["d"], vec![]]);
        assert_eq!(sig.results, [vec!["b", "s"], vec![]]);
        assert_eq!(sig.labels(), ["b", "s", "d"]);
    }

    #[test]
    fn mistakes_name_the_label() {
        let mistake = |text: &str| read(text).err().expect("a mistake");
        assert!(mistake("b s").contains("no `->`"));
        assert!(mistake("b -> s -> d").contains("more than one"));
        assert!(mistake(" -> b").contains("no operand"));
        assert!(mistake("b s -> b t").contains("`t` is a label of a result"));
        assert!(mistake("b b -> b").contains("`b` stands twice"));
        assert!(mistake("b 2 -> b").contains("`2` is not a label"));
        assert!(mistake(&format!("a{} -> a", ", a".repeat(12))).contains("at most 12 operands"));
    }
}
