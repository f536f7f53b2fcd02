//! The newcomer tier: the crate that Part I of the book describes, made of its blocks alone, trains; each mistake of the page
//! `mistakes.md` is reported on the right token in the words of the page.
//!
//! One cargo command builds the executables and, as one example for each mistake, the library with that edit. `BLESS=1` rewrites
//! the compiler's words on the page.

use kiln_tests::markdown::{Fence, fences, files, links};
use kiln_tests::{folders, snapshot};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

/// Where the crate is made, below the target folder.
const FOLDER: &str = "newcomer";
const LIBRARY: &str = "src/lib.rs";
const MISTAKES: &str = "start/mistakes.md";

/// Fewer would not be "each kind of mistake that a newcomer makes".
const MIN_MISTAKES: usize = 10;
/// Mean loss on points that were not trained on; the moons overlap a little, guessing is 0.693.
const MAX_LOSS: f64 = 0.05;
/// Of 30 flowers; a linear model gets 28 or 29.
const MIN_FLOWERS: u32 = 28;
/// Probability of the right moon at the middle of each.
const MIN_PROBABILITY: f64 = 0.95;
/// How much the trained table of bytes may cost beyond the counted one, in nats per byte.
const MAX_BEYOND_COUNTS: f64 = 0.25;

/// One edit of the library and what the compiler says to it.
#[derive(Clone)]
struct Mistake {
    /// `mistake_01`, in the order of the page.
    name: String,
    code: String,
    token: String,
    /// The library with the edit.
    source: String,
    /// Where the token stands in it, from 1.
    at: (usize, usize),
    /// The words on the page.
    words: String,
}

/// One error of the compiler.
struct Said {
    message: String,
    rendered: String,
    token: String,
    at: (usize, usize),
}

/// What cargo made.
#[derive(Default)]
struct Built {
    executables: HashMap<String, PathBuf>,
    errors: HashMap<String, Vec<Said>>,
    /// Each executable runs once: they leave files in the crate's folder.
    outputs: Mutex<HashMap<String, Result<String, String>>>,
}

type Shared = Arc<LazyLock<Result<Built, String>, Box<dyn FnOnce() -> Result<Built, String> + Send>>>;

fn main() {
    let arguments = Arguments::from_args();
    let pages = part_one();
    let texts: Vec<String> = pages.iter().map(|(_, text)| text.clone()).collect();
    let files = files(&texts);
    let mistakes = mistakes(&page(MISTAKES), files.get(LIBRARY).map_or("", String::as_str));
    let (of_build, broken) = (files.clone(), mistakes.clone());
    // Built once, and not at all if no case is asked for (`--list`).
    let built: Shared = Arc::new(LazyLock::new(Box::new(move || build(&of_build, &broken))));

    let mut trials = vec![
        trial("moons_train", &built, moons),
        trial("iris_is_learned", &built, iris),
        trial("text_comes_close_to_counts", &built, text),
        Trial::test("mistakes_are_many", {
            let n = mistakes.len();
            move || if n >= MIN_MISTAKES { Ok(()) } else { Err(format!("only {n} mistakes are planted").into()) }
        }),
    ];
    for (path, text) in &pages {
        for (i, fence) in fences(text).into_iter().enumerate() {
            let Some(printed) = Printed::of(fence) else { continue };
            let name = format!("printed/{}_{i}", path.trim_end_matches(".md").replace('/', "_"));
            trials.push(trial(&name, &built, move |b| printed.check(b)));
        }
    }
    for mistake in &mistakes {
        let this = mistake.clone();
        trials.push(trial(&format!("mistakes/{}_{}", mistake.name, mistake.code), &built, move |b| this.check(b)));
    }
    if snapshot::blessing() {
        let all = mistakes.clone();
        trials.push(trial("bless", &built, move |b| bless(&all, b)));
    }
    libtest_mimic::run(&arguments, trials).exit();
}

fn trial(name: &str, built: &Shared, check: impl FnOnce(&Built) -> Result<(), String> + Send + 'static) -> Trial {
    let built = built.clone();
    Trial::test(name, move || match &**built {
        Ok(built) => Ok(check(built)?),
        Err(why) => Err(Failed::from(why)),
    })
}

fn page(name: &str) -> String {
    let path = folders::root().join("book/src").join(name);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Pages of Part I in order, by name.
fn part_one() -> Vec<(String, String)> {
    let names = links(&page("SUMMARY.md")).into_iter().filter(|name| name.starts_with("start/"));
    names.map(|name| (name.clone(), page(&name))).collect()
}

/// The edits of the page, each applied to the library.
fn mistakes(page: &str, library: &str) -> Vec<Mistake> {
    let fences = fences(page);
    let is_edit = |f: &&[Fence]| f[0].info == "diff" && f[0].above.starts_with("<!-- mistake ");
    let edits = fences.windows(2).filter(is_edit);
    edits
        .enumerate()
        .map(|(i, pair)| {
            let comment = pair[0].above.trim_start_matches("<!-- mistake ").trim_end_matches(" -->");
            let (code, token) = comment.split_once(' ').unwrap_or_else(|| panic!("`{comment}` is not `CODE token`"));
            let token = token.trim_matches('`').to_owned();
            let (source, added) = apply(library, &pair[0].text);
            // Where an edit adds a name and its use, the use is the mistake.
            let at = added.iter().rev().find_map(|&line| Some((line, column(source.lines().nth(line - 1)?, &token)?)));
            Mistake {
                name: format!("mistake_{:02}", i + 1),
                code: code.to_owned(),
                at: at.unwrap_or_else(|| panic!("`{token}` is in no added line of\n{}", pair[0].text)),
                token,
                source,
                words: pair[1].text.clone(),
            }
        })
        .collect()
}

/// Where `token` stands in a line as a word of its own, from 1.
fn column(line: &str, token: &str) -> Option<usize> {
    let is_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let starts = line.match_indices(token).map(|(at, _)| at);
    let mut whole = starts
        .filter(|&at| !is_word(line[..at].chars().next_back()) && !is_word(line[at + token.len()..].chars().next()));
    whole.next().map(|at| line[..at].chars().count() + 1)
}

/// A text with an edit applied, and the numbers of its added lines. Lines of context separate hunks.
fn apply(text: &str, diff: &str) -> (String, Vec<usize>) {
    let mut lines: Vec<&str> = text.lines().collect();
    let mut added = Vec::new();
    for hunk in diff.split_inclusive('\n').collect::<Vec<_>>().split(|l| !l.starts_with(['+', '-'])) {
        let side =
            |sign: char| -> Vec<&str> { hunk.iter().filter_map(|l| Some(l.strip_prefix(sign)?.trim_end())).collect() };
        let (old, new) = (side('-'), side('+'));
        if hunk.is_empty() {
            continue;
        }
        let places: Vec<usize> =
            lines.windows(old.len()).enumerate().filter(|(_, w)| *w == old.as_slice()).map(|(i, _)| i).collect();
        let [at] = places.as_slice() else { panic!("{} places in the library have\n{}", places.len(), old.join("\n")) };
        added.extend(at + 1..=at + new.len());
        lines.splice(at..&(at + old.len()), new);
    }
    (lines.join("\n") + "\n", added)
}

/// Writes the crate and builds it.
fn build(files: &BTreeMap<String, String>, mistakes: &[Mistake]) -> Result<Built, String> {
    let at = folders::target().join(FOLDER);
    let _ = fs::remove_dir_all(&at);
    for (name, text) in files.iter().filter(|(name, _)| *name != "Cargo.toml") {
        write(&at.join(name), text)?;
    }
    let runtime = format!("{:?}", folders::root().join("runtime"));
    let manifest = files.get("Cargo.toml").ok_or("Part I gives no manifest")?;
    let mut manifest = manifest.replace("\"../kiln/runtime\"", &runtime);
    if !manifest.contains(&runtime) {
        return Err(format!("the manifest does not depend on `../kiln/runtime`:\n{manifest}"));
    }
    manifest.push_str("\n[workspace]\n");
    for Mistake { name, source, .. } in mistakes {
        write(&at.join(format!("mistakes/{name}.rs")), source)?;
        manifest.push_str(&format!(
            "\n[[example]]\nname = \"{name}\"\npath = \"mistakes/{name}.rs\"\ncrate-type = [\"lib\"]\n"
        ));
    }
    write(&at.join("Cargo.toml"), &manifest)?;
    // The workspace's choice of versions, so that nothing is looked up.
    fs::copy(folders::root().join("Cargo.lock"), at.join("Cargo.lock")).map_err(|e| format!("Cargo.lock: {e}"))?;
    let output = folders::cargo()
        .args(["build", "--offline", "--quiet", "--keep-going", "--bins", "--examples", "--message-format=json"])
        .current_dir(&at)
        .output()
        .map_err(|e| format!("cargo did not start: {e}"))?;
    let mut built = Built::default();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Ok(json) = serde_json::from_str::<Value>(line) else { continue };
        let target = json["target"]["name"].as_str().unwrap_or_default().to_owned();
        match json["reason"].as_str() {
            Some("compiler-artifact") => {
                built.executables.extend(json["executable"].as_str().map(|path| (target, PathBuf::from(path))));
            }
            Some("compiler-message") => {
                let message = &json["message"];
                match read(message) {
                    Some(said) if target.starts_with("mistake_") => built.errors.entry(target).or_default().push(said),
                    Some(said) => return Err(format!("`{target}`:\n{}", said.rendered)),
                    None => {}
                }
            }
            _ => {}
        }
    }
    match built.executables.is_empty() {
        true => Err(format!("nothing was built:\n{}", String::from_utf8_lossy(&output.stderr))),
        false => Ok(built),
    }
}

/// One message; `None` for rustc's summary lines, which have no position.
fn read(message: &Value) -> Option<Said> {
    let mut span = message["spans"].as_array()?.iter().find(|s| s["is_primary"] == true)?;
    // A constant's check panics inside of std's macro; the user's tokens are where that was called.
    while span["text"].as_array().is_none_or(Vec::is_empty) && span["expansion"].is_object() {
        span = &span["expansion"]["span"];
    }
    let text = &span["text"][0];
    let (from, to) = (text["highlight_start"].as_u64()? as usize, text["highlight_end"].as_u64()? as usize);
    let number = |key: &str| span[key].as_u64().unwrap_or_default() as usize;
    Some(Said {
        message: message["message"].as_str()?.to_owned(),
        rendered: message["rendered"].as_str()?.to_owned(),
        token: text["text"].as_str()?.chars().skip(from - 1).take(to.saturating_sub(from)).collect(),
        at: (number("line_start"), number("column_start")),
    })
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    }
    fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}

impl Mistake {
    /// The only error of this edit.
    fn said<'b>(&self, built: &'b Built) -> Result<&'b Said, String> {
        match built.errors.get(&self.name).map_or(&[][..], Vec::as_slice) {
            [said] => Ok(said),
            [] => Err(format!("the compiler accepts\n{}", self.source)),
            many => Err(many.iter().map(|s| s.rendered.as_str()).collect()),
        }
    }

    /// As a reader sees it, who has the edit in the library.
    fn rendered(&self, said: &Said) -> String {
        said.rendered.trim_end().replace(&format!("mistakes/{}.rs", self.name), LIBRARY) + "\n"
    }

    fn check(&self, built: &Built) -> Result<(), String> {
        let said = self.said(built)?;
        let code = format!("{}:", self.code);
        if !said.message.contains(&code) {
            return Err(format!("is not {}:\n{}", self.code, said.rendered));
        }
        if (said.at, said.token.as_str()) != (self.at, self.token.as_str()) {
            let (line, column) = self.at;
            return Err(format!("`{}` stands at {line}:{column}, but\n{}", self.token, said.rendered));
        }
        match snapshot::blessing() {
            true => Ok(()),
            false => snapshot::first_difference(&self.words, &self.rendered(said)).map_or(Ok(()), Err),
        }
    }
}

/// Writes what the compiler says into the page.
fn bless(mistakes: &[Mistake], built: &Built) -> Result<(), String> {
    let old = page(MISTAKES);
    let mut parts = old.split("<!-- mistake ");
    let mut new = parts.next().unwrap_or_default().to_owned();
    for (part, mistake) in parts.zip(mistakes) {
        let open = "```text\n";
        let from = part.find(open).ok_or("a mistake has no words")? + open.len();
        let to = from + part[from..].find("```").ok_or("a block is open")?;
        let words = mistake.rendered(mistake.said(built)?);
        new.push_str(&format!("<!-- mistake {}{words}{}", &part[..from], &part[to..]));
    }
    write(&folders::root().join("book/src").join(MISTAKES), &new)
}

impl Built {
    /// What an executable prints.
    fn output(&self, name: &str) -> Result<String, String> {
        if name == "predict" {
            self.output("moons")?;
        }
        let mut outputs = self.outputs.lock().unwrap_or_else(PoisonError::into_inner);
        outputs.entry(name.to_owned()).or_insert_with(|| self.run(name)).clone()
    }

    /// Runs an executable in the crate's folder.
    fn run(&self, name: &str) -> Result<String, String> {
        let path = self.executables.get(name).ok_or_else(|| format!("there is no executable `{name}`"))?;
        let mut command = Command::new(path);
        if name == "iris" {
            command.arg(folders::root().join("book/src/start/iris.csv"));
        }
        let output =
            command.current_dir(folders::target().join(FOLDER)).output().map_err(|e| format!("{name}: {e}"))?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if output.status.success() { Ok(out.into_owned()) } else { Err(format!("{name} fails:\n{out}{err}")) }
    }
}

/// Output of an executable on a page.
struct Printed {
    /// Which executable.
    by: String,
    /// Whether numbers may differ: they are computed in floating point, whose last digits depend on the processor.
    loosely: bool,
    text: String,
}

impl Printed {
    fn of(fence: Fence) -> Option<Printed> {
        let what = fence.above.strip_prefix("<!-- printed by ")?.strip_suffix(" -->")?;
        let (by, how) = what.split_once(", ").unwrap_or((what, ""));
        // The executable of src/main.rs has the name of the crate.
        let by = if by == "main" { "moons" } else { by }.to_owned();
        Some(Printed { by, loosely: how.starts_with("numbers may differ"), text: fence.text })
    }

    fn check(&self, built: &Built) -> Result<(), String> {
        let output = built.output(&self.by)?;
        let lines = |text: &str| -> Vec<String> {
            text.lines().map(|l| if self.loosely { without_numbers(l) } else { l.trim_end().to_owned() }).collect()
        };
        let (wanted, printed) = (lines(&self.text), lines(&output));
        let is_there = !wanted.is_empty() && printed.windows(wanted.len()).any(|w| w == wanted);
        if is_there { Ok(()) } else { Err(format!("`{}` prints\n{output}\nwithout\n{}", self.by, self.text)) }
    }
}

/// A line with `#` for each number.
fn without_numbers(line: &str) -> String {
    let mut out = String::new();
    for c in line.trim_end().chars() {
        match c {
            '0'..='9' | '.' if out.ends_with('#') => {}
            '0'..='9' => out.push('#'),
            c => out.push(c),
        }
    }
    out
}

/// The numbers of a text, in order.
fn numbers(text: &str) -> Vec<f64> {
    let words = text.split(|c: char| !(c.is_ascii_digit() || c == '.'));
    words.filter_map(|w| w.trim_end_matches('.').parse().ok()).collect()
}

/// Trains, saves, and predicts from the saved state.
fn moons(built: &Built) -> Result<(), String> {
    let trained = built.output("moons")?;
    let losses: Vec<f64> = trained.lines().filter_map(|l| numbers(l).last().copied()).collect();
    match losses.as_slice() {
        [first, .., last] if last < first && *last < MAX_LOSS => {}
        _ => return Err(format!("the held-out loss is not below {MAX_LOSS}:\n{trained}")),
    }
    let predicted = built.output("predict")?;
    match numbers(&predicted)[..] {
        [a, _, _, d] if a.min(d) > MIN_PROBABILITY => Ok(()),
        _ => Err(format!("the middle of a moon is not recognised:\n{predicted}")),
    }
}

fn iris(built: &Built) -> Result<(), String> {
    let output = built.output("iris")?;
    match numbers(&output)[..] {
        [right, 30.0] if right >= f64::from(MIN_FLOWERS) => Ok(()),
        _ => Err(format!("fewer than {MIN_FLOWERS} of 30 are right:\n{output}")),
    }
}

fn text(built: &Built) -> Result<(), String> {
    let output = built.output("text")?;
    match numbers(output.lines().last().unwrap_or_default())[..] {
        [trained, counted] if trained < counted + MAX_BEYOND_COUNTS => Ok(()),
        _ => Err(format!("the trained table is not within {MAX_BEYOND_COUNTS} of the counted one:\n{output}")),
    }
}
