//! The book tier: pages, links, codes and included texts exist, and what the book quotes of the compiler is what it says today.
//!
//! `BLESS=1` rewrites the texts in `book/src/generated`. The Rust blocks of the pages are doctests of this package.

use clap::CommandFactory;
use kiln::DType;
use kiln::explain::explain;
use kiln::layer::{Layer, LayerDef};
use kiln::link::{self, Keep, LinkOptions, Model};
use kiln::metrics::Record;
use kiln::plan::{self, Plan};
use kiln::prelude::*;
use kiln_compiler::compile::{CompiledLayer, compile_layer};
use kiln_compiler::diagnostics::CODES;
use kiln_compiler::fuse::{Launch, LaunchKind, Region};
use kiln_compiler::ir::text::{parse_layer, print_func};
use kiln_compiler::ir::{Axis, Sizes, ValueId};
use kiln_compiler::methods::{Gives, METHODS, Method};
use kiln_compiler::{diff, emit, place, precision, simplify, variants};
use kiln_examples::cli::Cli;
use kiln_examples::config::{Config, Preset};
use kiln_examples::gpt::*;
use kiln_examples::train::sizes_of;
use kiln_tests::markdown::{fences, links, prose};
use kiln_tests::{folders, snapshot};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

fn source() -> PathBuf {
    folders::root().join("book/src")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Every page of the book but the summary, with its path below `book/src`.
fn pages() -> Vec<(String, String)> {
    let relative = |p: &Path| p.strip_prefix(source()).unwrap_or(p).to_string_lossy().replace('\\', "/");
    let pages = folders::files(&source(), "md").into_iter().map(|p| (relative(&p), read(&p)));
    pages.filter(|(name, _)| name != "SUMMARY.md" && !name.starts_with("generated/")).collect()
}

fn report(broken: Vec<String>) {
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn every_page_is_in_the_summary_once() {
    let listed = links(&read(&source().join("SUMMARY.md")));
    let mut pages: Vec<String> = pages().into_iter().map(|(name, _)| name).collect();
    let mut sorted = listed.clone();
    sorted.sort();
    pages.sort();
    assert_eq!(sorted, pages);
}

/// The anchor that mdBook gives to a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn links_lead_somewhere() {
    let mut broken = Vec::new();
    let mut checked = 0;
    for (name, text) in pages() {
        let folder = source().join(&name).parent().expect("a page lies in a folder").to_owned();
        for link in links(&text).into_iter().filter(|link| !link.starts_with("http")) {
            checked += 1;
            let (file, fragment) = link.split_once('#').unwrap_or((link.as_str(), ""));
            let path = if file.is_empty() { source().join(&name) } else { folder.join(file) };
            if !path.is_file() {
                broken.push(format!("{name}: `{link}` leads nowhere"));
                continue;
            }
            let headings = || {
                prose(&read(&path))
                    .lines()
                    .filter_map(|l| Some(anchor(l.strip_prefix('#')?.trim_start_matches('#'))))
                    .collect::<Vec<_>>()
            };
            if !fragment.is_empty() && !headings().contains(&fragment.to_owned()) {
                broken.push(format!("{name}: `{link}` has no such heading"));
            }
        }
    }
    assert!(checked >= 20, "only {checked} links found");
    report(broken);
}

/// Names of the parts of a file that pages may include.
fn anchors(text: &str) -> Vec<&str> {
    text.split("ANCHOR: ").skip(1).filter_map(|rest| rest.split_whitespace().next()).collect()
}

#[test]
fn included_texts_exist() {
    let mut broken = Vec::new();
    let mut checked = 0;
    for (name, text) in pages() {
        let folder = source().join(&name).parent().expect("a page lies in a folder").to_owned();
        for include in text.split("{{#include ").skip(1).filter_map(|rest| Some(rest.split_once("}}")?.0.trim())) {
            checked += 1;
            let (file, part) = include.split_once(':').unwrap_or((include, ""));
            match fs::read_to_string(folder.join(file)) {
                Err(e) => broken.push(format!("{name}: {file}: {e}")),
                Ok(content) if !part.is_empty() && !anchors(&content).contains(&part) => {
                    broken.push(format!("{name}: {file} has no part `{part}`"));
                }
                Ok(_) => {}
            }
        }
    }
    assert!(checked >= 20, "only {checked} included texts found");
    report(broken);
}

/// `K` and four digits, as words of a text.
fn codes(text: &str) -> Vec<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric());
    words.filter(|w| w.len() == 5 && w.starts_with('K') && w[1..].bytes().all(|b| b.is_ascii_digit())).collect()
}

#[test]
fn codes_of_the_book_exist() {
    let known: Vec<&str> = CODES.iter().map(|(code, _)| *code).collect();
    let mut broken = Vec::new();
    for (name, text) in pages() {
        let unknown = codes(&text).into_iter().filter(|code| !known.contains(code));
        broken.extend(unknown.map(|code| format!("{name}: there is no {code}")));
    }
    report(broken);
}

#[test]
fn codes_are_listed_and_used() {
    let listed: Vec<&str> = CODES.iter().map(|(code, _)| *code).collect();
    let mut used = BTreeSet::new();
    for folder in ["compiler/src", "macros/src", "runtime/src", "examples/src"] {
        for path in folders::files(&folders::root().join(folder), "rs") {
            let text = read(&path);
            // The list itself uses none.
            let text = text.split("pub const CODES").next().unwrap_or_default();
            used.extend(codes(text).into_iter().map(str::to_owned));
        }
    }
    let unlisted = used.iter().filter(|code| !listed.contains(&code.as_str())).map(|c| format!("{c} is not in CODES"));
    let unused = listed.iter().filter(|code| !used.contains(**code)).map(|code| format!("{code} is never raised"));
    report(unlisted.chain(unused).collect());
    assert!(listed.is_sorted(), "CODES are in order");
}

#[test]
fn rust_blocks_run() {
    // Blocks of Part I that train are compiled as doctests and run by the newcomer tier.
    let mut broken = Vec::new();
    let mut blocks = 0;
    for (name, text) in pages() {
        for fence in fences(&text).into_iter().filter(|f| f.info.starts_with("rust")) {
            blocks += 1;
            let runs = match fence.info.as_str() {
                "rust" | "rust,should_panic" => true,
                "rust,no_run" => name.starts_with("start/") && fence.above.starts_with("*src/"),
                _ => name == "reference/errors.md",
            };
            if !runs {
                broken.push(format!("{name}: a block is `{}`", fence.info));
            }
        }
    }
    assert!(blocks >= 20, "only {blocks} blocks found");
    report(broken);
}

/// A text that the book includes.
fn generated(name: &str, text: &str) -> Option<String> {
    snapshot::check(&source().join("generated").join(name), text).err()
}

#[test]
fn methods_are_listed() {
    let documented = documented_methods();
    let mut table = String::from("| method | takes | gives | meaning |\n|---|---|---|---|\n");
    for m in METHODS {
        let (names, doc) = documented.get(m.name).unwrap_or_else(|| panic!("`{}` has no documentation", m.name));
        let takes: Vec<&str> = m.args.iter().map(|kind| kind.describe()).collect();
        let takes = if operator(m).is_some() { String::new() } else { takes.join("; ") };
        let row = format!("| `{}` | {} | {} | {} |\n", spelled(m, names), takes, gives(m), doc.replace('|', "\\|"));
        table.push_str(&row);
    }
    report(generated("methods.md", &table).into_iter().collect());
}

fn gives(m: &Method) -> &'static str {
    match m.gives {
        Gives::Tensor => "tensor",
        Gives::Mask => "mask",
        Gives::Loss => "loss",
        Gives::Over => "operand",
    }
}

fn operator(m: &Method) -> Option<&'static str> {
    Some(match m.name {
        "add" => "x + y",
        "sub" => "x - y",
        "mul" => "x * y",
        "div" => "x / y",
        "neg" => "-x",
        _ => return None,
    })
}

/// As a user writes it.
fn spelled(m: &Method, names: &[String]) -> String {
    operator(m).map_or_else(|| format!("x.{}({})", m.name, names.join(", ")), str::to_owned)
}

/// Names of the arguments and first paragraph of the documentation of each of `Tensor`'s methods.
fn documented_methods() -> BTreeMap<String, (Vec<String>, String)> {
    let mut found = BTreeMap::new();
    for (name, doc) in [
        ("add", "Sum, element by element."),
        ("sub", "Difference, element by element."),
        ("mul", "Product, element by element."),
        ("div", "Quotient, element by element."),
        ("neg", "The negative."),
    ] {
        found.insert(name.to_owned(), (Vec::new(), doc.to_owned()));
    }
    let mut doc = Vec::new();
    let mut of_macro = Vec::new();
    for line in read(&folders::root().join("runtime/src/tensor/methods.rs")).lines().map(str::trim) {
        match line.strip_prefix("///") {
            Some(text) => doc.push(text.trim().to_owned()),
            None if line.starts_with("#[") => {}
            None => {
                // One macro makes the methods without an argument, the other those with one more operand.
                match line {
                    "unary! {" => of_macro = Vec::new(),
                    "element_wise! {" => of_macro = vec!["other".to_owned()],
                    _ => {}
                }
                let function = line.strip_prefix("pub fn ");
                let name = function.map_or(line.trim_end_matches(','), |f| f.split(['(', '<']).next().unwrap_or(f));
                let paragraph: Vec<String> =
                    std::mem::take(&mut doc).into_iter().take_while(|l| !l.is_empty()).collect();
                if !paragraph.is_empty() {
                    let text = paragraph.join(" ").replace("[`Tensor::", "`").replace("`]", "`");
                    let names = function.map_or_else(|| of_macro.clone(), arguments);
                    found.entry(name.to_owned()).or_insert((names, text));
                }
            }
        }
    }
    found
}

/// Names of the arguments of `name(self, a: A, b: B) -> C {`, without `self`.
fn arguments(function: &str) -> Vec<String> {
    let inside = function.split_once('(').map_or("", |(_, rest)| rest);
    let names =
        inside.split(',').filter_map(|arg| Some(arg.split_once(':')?.0.trim().trim_start_matches('_').to_owned()));
    names.collect()
}

#[test]
fn the_pipeline_is_what_the_pages_show() {
    let layer = parse_layer(Swiglu::DEF.ir).expect("the macro's text reads back");
    let f: Axis = Axis::new("F");
    let rounded = precision::run(&layer.body, DType::Compute);
    let placed = place::run(&rounded, f, link::TENSOR).expect("F is private to the layer");
    let (activity, differentiated) = (variants::activity(&layer), variants::differentiated(&layer));
    let joint = diff::run(&rounded, &activity, &differentiated).expect("every operation has a derivative").func;
    let simplified = simplify::run(&joint);
    let whole = compile_layer(&rounded, &activity, &differentiated).expect("as above");
    let split = compile_layer(&placed, &activity, &differentiated).expect("as above");
    let region = whole.regions().next().expect("silu and the product are one region").clone();
    let kernel = emit::kernel(&region, "swiglu_fwd_0").expect("each region has a kernel");
    let kernel = prettyplease::unparse(&syn::parse2(quote::quote!(#kernel)).expect("Rust items"));
    let mut differs = Vec::new();
    differs.extend(generated("swiglu.ir", Swiglu::DEF.ir));
    differs.extend(generated("swiglu_precision.ir", &print_func(&rounded)));
    differs.extend(generated("swiglu_placed.ir", &print_func(&placed)));
    differs.extend(generated("swiglu_joint.ir", &print_func(&joint)));
    differs.extend(generated("swiglu_simplified.ir", &print_func(&simplified)));
    differs.extend(generated("swiglu_launches.txt", &launches(&whole)));
    differs.extend(generated("swiglu_split_launches.txt", &launches(&split)));
    differs.extend(generated("swiglu_region.txt", &program(&region)));
    differs.extend(generated("swiglu_kernel.rs.txt", &kernel));
    report(differs);
}

fn launches(c: &CompiledLayer) -> String {
    let values = |list: &[ValueId]| list.iter().map(|v| format!("%{}", v.0)).collect::<Vec<_>>().join(", ");
    let describe = |l: &Launch| {
        let what = match &l.kind {
            LaunchKind::Region(r) => format!("region {:?} of {} instructions", r.template, r.code.len()),
            LaunchKind::Library { node, rounds } => match rounds.iter().flatten().next() {
                Some(to) => format!("{}, rounded to {to}", node.op.name),
                None => node.op.name.to_owned(),
            },
            LaunchKind::Alias => "alias".to_owned(),
            LaunchKind::Structural(node) | LaunchKind::Collective(node) => node.op.name.to_owned(),
        };
        format!("  {} = {what} ({})\n", values(&l.outputs), values(&l.inputs))
    };
    let list = |launches: &[Launch]| launches.iter().map(describe).collect::<String>();
    format!(
        "inputs {}\nforward\n{}backward, from {}\n{}kept between them: {}\n",
        values(&c.inputs),
        list(&c.forward),
        values(&c.d_outputs.iter().flatten().copied().collect::<Vec<_>>()),
        list(&c.backward),
        values(&c.residuals)
    )
}

/// A region's program as text.
fn program(r: &Region) -> String {
    let axes = |list: &[Axis]| list.iter().map(|a| a.name()).collect::<Vec<_>>().join(", ");
    let mut text = format!("{:?} over [{}]\n", r.template, axes(&r.domain));
    for (i, layout) in r.inputs.iter().enumerate() {
        writeln!(text, "input {i}: {:?} of {}", layout.axes, r.dtypes[layout.dtype]).expect("a string takes text");
    }
    for (i, instr) in r.code.iter().enumerate() {
        writeln!(text, "r{i} = {instr:?}").expect("a string takes text");
    }
    for (i, (reg, layout)) in r.outputs.iter().enumerate() {
        writeln!(text, "output {i}: r{reg}, {:?} of {}", layout.axes, r.dtypes[layout.dtype])
            .expect("a string takes text");
    }
    text
}

/// A root that is `swiglu` alone, so that its plan can be shown.
mod alone {
    use super::*;

    /// Cross-entropy over what `swiglu` returns.
    #[layer]
    pub fn alone(x: Tensor<B, S, D>, class: Ids<B, S>, #[sub] mlp: Swiglu) -> Loss {
        mlp.forward(x).cross_entropy(class)
    }
}

fn linked(root: &'static LayerDef, sizes: Sizes, keep: Keep, precision: DType, tensor: usize) -> (Model, Plan) {
    let options = LinkOptions { sizes: sizes.clone(), config: BTreeMap::new(), precision, keep, tensor: (tensor, 0) };
    let model = link::link(root, &options).expect("the model links");
    let plan = plan::build(&model, &sizes, plan::Memory::HOST);
    (model, plan)
}

#[test]
fn plans_are_what_the_pages_show() {
    let small = || sizes! { B = 2, S = 8, D = 16, F = 48 };
    let (_, plan) = linked(alone::Alone::DEF, small(), Keep::Everything, DType::Bf16, 1);
    let (_, split) = linked(alone::Alone::DEF, small(), Keep::Everything, DType::Bf16, 2);
    let config = Config::of_preset(Preset::Xs);
    let gpt = |keep, precision, tensor| {
        let (model, plan) = linked(Gpt::DEF, sizes_of(&config, config.batch), keep, precision, tensor);
        explain(&model, &plan)
    };
    let mut differs = Vec::new();
    differs.extend(generated("swiglu_plan.txt", &steps(&plan)));
    differs.extend(generated("swiglu_split_plan.txt", &steps(&split)));
    differs.extend(generated("gpt_explain.txt", &gpt(Keep::Everything, DType::F32, 1)));
    differs.extend(generated("gpt_explain_inputs_bf16.txt", &gpt(Keep::Inputs, DType::Bf16, 1)));
    differs.extend(generated("gpt_explain_tensor_2.txt", &gpt(Keep::Everything, DType::F32, 2)));
    report(differs);
}

/// Steps with their buffers and offsets.
fn steps(plan: &Plan) -> String {
    let mut text = String::new();
    for (i, (line, step)) in plan.log().iter().zip(&plan.steps).enumerate() {
        let names = |list: &[usize]| list.iter().map(|&b| plan.buffers[b].name.clone()).collect::<Vec<_>>().join(", ");
        writeln!(text, "{i:2}  {line}: {} -> {}", names(&step.inputs), names(&step.outputs))
            .expect("a string takes text");
    }
    let temporary = plan.buffers.iter().filter(|b| b.segment == plan::Segment::Temporary);
    for b in temporary {
        writeln!(
            text,
            "{:6} bytes at {:5}, steps {:2}..={:2}  {} ({})",
            b.bytes(),
            b.offset,
            b.life.0,
            b.life.1,
            b.name,
            b.dtype
        )
        .expect("a string takes text");
    }
    writeln!(text, "{} bytes of temporaries", plan.temporary_bytes).expect("a string takes text");
    text
}

#[test]
fn command_lines_are_what_the_pages_show() {
    let mut differs = Vec::new();
    for name in ["train", "generate"] {
        let mut cli = Cli::command();
        cli.build();
        let command = cli.find_subcommand_mut(name).expect("a subcommand of gpt");
        let help = command.render_help().to_string();
        let help: String = help.lines().map(|line| format!("{}\n", line.trim_end())).collect();
        differs.extend(generated(&format!("gpt_{name}.txt"), &help));
    }
    report(differs);
}

#[test]
fn every_metric_is_explained() {
    let record = Record {
        step: 1,
        train_loss: 1.0,
        valid_loss: Some(1.0),
        tokens_per_second: 1.0,
        step_ms: 1.0,
        lr: 1.0,
        grad_norm: 1.0,
        loss_scale: 1.0,
        peak_bytes: 1,
        elapsed_s: 1.0,
        device: "host".into(),
        world_size: 1,
        collective_bytes: 0,
        h2d_bytes: 0,
        d2h_bytes: 0,
    };
    let json = serde_json::to_value(record).expect("a record is JSON");
    let page = read(&source().join("reference/runs.md"));
    let keys = json.as_object().expect("a record is an object").keys();
    report(
        keys.filter(|key| !page.contains(&format!("| `{key}` |")))
            .map(|key| format!("`{key}` is not explained"))
            .collect(),
    );
}

/// Names of `pub fn`s of a file's `impl` that begins with `head`.
fn methods_of(file: &str, head: &str) -> Vec<String> {
    let text = read(&folders::root().join(file));
    let from = text.find(head).unwrap_or_else(|| panic!("{file} has no `{head}`"));
    let rest = &text[from..];
    let body = rest.find("\n}\n").map_or(rest, |to| &rest[..to]);
    let names = body.lines().filter_map(|l| l.strip_prefix("    pub fn ")?.split(['(', '<']).next());
    names.map(str::to_owned).collect()
}

#[test]
fn every_call_of_a_session_is_explained() {
    let page = read(&source().join("reference/trainer.md"));
    let mut broken = Vec::new();
    for (file, head) in [
        ("runtime/src/trainer.rs", "impl<L: Layer> TrainerBuilder<L>"),
        ("runtime/src/trainer.rs", "impl<L: Layer> Trainer<L>"),
        ("runtime/src/step.rs", "impl<'t, L: Layer> OpenStep<'t, L>"),
        ("runtime/src/step.rs", "impl<L: Layer> Gradients<'_, L>"),
        ("runtime/src/session.rs", "impl<L: Layer> Session<L>"),
    ] {
        let names = methods_of(file, head);
        assert!(names.len() >= 2, "{head} has only {names:?}");
        let is_explained = |name: &String| {
            ["(", "`", "::<"]
                .iter()
                .any(|end| [format!("`{name}{end}"), format!("::{name}{end}")].iter().any(|w| page.contains(w)))
        };
        broken.extend(names.iter().filter(|n| !is_explained(n)).map(|n| format!("`{n}` of `{head}` is not explained")));
    }
    report(broken);
}
