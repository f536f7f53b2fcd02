//! The outside tier: a user's own crate, with one dependency under another name and layers of its own, works in both editions; its values
//! are PyTorch's.
//!
//! One cargo command for each edition builds a copy of `tests/outside` below the target folder and runs its tests; its executable then
//! trains on the peers' batches.

use kiln::state::{State, TensorData};
use kiln_tests::folders;
use kiln_tests::peers::{Values, relative};
use kiln_tests::skips;
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock};

const EDITIONS: [&str; 2] = ["2021", "2024"];

/// ‖Δ‖ / ‖ref‖ per tensor against PyTorch in f64: a few roundings of f32 for each of a dozen operations in a row.
const TOLERANCE: f64 = 2e-6;
/// After twenty steps of momentum the roundings of the first have grown.
const TOLERANCE_OF_LOSSES: f64 = 1e-5;

/// What one edition gave.
struct Built {
    /// The harness' line for each of the crate's own tests: name, and whether it passed.
    tests: BTreeMap<String, bool>,
    output: String,
    executable: PathBuf,
}

type Shared = Arc<LazyLock<Result<Built, String>, Box<dyn FnOnce() -> Result<Built, String> + Send>>>;

/// The crate's own tests that must have run.
const TESTS: [&str; 9] = [
    "parsed_and_recorded_layers_agree",
    "operations_of_the_library_are_listed",
    "it_learns_with_and_without_dropout",
    "dropout_depends_on_the_seed_alone",
    "the_eager_run_is_the_planned_one",
    "the_operation_is_a_function",
    "a_missing_configuration_is_an_error_that_names_it",
    "fifty_steps_on_wgpu_are_those_of_the_host",
    "an_operation_of_the_hosts_own_is_refused_by_wgpu",
];

fn main() {
    let arguments = Arguments::from_args();
    let mut trials = vec![Trial::test("one_dependency_under_another_name", || Ok(one_dependency()?))];
    for edition in EDITIONS {
        // Built once, and not at all if no case is asked for (`--list`).
        let built: Shared = Arc::new(LazyLock::new(Box::new(move || build(edition))));
        for test in TESTS {
            let built = built.clone();
            trials.push(Trial::test(format!("{edition}/{test}"), move || with(&built, |b| passed(b, test))));
        }
        trials.push(Trial::test(format!("{edition}/trains_as_pytorch"), move || with(&built, |b| trains(b, edition))));
    }
    libtest_mimic::run(&arguments, trials).exit();
}

fn with(built: &Shared, check: impl FnOnce(&Built) -> Result<(), String>) -> Result<(), Failed> {
    match &***built {
        Ok(built) => Ok(check(built)?),
        Err(why) => Err(Failed::from(why)),
    }
}

fn source() -> PathBuf {
    folders::root().join("tests/outside")
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}

/// The manifest is what a user would write, and the sources deny what a careful user denies.
fn one_dependency() -> Result<(), String> {
    let manifest = read(&source().join("Cargo.toml"))?;
    let section = manifest.split("[dependencies]\n").nth(1).and_then(|s| s.split("\n\n").next()).unwrap_or_default();
    if section != "forge = { package = \"kiln\", path = \"../../runtime\" }" {
        return Err(format!("the dependencies are\n{section}"));
    }
    for root in ["src/lib.rs", "src/main.rs"] {
        let text = read(&source().join(root))?;
        for line in ["#![forbid(unsafe_code)]", "#![deny(warnings, missing_docs)]"] {
            if !text.contains(line) {
                return Err(format!("{root} has no `{line}`"));
            }
        }
    }
    Ok(())
}

/// Copies the crate, in this edition, and runs its tests.
fn build(edition: &str) -> Result<Built, String> {
    let at = folders::target().join(format!("outside-{edition}"));
    let _ = fs::remove_dir_all(at.join("src"));
    let source = source();
    for file in folders::files(&source, "rs") {
        let inside = file.strip_prefix(&source).map_err(|e| e.to_string())?;
        write(&at.join(inside), &read(&file)?)?;
    }
    let (mut manifest, runtime) = (read(&source.join("Cargo.toml"))?, folders::root().join("runtime"));
    for (written, here) in [
        ("edition = \"2024\"", format!("edition = \"{edition}\"")),
        ("name = \"outside\"", format!("name = \"outside-{edition}\"")),
        ("\"../../runtime\"", format!("{runtime:?}")),
        (
            "[workspace]",
            "[lib]\nname = \"outside\"\n\n[[bin]]\nname = \"outside\"\npath = \"src/main.rs\"\n\n[workspace]"
                .to_owned(),
        ),
    ] {
        if !manifest.contains(written) {
            return Err(format!("the manifest has no `{written}`"));
        }
        manifest = manifest.replacen(written, &here, 1);
    }
    write(&at.join("Cargo.toml"), &manifest)?;
    // The workspace's choice of versions, so that nothing is looked up.
    fs::copy(folders::root().join("Cargo.lock"), at.join("Cargo.lock")).map_err(|e| format!("Cargo.lock: {e}"))?;
    let cargo = |arguments: &[&str]| {
        let mut command = folders::cargo();
        command.args(arguments).current_dir(&at);
        run(&mut command)
    };
    let (built, output) = cargo(&["build", "--offline", "--quiet", "--bins", "--message-format=json"])?;
    let executable = executable(&output).filter(|_| built).ok_or_else(|| rendered(&output))?;
    let (_, output) = cargo(&["test", "--offline", "--quiet", "--no-fail-fast", "--", "--format=pretty"])?;
    Ok(Built { tests: results(&output), output, executable })
}

/// Whether a command succeeded, and all that it printed.
fn run(command: &mut Command) -> Result<(bool, String), String> {
    let output = command.output().map_err(|e| format!("{command:?} did not start: {e}"))?;
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Ok((output.status.success(), text.concat()))
}

fn messages(output: &str) -> impl Iterator<Item = Value> + '_ {
    output.lines().filter_map(|line| serde_json::from_str(line).ok())
}

fn executable(output: &str) -> Option<PathBuf> {
    messages(output).find_map(|m| m["executable"].as_str().map(PathBuf::from))
}

/// What rustc said, or all output where it said nothing.
fn rendered(output: &str) -> String {
    let said: String = messages(output).filter_map(|m| m["message"]["rendered"].as_str().map(str::to_owned)).collect();
    if said.is_empty() { output.to_owned() } else { said }
}

/// `test tests::name ... ok`.
fn results(output: &str) -> BTreeMap<String, bool> {
    let result = |line: &str| {
        let (name, outcome) = line.strip_prefix("test ")?.split_once(" ... ")?;
        Some((name.rsplit("::").next()?.to_owned(), outcome == "ok"))
    };
    output.lines().filter_map(result).collect()
}

fn passed(built: &Built, test: &str) -> Result<(), String> {
    if let Some(reason) = skips::no_wgpu().filter(|_| test.contains("wgpu")) {
        skips::skip(test, &reason);
        return Ok(());
    }
    match built.tests.get(test) {
        Some(true) => Ok(()),
        Some(false) => Err(format!("failed:\n{}", built.output)),
        None => Err(format!("did not run:\n{}", built.output)),
    }
}

/// The peers' parameters and batches in, scores, gradients and losses out.
fn trains(built: &Built, edition: &str) -> Result<(), String> {
    let values = Values::read("outside");
    let folder = folders::target().join(format!("outside-{edition}"));
    let (input, output) = (folder.join("input.safetensors"), folder.join("output.safetensors"));
    let parameters = values.under("param");
    let n_parameters = parameters.len();
    given(&values, &parameters).save(&input).map_err(|e| e.to_string())?;
    let (fine, said) = run(Command::new(&built.executable).args([&input, &output]))?;
    if !fine {
        return Err(said);
    }
    let result = State::load(&output).map_err(|e| e.to_string())?;
    let found = |name: &str| {
        let tensor = result.tensors.get(name).and_then(TensorData::as_f32);
        tensor.ok_or_else(|| format!("the crate gives no `{name}`"))
    };
    let near = |name: &str, expected: &[f32], tolerance: f64| {
        let error = relative(found(name)?, expected);
        if error <= tolerance {
            Ok(())
        } else {
            Err(format!("`{name}` is off by {error:.1e}, more than {tolerance:.1e}"))
        }
    };
    near("logits", &values.get("logits").data, TOLERANCE)?;
    let gradients = values.under("grad");
    assert_eq!(gradients.len(), n_parameters, "every parameter has a gradient");
    for (name, gradient) in gradients {
        near(&format!("grad/net.{}", of_kiln(&name)), &gradient.data, TOLERANCE)?;
    }
    let losses = &values.get("losses").data;
    assert_eq!(losses.len(), 20);
    near("losses", losses, TOLERANCE_OF_LOSSES)
}

/// The path of a parameter: the crate keeps the two linear layers of a block in a child of their own.
fn of_kiln(name: &str) -> String {
    name.replace(".up.", ".inner.up.").replace(".down.", ".inner.down.")
}

fn given(values: &Values, parameters: &BTreeMap<String, &kiln_tests::peers::Tensor>) -> State<'static> {
    let mut state = State::default();
    let about = &values.about;
    for (name, tensor) in parameters {
        let tensor = TensorData::f32(tensor.shape.clone(), tensor.data.clone());
        state.tensors.insert(format!("net.{}", of_kiln(name)), tensor);
    }
    for (name, of) in [("x", "x"), ("kind", "target")] {
        let tensor = values.get(of);
        state.tensors.insert(name.to_owned(), TensorData::f32(tensor.shape.clone(), tensor.data.clone()));
    }
    let mut meta = |name: &str, text: String| state.meta.insert(name.to_owned(), text);
    for axis in ["N", "P", "H", "M", "C", "E"] {
        meta(axis, values.size(axis).to_string());
    }
    meta("eps", about["eps"].to_string());
    meta("rate", "0".to_owned());
    meta("lr", about["sgd"]["lr"].to_string());
    meta("momentum", about["sgd"]["momentum"].to_string());
    meta("steps", values.get("losses").data.len().to_string());
    state
}
