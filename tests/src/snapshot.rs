//! Expected texts kept in files: compared, or rewritten when `BLESS=1` is set.

use std::fs;
use std::path::Path;

/// Whether expected texts are rewritten instead of compared.
pub fn blessing() -> bool {
    std::env::var_os("BLESS").is_some_and(|v| v == "1")
}

/// Compares `actual` with the file, or rewrites the file under `BLESS=1`; the error shows the first line that differs.
pub fn check(path: &Path, actual: &str) -> Result<(), String> {
    if blessing() {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        }
        return fs::write(path, actual).map_err(|e| format!("{}: {e}", path.display()));
    }
    let expected = fs::read_to_string(path).unwrap_or_default();
    match first_difference(&expected, actual) {
        None => Ok(()),
        Some(what) => Err(format!("{} differs (BLESS=1 rewrites it)\n{what}\nin full:\n{actual}", path.display())),
    }
}

/// The first line in which two texts differ.
pub fn first_difference(expected: &str, actual: &str) -> Option<String> {
    if expected == actual {
        return None;
    }
    let (mut old, mut new) = (expected.lines(), actual.lines());
    let mut number = 1;
    loop {
        match (old.next(), new.next()) {
            (None, None) => return Some("the texts differ in their line ends".to_owned()),
            (a, b) if a == b => number += 1,
            (a, b) => {
                let (a, b) = (a.unwrap_or("(end)"), b.unwrap_or("(end)"));
                return Some(format!("line {number}\n  expected: {a}\n  actual:   {b}"));
            }
        }
    }
}
