//! A markdown page taken apart: its links, its fenced blocks, and the crate that a sequence of pages describes. Reads no file.

use std::collections::BTreeMap;

/// A fenced block.
pub struct Fence {
    /// The last line above it that is not empty.
    pub above: String,
    /// What stands behind the three backticks.
    pub info: String,
    /// Its lines.
    pub text: String,
}

/// All fenced blocks of a page.
pub fn fences(page: &str) -> Vec<Fence> {
    let mut found = Vec::new();
    let mut open: Option<Fence> = None;
    let mut above = String::new();
    for line in page.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(info)) => {
                open = Some(Fence { above: above.clone(), info: info.trim().to_owned(), text: String::new() });
            }
            (Some(_), Some(_)) => found.extend(open.take()),
            (Some(fence), None) => {
                fence.text.push_str(line);
                fence.text.push('\n');
            }
            (None, None) if !line.trim().is_empty() => above = line.to_owned(),
            (None, None) => {}
        }
    }
    found
}

/// The page without its fenced blocks.
pub fn prose(page: &str) -> String {
    let mut inside = false;
    let mut text = String::new();
    for line in page.lines() {
        inside ^= line.starts_with("```");
        if !inside && !line.starts_with("```") {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

/// Targets of `[text](target)`, in order.
pub fn links(page: &str) -> Vec<String> {
    let prose = prose(page);
    let targets = prose.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0.to_owned()));
    targets.collect()
}

/// The files of a crate: a block under a line such as `*src/lib.rs*` is the next piece of that file. Hidden lines, which begin
/// with `# `, are context for the block alone and belong to no file.
pub fn files(pages: &[String]) -> BTreeMap<String, String> {
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    for fence in pages.iter().flat_map(|page| fences(page)) {
        let name = fence.above.trim().strip_prefix('*').and_then(|rest| rest.strip_suffix('*'));
        let is_code = ["rust", "toml"].iter().any(|language| fence.info.starts_with(language));
        let Some(name) = name.filter(|name| is_code && !name.contains(' ')) else { continue };
        let file = files.entry(name.to_owned()).or_default();
        if !file.is_empty() {
            file.push('\n');
        }
        for line in fence.text.lines().filter(|line| *line != "#" && !line.starts_with("# ")) {
            file.push_str(line);
            file.push('\n');
        }
    }
    files
}
