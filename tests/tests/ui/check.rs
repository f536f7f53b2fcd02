//! Runs `cargo check` once over all cases and compares what it says with the marks.

use crate::cases::{Case, Kind};
use crate::rename;
use kiln_tests::folders;
use serde_json::Value;
use std::collections::HashMap;
use std::fs;
use std::path::Path;

/// What rustc said about one case, in order of position.
#[derive(Clone, Debug)]
pub struct Said {
    /// `error` or `warning`.
    pub level: String,
    /// First line of the message and its notes.
    pub message: String,
    /// As rustc renders it.
    pub rendered: String,
    /// Line of the primary span, from 1.
    pub line: usize,
    /// Column of the primary span, from 1.
    pub column: usize,
    /// The text under the caret.
    pub token: String,
}

/// Diagnostics by example name.
pub type Diagnostics = HashMap<String, Vec<Said>>;

/// Writes the crate `target/<folder>` with one example per case and checks it.
pub fn diagnose(cases: &[Case], folder: &str, source: fn(&Case) -> String) -> Result<Diagnostics, String> {
    let at = folders::target().join(folder);
    let _ = fs::remove_dir_all(at.join("cases"));
    write(&at.join("src/lib.rs"), "")?;
    let mut manifest = format!(
        "[package]\nname = \"{folder}\"\nversion = \"0.0.0\"\nedition = \"2024\"\nautoexamples = false\n\n[workspace]\n\n\
         [profile.dev.build-override]\nopt-level = 2\ndebug = false\n\n\
         [dependencies]\nkiln = {{ path = {:?}, default-features = false }}\n",
        folders::root().join("runtime")
    );
    for case in cases {
        let name = case.example();
        write(&at.join(format!("cases/{name}.rs")), &source(case))?;
        manifest.push_str(&format!(
            "\n[[example]]\nname = \"{name}\"\npath = \"cases/{name}.rs\"\ncrate-type = [\"lib\"]\n"
        ));
    }
    write(&at.join("Cargo.toml"), &manifest)?;
    // The workspace's choice of versions, so that nothing is looked up.
    fs::copy(folders::root().join("Cargo.lock"), at.join("Cargo.lock")).map_err(|e| format!("Cargo.lock: {e}"))?;

    let output = folders::cargo()
        .args(["check", "--offline", "--quiet", "--keep-going", "--examples", "--message-format=json"])
        .current_dir(&at)
        .output()
        .map_err(|e| format!("cargo did not start: {e}"))?;
    let mut said: Diagnostics = HashMap::new();
    let mut checked = 0;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Ok(json) = serde_json::from_str::<Value>(line) else { continue };
        let example = json["target"]["name"].as_str().unwrap_or_default().to_owned();
        let is_case = json["target"]["kind"][0] == "example";
        match json["reason"].as_str() {
            Some("compiler-artifact") if is_case => checked += 1,
            Some("compiler-message") if is_case => {
                checked += 1;
                if let Some(one) = read(&json["message"]) {
                    said.entry(example).or_default().push(one);
                }
            }
            Some("compiler-message") if json["message"]["level"] == "error" => {
                return Err(format!("`{example}` does not build:\n{}", json["message"]["rendered"]));
            }
            _ => {}
        }
    }
    if checked == 0 {
        return Err(format!("no case was checked:\n{}", String::from_utf8_lossy(&output.stderr)));
    }
    for list in said.values_mut() {
        list.sort_by_key(|s| (s.line, s.column));
    }
    Ok(said)
}

/// One message; `None` for rustc's summary lines, which have no position, and for notes about a constant whose error is there already.
fn read(message: &Value) -> Option<Said> {
    if !matches!(message["level"].as_str(), Some("error" | "warning")) {
        return None;
    }
    let span = users(message["spans"].as_array()?.iter().find(|s| s["is_primary"] == true)?);
    let text = &span["text"][0];
    let (from, to) = (text["highlight_start"].as_u64()? as usize, text["highlight_end"].as_u64()? as usize);
    let token: String = text["text"].as_str()?.chars().skip(from - 1).take(to.saturating_sub(from)).collect();
    let number = |key: &str| span[key].as_u64().unwrap_or_default() as usize;
    Some(Said {
        level: message["level"].as_str()?.to_owned(),
        message: message["message"].as_str()?.to_owned(),
        rendered: message["rendered"].as_str()?.to_owned(),
        line: number("line_start"),
        column: number("column_start"),
        token,
    })
}

/// The position in the user's file: a const check panics inside of std's macro, which rustc shows at the macro's call.
fn users(mut span: &Value) -> &Value {
    while span["text"].as_array().is_none_or(Vec::is_empty) && span["expansion"].is_object() {
        span = &span["expansion"]["span"];
    }
    span
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    }
    fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}

/// A case against what rustc said about it.
pub fn case(case: &Case, diagnostics: &Diagnostics) -> Result<(), String> {
    let said = diagnostics.get(&case.example()).map_or(&[][..], Vec::as_slice);
    match case.kind {
        Kind::Pass if said.is_empty() => Ok(()),
        Kind::Pass => Err(format!("must be accepted silently, but rustc says\n{}", rendered(said))),
        Kind::Fail => {
            let marks = case.marks();
            if marks.is_empty() {
                return Err("has no `//~ Kxxxx token` mark".to_owned());
            }
            let expected: Vec<_> = marks.iter().map(|m| (m.line, m.code.as_str(), m.token.as_str())).collect();
            compare(&expected, said)
        }
    }
}

/// A renamed case against what rustc said about it: same codes, carets on the renamed tokens, two lines further down.
pub fn renamed(case: &Case, diagnostics: &Diagnostics) -> Result<(), String> {
    let said = diagnostics.get(&case.example()).map_or(&[][..], Vec::as_slice);
    let marks = case.marks();
    let lines: Vec<&str> = case.source.lines().collect();
    let tokens: Vec<String> = marks.iter().map(|m| rename::token(lines[m.line - 1], &m.token)).collect();
    let expected: Vec<_> = marks
        .iter()
        .zip(&tokens)
        .map(|(m, token)| (m.line + rename::INSERTED_LINES, m.code.as_str(), token.as_str()))
        .collect();
    compare(&expected, said)
}

fn compare(expected: &[(usize, &str, &str)], said: &[Said]) -> Result<(), String> {
    let actual: Vec<_> = said.iter().map(|s| (s.line, code(&s.message), s.token.as_str())).collect();
    let mut expected = expected.to_vec();
    let mut sorted = actual.clone();
    expected.sort_unstable();
    sorted.sort_unstable();
    if expected == sorted && said.iter().all(|s| s.level == "error") {
        return Ok(());
    }
    let print = |list: &[(usize, &str, &str)]| {
        list.iter().map(|(l, c, t)| format!("  line {l}: {c} on `{t}`\n")).collect::<String>()
    };
    Err(format!("expected\n{}but rustc says\n{}{}", print(&expected), print(&sorted), rendered(said)))
}

/// The code in a message, which a const check prefixes with rustc's own words; `rustc` if the whole message is rustc's.
pub fn code(message: &str) -> &str {
    let is_code = |at: usize| {
        let word = &message[at..];
        let digits = word.chars().skip(1).take_while(char::is_ascii_digit).count();
        word.starts_with('K') && digits == 4 && word[5..].starts_with(':')
    };
    match message.char_indices().map(|(at, _)| at).find(|&at| is_code(at)) {
        Some(at) => &message[at..at + 5],
        None => "rustc",
    }
}

fn rendered(said: &[Said]) -> String {
    said.iter().map(|s| s.rendered.as_str()).collect()
}

/// Every code has a failing case that raises it, and the corrected twin.
pub fn has_pair(cases: &[Case], code: &str, title: &str) -> Result<(), String> {
    let fails: Vec<&Case> =
        cases.iter().filter(|c| c.kind == Kind::Fail && c.marks().iter().any(|m| m.code == code)).collect();
    if fails.is_empty() {
        return Err(format!("no failing case for {code} ({title})"));
    }
    let has_twin = |f: &&Case| cases.iter().any(|c| c.kind == Kind::Pass && c.stem == f.stem);
    match fails.iter().find(|f| !has_twin(f)) {
        None => Ok(()),
        Some(lonely) => Err(format!("ui/fail/{}.rs has no corrected twin in ui/pass", lonely.stem)),
    }
}
