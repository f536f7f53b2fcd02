//! Breaks the code one line at a time, in a copy of the tree, and checks that the tests notice.
//!
//! The list is `tests/mutants.txt`. Registry crates are shared with the tiers through the target folder; the copy's own crates
//! are built beside them, since cargo names them by path.

use crate::report::Counts;
use crate::workspace;
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// One broken line.
#[derive(Debug, PartialEq, Eq)]
pub struct Mutant {
    name: String,
    file: String,
    find: String,
    replace: String,
    /// Arguments of the `cargo test` that must notice.
    caught_by: String,
}

/// What the tests said.
enum Verdict {
    Caught(String),
    Survived,
    Invalid(String),
}

/// Runs the mutants whose names contain one of `args` (all if there is none); true when every one was caught.
pub fn run(args: &[String]) -> Result<bool, String> {
    let list_only = args.iter().any(|a| a == "--list");
    let wanted: Vec<&String> = args.iter().filter(|a| !a.starts_with("--")).collect();
    let path = workspace::root().join("tests/mutants.txt");
    let text = fs::read_to_string(&path).map_err(|e| format!("tests/mutants.txt: {e}"))?;
    let mutants: Vec<Mutant> = parse(&text)?
        .into_iter()
        .filter(|m| wanted.is_empty() || wanted.iter().any(|w| m.name.contains(w.as_str())))
        .collect();
    if list_only {
        for m in &mutants {
            println!("{:<34} {:<44} cargo test {}", m.name, m.file, m.caught_by);
        }
        return Ok(true);
    }
    let copy = copy_tree()?;
    let mut rows = Vec::new();
    let mut survivors = 0;
    let mut sound: HashSet<String> = HashSet::new();
    for mutant in &mutants {
        let begin = Instant::now();
        let verdict = judge(&copy, mutant, &mut sound)?;
        let said = match verdict {
            Verdict::Caught(by) => format!("caught by {by}"),
            Verdict::Survived => "SURVIVED".to_owned(),
            Verdict::Invalid(why) => format!("INVALID: {why}"),
        };
        survivors += usize::from(!said.starts_with("caught"));
        let row = format!("{:<34} {:>4} s  {said}", mutant.name, begin.elapsed().as_secs());
        println!("{row}");
        rows.push(row);
    }
    println!("\n{} mutants, {} caught, {survivors} not", rows.len(), rows.len() - survivors);
    Ok(survivors == 0 && !rows.is_empty())
}

/// Reads records of `name:`, `file:`, `find:`, `replace:`, `test:` lines, separated by blank lines; `#` starts a comment.
fn parse(text: &str) -> Result<Vec<Mutant>, String> {
    let mut mutants = Vec::new();
    for record in text.split("\n\n") {
        let lines: Vec<&str> = record.lines().filter(|l| !l.starts_with('#') && !l.trim().is_empty()).collect();
        if lines.is_empty() {
            continue;
        }
        let field = |key: &str| {
            lines
                .iter()
                .find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))
                .map(|v| v.strip_prefix(' ').unwrap_or(v).to_owned())
                .ok_or_else(|| format!("tests/mutants.txt: a record lacks `{key}:`\n{record}"))
        };
        mutants.push(Mutant {
            name: field("name")?,
            file: field("file")?,
            find: field("find")?,
            replace: field("replace")?,
            caught_by: field("test")?,
        });
    }
    Ok(mutants)
}

/// Copies every file that git knows or would add; files that did not change keep their times, so cargo rebuilds little.
fn copy_tree() -> Result<PathBuf, String> {
    let root = workspace::root();
    let copy = workspace::target().join("mutants/tree");
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(&root)
        .output()
        .map_err(|e| format!("git did not start: {e}"))?;
    for name in String::from_utf8_lossy(&listed.stdout).split('\0').filter(|n| !n.is_empty()) {
        let (from, to) = (root.join(name), copy.join(name));
        let Ok(new) = fs::read(&from) else { continue };
        if fs::read(&to).is_ok_and(|old| old == new) {
            continue;
        }
        write(&to, &new)?;
    }
    Ok(copy)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    let folder = path.parent().ok_or_else(|| format!("{} has no folder", path.display()))?;
    fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    fs::write(path, bytes).map_err(|e| format!("{}: {e}", path.display()))
}

fn judge(copy: &Path, mutant: &Mutant, sound: &mut HashSet<String>) -> Result<Verdict, String> {
    let path = copy.join(&mutant.file);
    let original = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", mutant.file))?;
    let places = original.matches(&mutant.find).count();
    if places != 1 {
        return Ok(Verdict::Invalid(format!("`{}` stands {places} times in {}", mutant.find, mutant.file)));
    }
    if !sound.contains(&mutant.caught_by) {
        let counts = test(copy, &mutant.caught_by)?.0;
        if counts.failed > 0 || counts.passed == 0 {
            return Ok(Verdict::Invalid(format!("without it {} cases fail and {} pass", counts.failed, counts.passed)));
        }
        sound.insert(mutant.caught_by.clone());
    }
    write(&path, original.replacen(&mutant.find, &mutant.replace, 1).as_bytes())?;
    let outcome = test(copy, &mutant.caught_by);
    write(&path, original.as_bytes())?;
    let (counts, output) = outcome?;
    if counts.cases() == 0 {
        return Ok(Verdict::Invalid(format!("no test ran: {}", last_error(&output))));
    }
    Ok(match first_failure(&output) {
        Some(case) if counts.failed > 0 => Verdict::Caught(case),
        _ if counts.failed > 0 => Verdict::Caught("a failing case".to_owned()),
        _ => Verdict::Survived,
    })
}

fn test(copy: &Path, arguments: &str) -> Result<(Counts, String), String> {
    let output = workspace::cargo()
        .arg("test")
        .args(arguments.split_whitespace())
        .current_dir(copy)
        .output()
        .map_err(|e| format!("cargo did not start: {e}"))?;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ok((Counts::of_run(&text), text))
}

fn first_failure(output: &str) -> Option<String> {
    output.lines().find_map(|l| Some(l.trim().strip_prefix("test ")?.split_once(" ... FAILED")?.0.trim().to_owned()))
}

fn last_error(output: &str) -> &str {
    output.lines().find(|l| l.starts_with("error")).unwrap_or("cargo said nothing")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_list() {
        let text = "# comment\nname: a\nfile: f.rs\nfind:   x + y\nreplace: x - y\ntest: -p kiln --lib a\n\n\n# end\n";
        let mutants = parse(text).unwrap();
        assert_eq!(mutants.len(), 1);
        assert_eq!((mutants[0].find.as_str(), mutants[0].replace.as_str()), ("  x + y", "x - y"));
    }

    #[test]
    fn an_incomplete_record_is_refused() {
        assert!(parse("name: a\nfile: f.rs\n").unwrap_err().contains("`find:`"));
    }
}
