//! The tidy tier: the tree is as ARCHITECTURE.md and STYLE.md say.

use kiln::device::cube::library_kernels;
use kiln_tests::folders;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Folders of Rust sources that are ours.
const SOURCES: &[&str] = &["compiler", "macros", "runtime", "examples", "tests", "bench", "xtask"];

/// A source file: its path from the root with `/`, and its lines.
struct Source {
    path: String,
    text: String,
}

impl Source {
    /// Lines with their numbers from 1, without comments.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(i, l)| (i + 1, code_of(l)))
    }

    /// As [`Source::code`], up to the unit tests; nothing of a file of unit tests.
    fn product_code(&self) -> impl Iterator<Item = (usize, &str)> {
        let is_test_file = self.path.contains("/tests/") || self.path.ends_with("/tests.rs");
        let unit_tests = self.text.find("#[cfg(test)]\nmod tests {");
        let end = if is_test_file { 0 } else { unit_tests.unwrap_or(self.text.len()) };
        let lines = self.text[..end].lines().count();
        self.code().take(lines)
    }
}

/// The line up to `//`; the marker inside a string ends it too, which only makes the checks laxer.
fn code_of(line: &str) -> &str {
    line.find("//").map_or(line, |at| &line[..at])
}

fn sources(folders: &[&str]) -> Vec<Source> {
    let root = folders::root();
    let mut found = Vec::new();
    for path in folders.iter().flat_map(|f| folders::files(&root.join(f), "rs")) {
        let name = relative(&root, &path);
        let generated = name.split('/').any(|part| part == "target");
        if !generated {
            let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
            found.push(Source { path: name, text });
        }
    }
    assert!(!found.is_empty(), "no source in {folders:?}");
    found
}

fn relative(root: &Path, path: &Path) -> String {
    let inside = path.strip_prefix(root).unwrap_or(path);
    inside.components().map(|c| c.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}

fn read(name: &str) -> String {
    fs::read_to_string(folders::root().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn report(broken: Vec<String>) {
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

/// The section of a markdown file under `## title`.
fn section<'a>(text: &'a str, title: &str) -> &'a str {
    let head = format!("\n## {title}\n");
    let from = text.find(&head).unwrap_or_else(|| panic!("no section `{title}`")) + head.len();
    let rest = &text[from..];
    rest.find("\n## ").map_or(rest, |to| &rest[..to])
}

/// Text between single backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn code_map_is_the_tree() {
    let page = read("ARCHITECTURE.md");
    let listed: BTreeSet<String> = section(&page, "Code map")
        .lines()
        .filter_map(|row| quoted(row.strip_prefix("| ")?).next())
        .map(str::to_owned)
        .collect();
    let mut actual = BTreeSet::new();
    for source in sources(SOURCES) {
        let folder = source.path.rsplit_once('/').map_or("", |(folder, _)| folder).to_owned() + "/";
        // One line of the map stands for all operations, and one for all ui cases.
        let is_op = folder.strip_prefix("compiler/src/ops/").is_some_and(|rest| !rest.is_empty());
        actual.insert(if is_op { "compiler/src/ops/<op>/".to_owned() } else { folder });
    }
    let unlisted = actual.difference(&listed).map(|f| format!("{f} is not in the code map of ARCHITECTURE.md"));
    let gone = listed.iter().filter(|f| !f.contains('<') && !folders::root().join(f).exists());
    report(unlisted.chain(gone.map(|f| format!("{f} is in the code map, but not in the tree"))).collect());
}

#[test]
fn invariants_name_tests_that_exist() {
    let page = read("ARCHITECTURE.md");
    let sources = sources(SOURCES);
    let mut broken = Vec::new();
    let mut item = String::new();
    let mut items = Vec::new();
    for line in section(&page, "Invariants").lines().chain(["0. end"]) {
        if line.starts_with(|c: char| c.is_ascii_digit()) && !item.is_empty() {
            items.push(std::mem::take(&mut item));
        }
        if !line.trim().is_empty() && (line.starts_with(|c: char| c.is_ascii_digit()) || !item.is_empty()) {
            item.push_str(line.trim());
            item.push(' ');
        }
    }
    assert!(items.len() >= 8, "only {} invariants found", items.len());
    for item in items {
        match item.split_once("Held by ") {
            None => broken.push(format!("names no test: {item}")),
            Some((_, tests)) => {
                for name in quoted(tests) {
                    let function = format!("fn {}(", name.rsplit("::").next().unwrap_or(name));
                    if !sources.iter().any(|s| s.text.contains(&function)) && !folders::root().join(name).exists() {
                        broken.push(format!("`{name}` does not exist: {item}"));
                    }
                }
            }
        }
    }
    report(broken);
}

#[test]
fn every_file_opens_with_its_sentence() {
    let lacks = |s: &Source| !s.text.starts_with("//!") && !s.path.starts_with("tests/ui/");
    report(
        sources(SOURCES).into_iter().filter(lacks).map(|s| format!("{} does not open with `//!`", s.path)).collect(),
    );
}

#[test]
fn files_have_names_of_things() {
    let vague = ["utils", "util", "helpers", "common", "base", "misc"];
    let is_vague = |path: &str| path.split(['/', '.']).any(|part| vague.contains(&part));
    report(sources(SOURCES).into_iter().filter(|s| is_vague(&s.path)).map(|s| s.path).collect());
}

#[test]
fn one_operation_is_one_registered_folder() {
    let folder = folders::root().join("compiler/src/ops");
    let registry = fs::read_to_string(folder.join("mod.rs")).expect("the registry of operations");
    let mut broken = Vec::new();
    let entries = fs::read_dir(&folder).expect("the folder of operations").flatten().map(|e| e.path());
    for op in entries.filter(|p| p.is_dir()) {
        let name = relative(&folder, &op);
        match fs::read_to_string(op.join("mod.rs")) {
            Err(_) => broken.push(format!("ops/{name} has no mod.rs")),
            Ok(text) if !text.contains("OpDef") => broken.push(format!("ops/{name} defines no operation")),
            Ok(_) => {}
        }
        if !registry.contains(&format!("{name}::")) {
            broken.push(format!("ops/{name} is not in the registry"));
        }
    }
    report(broken);
}

#[test]
fn only_the_device_layer_names_cubecl() {
    // The emitter and the macros write the word into tokens, which name it through `kiln::__private`.
    let allowed = |path: &str| {
        ["compiler/src/emit/", "runtime/src/kernels/"].iter().any(|f| path.starts_with(f))
            || ["cube.rs", "wgpu.rs", "cuda.rs"].iter().any(|f| path == format!("runtime/src/device/{f}"))
            || path.starts_with("runtime/src/device/cube/")
            || path == "runtime/src/__private.rs"
    };
    let mut broken = Vec::new();
    for source in sources(&["compiler", "macros", "runtime", "examples"]).into_iter().filter(|s| !allowed(&s.path)) {
        broken.extend(
            source
                .code()
                .filter(|(_, l)| l.contains("cubecl"))
                .map(|(n, l)| format!("{}:{n}: {}", source.path, l.trim())),
        );
    }
    report(broken);
}

#[test]
fn every_kernel_of_the_library_is_in_the_catalog() {
    // The other entry is for regions, whose kernels are those of layers.
    const OF_REGIONS: &str = "program";
    let listed: BTreeSet<String> = library_kernels().iter().map(|k| k.name().to_owned()).collect();
    let mut defined = BTreeSet::new();
    for source in sources(&["runtime/src/kernels"]) {
        let names = source.code().filter_map(|(_, l)| l.split_once("fn define_")?.1.split_once('('));
        defined.extend(names.map(|(name, _)| name.to_owned()).filter(|name| name != OF_REGIONS));
    }
    assert!(defined.len() >= 20, "only {defined:?} found");
    let absent = defined.difference(&listed).map(|name| format!("`define_{name}` is not in `library_kernels()`"));
    let unknown = listed.difference(&defined).map(|name| format!("`{name}` has no `define_{name}`"));
    report(absent.chain(unknown).collect());
}

#[test]
fn gpu_files_do_not_reach_into_the_host() {
    let mut broken = Vec::new();
    let is_gpu = |path: &str| path.starts_with("runtime/src/device/") && !path.starts_with("runtime/src/device/host");
    for source in sources(&["runtime"]).into_iter().filter(|s| is_gpu(&s.path) && !s.path.ends_with("device/mod.rs")) {
        let reaches = |l: &str| l.contains("device::host") || l.contains("super::host") || l.contains("host::{");
        broken.extend(
            source
                .product_code()
                .filter(|(_, l)| reaches(l))
                .map(|(n, l)| format!("{}:{n}: {}", source.path, l.trim())),
        );
    }
    report(broken);
}

#[test]
fn bytes_are_copied_and_counted_in_one_place() {
    let counted = |words: &[&str]| -> Vec<(String, usize)> {
        let uses = |s: &Source| s.product_code().filter(|(_, l)| words.iter().any(|w| l.contains(w))).count();
        sources(&["runtime"]).iter().map(|s| (s.path.clone(), uses(s))).filter(|(_, n)| *n > 0).collect()
    };
    for (call, counter) in [(".copy_in(", "h2d.fetch_add"), (".copy_out(", "d2h.fetch_add")] {
        let files = counted(&[call, counter]);
        assert_eq!(files, [("runtime/src/device/cube.rs".to_owned(), 2)], "one `{call}`, beside its counter");
    }
    // What servers copy with, and nobody else.
    for (copies, server) in [
        (["create_from_slice(", "read_one("], "cube/server.rs"),
        (["staging.copy(", "memcpy_dtoh_async("], "cuda/server.rs"),
    ] {
        assert_eq!(counted(&copies), [(format!("runtime/src/device/{server}"), 2)], "{copies:?}");
    }
}

#[test]
fn no_file_of_the_compiler_or_the_runtime_names_a_model() {
    let models = ["gpt", "swiglu", "llama", "mlp", "bert", "resnet", "mistral", "qwen", "scorer", "objective"];
    let mut broken = Vec::new();
    for source in sources(&["compiler/src", "runtime/src"]) {
        for (number, line) in source.product_code() {
            let mut words = line.split(|c: char| !c.is_alphanumeric()).map(str::to_lowercase);
            if words.any(|w| models.contains(&w.as_str())) {
                broken.push(format!("{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    report(broken);
}

#[test]
fn nothing_is_left_undone_in_code() {
    // In parts, so that this file does not contain them.
    let undone: Vec<String> = [
        ["to", "do!("],
        ["unimple", "mented!("],
        ["FIX", "ME"],
        ["TO", "DO"],
        ["XX", "X"],
        ["allow(dead", "_code)"],
        ["_v", "2("],
    ]
    .iter()
    .map(|parts| parts.concat())
    .collect();
    let mut broken = Vec::new();
    for source in sources(SOURCES) {
        for (number, line) in source.text.lines().enumerate() {
            if undone.iter().any(|word| line.contains(word)) {
                broken.push(format!("{}:{}: {}", source.path, number + 1, line.trim()));
            }
        }
    }
    report(broken);
}

#[test]
fn product_code_does_not_unwrap() {
    let mut broken = Vec::new();
    for source in sources(&["compiler/src", "macros/src", "runtime/src"]) {
        broken.extend(
            source
                .product_code()
                .filter(|(_, l)| l.contains(".unwrap()"))
                .map(|(n, l)| format!("{}:{n}: {}", source.path, l.trim())),
        );
    }
    report(broken);
}

#[test]
fn unsafe_states_its_bounds() {
    let mut broken = Vec::new();
    for source in sources(SOURCES) {
        let lines: Vec<&str> = source.text.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            let code = code_of(line);
            let opens = ["unsafe {", "unsafe impl"].iter().any(|w| code.contains(w)) && !code.contains('"');
            let states = |l: &&str| l.contains("SAFETY");
            if opens && !lines[i.saturating_sub(8)..=i].iter().any(states) {
                broken.push(format!("{}:{}: no SAFETY line above", source.path, i + 1));
            }
        }
    }
    report(broken);
}

#[test]
fn dependencies_have_reasons() {
    let manifest = read("Cargo.toml");
    let from = manifest.find("[workspace.dependencies]").expect("shared dependencies");
    let mut broken = Vec::new();
    let mut has_reason = false;
    for line in manifest[from..].lines().skip(1).take_while(|l| !l.starts_with('[')) {
        if line.starts_with('#') {
            has_reason = true;
        } else if line.trim().is_empty() {
            has_reason = false;
        } else if !has_reason && !line.contains("path = ") {
            // A reason covers the lines below it up to the next one.
            broken.push(format!("no reason above: {line}"));
        }
    }
    report(broken);
}

#[test]
fn text_files_hold_no_path_of_one_machine() {
    let root = folders::root();
    let places: Vec<String> = ["root", "home", "work"].iter().map(|p| format!("/{p}/")).collect();
    let mut texts: Vec<PathBuf> = SOURCES.iter().flat_map(|f| folders::files(&root.join(f), "rs")).collect();
    for (folder, extension) in [("book", "md"), ("tests", "py"), ("tests", "toml"), ("bench", "py")] {
        texts.extend(folders::files(&root.join(folder), extension));
    }
    texts.extend(["README.md", "ARCHITECTURE.md", "STYLE.md", "CHANGELOG.md", ".ci/run"].map(|f| root.join(f)));
    let mut broken = Vec::new();
    for path in texts.iter().filter(|p| !p.components().any(|c| c.as_os_str() == "target")) {
        let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        for (number, line) in text.lines().enumerate() {
            let starts_there = |place: &String| line.match_indices(place.as_str()).any(|(at, _)| is_start(line, at));
            if places.iter().any(starts_there) {
                broken.push(format!("{}:{}: {}", relative(&root, path), number + 1, line.trim()));
            }
        }
    }
    report(broken);
}

/// Whether a path begins at `at`, rather than going on.
fn is_start(line: &str, at: usize) -> bool {
    !line[..at].ends_with(|c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '>' | '}' | '-'))
}

#[test]
fn examples_stay_short() {
    let long = |s: &Source| s.path.starts_with("examples/src/bin/") && s.text.lines().count() >= 200;
    report(
        sources(&["examples"]).into_iter().filter(long).map(|s| format!("{} has 200 lines or more", s.path)).collect(),
    );
}
