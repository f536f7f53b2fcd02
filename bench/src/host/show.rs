//! The results for people: a table in markdown and a picture in SVG.

use super::compare::{Measured, Results};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Median of some samples.
pub fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The least and the largest of some samples.
pub fn range(samples: &[f64]) -> (f64, f64) {
    samples.iter().fold((f64::INFINITY, 0.0), |(least, most): (f64, f64), &x| (least.min(x), most.max(x)))
}

/// One row for each model and library, Kiln first; `ratio` is Kiln's median over that library's.
pub fn table(results: &Results) -> String {
    let mut out = format!(
        "# {}, {}\n\nKiln {}; {} threads each; medians of {} turns, with their range.\n\n",
        results.cpu,
        results.date,
        results.commit,
        results.threads,
        results.models.values().flat_map(BTreeMap::values).map(|m| m.tokens_per_s.len()).max().unwrap_or(0)
    );
    out.push_str("| model | library | tokens/s | range | Kiln is × as fast | peak, MB | first step, s | faults a step | system time | loss |\n");
    out.push_str("|---|---|---|---|---|---|---|---|---|---|\n");
    for (model, libraries) in &results.models {
        let kiln = libraries.get("kiln").map_or(f64::NAN, |m| median(&m.tokens_per_s));
        for (name, m) in ordered(libraries) {
            let (rate, (least, most)) = (median(&m.tokens_per_s), range(&m.tokens_per_s));
            push(
                &mut out,
                format_args!(
                    "| {model} | {name} | {rate:.0} | {least:.0}–{most:.0} | {:.2} | {:.0} | {:.2} | {:.1} | {:.1} % | {:.5} |\n",
                    kiln / rate,
                    m.peak_bytes as f64 / 1e6,
                    m.first_step_s,
                    m.faults_per_step,
                    100.0 * m.system_share,
                    m.loss
                ),
            );
        }
        if let Some(floor) = results.floor_tokens_per_s.get(model) {
            push(
                &mut out,
                format_args!("| {model} | products alone | {floor:.0} |  | {:.2} |  |  |  |  |  |\n", kiln / floor),
            );
        }
    }
    for (model, products) in &results.products {
        push(&mut out, format_args!("\n## Products of {model}\n\n| product | m × n × k | times | "));
        let names: Vec<&String> = products.first().map(|p| p.gflops.keys().collect()).unwrap_or_default();
        out.push_str(&names.iter().map(|n| format!("{n}, GFLOP/s | ")).collect::<String>());
        push(&mut out, format_args!("\n|---|---|---|{}\n", "---|".repeat(names.len())));
        for p in products {
            push(&mut out, format_args!("| {} | {} × {} × {} | {} | ", p.name, p.m, p.n, p.k, p.times));
            out.push_str(&p.gflops.values().map(|g| format!("{g:.0} | ")).collect::<String>());
            out.push('\n');
        }
    }
    out
}

/// Kiln first, then by name.
fn ordered(libraries: &BTreeMap<String, Measured>) -> Vec<(&String, &Measured)> {
    let mut all: Vec<_> = libraries.iter().collect();
    all.sort_by_key(|(name, _)| (*name != "kiln", (*name).clone()));
    all
}

const WIDTH: f64 = 720.0;
const LEFT: f64 = 150.0;
const RIGHT: f64 = 110.0;
const BAR: f64 = 18.0;
const GAP: f64 = 6.0;
const TITLE: f64 = 34.0;

/// Bars of tokens per second, a group for each model, each group on its own scale.
pub fn chart(results: &Results) -> String {
    let rows: usize = results.models.values().map(BTreeMap::len).sum();
    let height = TITLE + results.models.len() as f64 * TITLE + rows as f64 * (BAR + GAP) + GAP;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"{}\" y=\"22\" text-anchor=\"middle\" font-size=\"15\">Training, tokens per second ({}, {} threads)</text>\n",
        WIDTH / 2.0,
        results.cpu,
        results.threads
    );
    let mut y = TITLE;
    for (model, libraries) in &results.models {
        y += TITLE;
        push(&mut out, format_args!("<text x=\"8\" y=\"{}\" font-weight=\"bold\">{model}</text>\n", y - GAP));
        let most = libraries.values().map(|m| median(&m.tokens_per_s)).fold(0.0, f64::max);
        for (name, m) in ordered(libraries) {
            let rate = median(&m.tokens_per_s);
            let width = (WIDTH - LEFT - RIGHT) * rate / most;
            // Okabe & Ito's blue for Kiln.
            let colour = if name == "kiln" { "#0072B2" } else { "#999999" };
            push(
                &mut out,
                format_args!(
                    "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{name}</text>\n\
                     <rect x=\"{LEFT}\" y=\"{y}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>\n\
                     <text x=\"{:.1}\" y=\"{}\">{rate:.0}</text>\n",
                    LEFT - GAP,
                    y + 13.0,
                    LEFT + width + GAP,
                    y + 13.0
                ),
            );
            y += BAR + GAP;
        }
    }
    out.push_str("</svg>\n");
    out
}

/// Appends a formatted text.
pub(super) fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a string takes every text");
}
