//! The golden tier: files of IR text in, expected text below `---`; the verifier runs before and after every pass.
//!
//! The folder names the pass. Lines that start with `;` give options: `; parameters w` and `; inactive rope` say what
//! differentiation takes those arguments for (other float arguments are activations). `BLESS=1` rewrites the expected part.

use kiln_compiler::compile::compile_layer;
use kiln_compiler::diff::{self, Activity};
use kiln_compiler::fuse::{Launch, LaunchKind, Region};
use kiln_compiler::ir::text::{parse_func, parse_layer, print_func, print_layer};
use kiln_compiler::ir::{DType, Func, verify};
use kiln_compiler::{precision, simplify};
use kiln_tests::{folders, snapshot};
use libtest_mimic::{Arguments, Failed, Trial};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

const RULE: &str = "\n---\n";

fn main() {
    let arguments = Arguments::from_args();
    let root = folders::root().join("tests/golden");
    let mut trials = Vec::new();
    for path in folders::files(&root, "ir") {
        let pass =
            path.parent().and_then(Path::file_name).map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let stem = path.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        trials.push(Trial::test(format!("{pass}/{stem}"), move || run(&pass, &path).map_err(Failed::from)));
    }
    libtest_mimic::run(&arguments, trials).exit();
}

/// What the `;` lines say.
#[derive(Default)]
struct Options {
    parameters: Vec<String>,
    inactive: Vec<String>,
}

fn run(pass: &str, path: &Path) -> Result<(), String> {
    let text = fs::read_to_string(path).map_err(|e| e.to_string())?;
    let given = text.split_once(RULE).map_or(text.as_str(), |(given, _)| given);
    let (comments, input): (Vec<&str>, Vec<&str>) = given.lines().partition(|l| l.starts_with(';'));
    let mut options = Options::default();
    for line in &comments {
        let mut words = line.trim_start_matches(';').split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("parameters") => options.parameters = words.collect(),
            Some("inactive") => options.inactive = words.collect(),
            _ => {}
        }
    }
    let output = transform(pass, &input.join("\n"), &options)?;
    snapshot::check(path, &format!("{}{RULE}{output}", given.trim_end()))
}

fn transform(pass: &str, input: &str, options: &Options) -> Result<String, String> {
    if pass == "text" && input.trim_start().starts_with("layer") {
        let layer = parse_layer(input).map_err(|e| e.to_string())?;
        let printed = print_layer(&layer);
        let again = parse_layer(&printed).map_err(|e| format!("{e} in\n{printed}"))?;
        return if again == layer { Ok(printed) } else { Err(format!("reads back differently:\n{printed}")) };
    }
    let func = checked(parse_func(input).map_err(|e| e.to_string())?)?;
    match pass {
        "text" => shown(func),
        "expand" => shown(simplify::expand(&func)),
        "simplify" => shown(simplify::run(&func)),
        "precision" => shown(precision::run(&func, DType::Compute)),
        "diff" => {
            let joint = diff::run(&func, &activity(&func, options), &vec![true; func.outputs.len()]);
            shown(joint.map_err(|e| e.diagnostic.to_string())?.func)
        }
        "launches" => {
            let rounded = checked(precision::run(&func, DType::Compute))?;
            let compiled = compile_layer(&rounded, &activity(&rounded, options), &vec![true; func.outputs.len()])
                .map_err(|e| e.diagnostic.to_string())?;
            checked(compiled.func.clone())?;
            let mut text = String::new();
            for (name, launches) in [("forward", &compiled.forward), ("backward", &compiled.backward)] {
                let count = |f: fn(&LaunchKind) -> bool| launches.iter().filter(|l| f(&l.kind)).count();
                let library = count(|k| matches!(k, LaunchKind::Library { .. }));
                let regions = count(|k| matches!(k, LaunchKind::Region(_)));
                writeln!(text, "{name}: {library} library launches, {regions} regions").map_err(|e| e.to_string())?;
                launches.iter().for_each(|l| text.push_str(&describe(l)));
            }
            let residuals: Vec<String> = compiled.residuals.iter().map(|v| format!("%{}", v.0)).collect();
            Ok(format!("{text}residuals {}\n", residuals.join(", ")))
        }
        other => Err(format!("no pass `{other}`")),
    }
}

fn activity(func: &Func, options: &Options) -> Vec<Activity> {
    let of = |v: &kiln_compiler::ir::ValueId| {
        let value = &func.values[v.index()];
        let name = value.name.clone().unwrap_or_default();
        match () {
            () if !value.ty.dtype.is_float() || options.inactive.contains(&name) => Activity::Inactive,
            () if options.parameters.contains(&name) => Activity::Parameter,
            () => Activity::Activation,
        }
    };
    func.inputs.iter().map(of).collect()
}

fn checked(func: Func) -> Result<Func, String> {
    verify::func(func).map(|f| f.into_inner()).map_err(|e| e.to_string())
}

/// The text of a verified function, which must read back as the same function.
fn shown(func: Func) -> Result<String, String> {
    let func = checked(func)?;
    let text = print_func(&func);
    match parse_func(&text) {
        Ok(again) if again == func => Ok(text),
        Ok(_) => Err(format!("reads back differently:\n{text}")),
        Err(e) => Err(format!("{e} in\n{text}")),
    }
}

fn describe(launch: &Launch) -> String {
    let values =
        |list: &[kiln_compiler::ir::ValueId]| list.iter().map(|v| format!("%{}", v.0)).collect::<Vec<_>>().join(", ");
    let what = match &launch.kind {
        LaunchKind::Region(region) => describe_region(region),
        LaunchKind::Library { node, .. } => node.op.name.to_owned(),
        LaunchKind::Alias => "alias".to_owned(),
        LaunchKind::Structural(node) | LaunchKind::Collective(node) => node.op.name.to_owned(),
    };
    format!("  {} = {what} ({})\n", values(&launch.outputs), values(&launch.inputs))
}

fn describe_region(region: &Region) -> String {
    let axes: Vec<String> = region.domain.iter().map(ToString::to_string).collect();
    format!("{:?}[{}] of {} instructions", region.template, axes.join(", "), region.code.len())
}
