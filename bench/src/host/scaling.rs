//! How the cost of a step grows with batch, sequence, layers and threads.
//!
//! XS is varied along one axis at a time; all sessions live in one process and take turns, so that whatever slows the machine down slows
//! all of them. Each curve gets the exponent e of a power law t = c·xᵉ, fitted by least squares to its logarithms: over all points, and
//! over the last three, where what does not grow with x matters least.

use super::show::{median, push, range};
use super::{models, today};
use crate::Result;
use crate::models::Model;
use kiln::Axis;
use kiln::trainer::Trainer;
use kiln_examples::gpt::{B, Gpt, L, S};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::thread::available_parallelism;
use std::time::Instant;

/// Axis of the model → values that it takes; all others stay as they are in XS, but for the batch along sequences.
const BATCHES: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
const SEQUENCES: [usize; 7] = [16, 32, 64, 128, 256, 512, 1024];
const LAYERS: [usize; 5] = [1, 2, 4, 8, 16];
/// Rows of a batch along sequences: the longest ones have half as many tokens as the largest batch.
const ROWS: usize = 4;
/// Steps that are not timed, and the least time of a turn.
const WARM_UP: usize = 2;
const TURN_SECONDS: f64 = 0.1;
/// Points of the second fit.
const LAST: usize = 3;

/// A point of a curve.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Point {
    /// Size of the axis, or number of threads.
    pub at: usize,
    /// Milliseconds a step, of each turn.
    pub ms: Vec<f64>,
}

/// The points of one axis, and what was fitted to them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Curve {
    /// By size.
    pub points: Vec<Point>,
    /// Over all points.
    pub exponent: f64,
    /// Over the last three.
    pub exponent_of_last: f64,
}

/// The file of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Scaling {
    /// Day, as YYYY-MM-DD.
    pub date: String,
    /// The commit that was measured.
    pub commit: String,
    /// Name of the processor.
    pub cpu: String,
    /// Worker threads, except along `threads`.
    pub threads: usize,
    /// `batch`, `sequence`, `layers` or `threads` → points.
    pub curves: BTreeMap<String, Curve>,
}

/// A session that takes turns.
struct Session {
    curve: &'static str,
    at: usize,
    trainer: Trainer<Gpt>,
    batch: (Vec<i32>, Vec<i32>),
    steps: usize,
    ms: Vec<f64>,
}

impl Session {
    fn new(curve: &'static str, at: usize, model: &Model, threads: usize) -> Result<Session> {
        let trainer = super::trainer(model, threads).build()?;
        let batch = model.batch(&model.tokens(1), 0);
        let mut session = Session { curve, at, trainer, batch, steps: 1, ms: Vec::new() };
        for _ in 0..WARM_UP {
            session.run(1)?;
        }
        session.steps = (TURN_SECONDS / session.run(1)?).ceil().max(1.0) as usize;
        Ok(session)
    }

    /// Seconds that `steps` steps take.
    fn run(&mut self, steps: usize) -> Result<f64> {
        let begin = Instant::now();
        for _ in 0..steps {
            self.trainer.submit(&self.batch)?;
        }
        self.trainer.report()?;
        Ok(begin.elapsed().as_secs_f64())
    }

    fn turn(&mut self) -> Result<()> {
        let seconds = self.run(self.steps)?;
        self.ms.push(1e3 * seconds / self.steps as f64);
        Ok(())
    }
}

/// XS with other sizes.
fn with(sizes: &[(&str, usize)]) -> Model {
    let [mut model, ..] = models();
    let size = |axis: &str, n| sizes.iter().find(|(a, _)| *a == axis).map_or(n, |(_, n)| *n);
    model.sizes = model.sizes.iter().map(|(axis, n)| (axis, size(axis.name(), n))).collect();
    model
}

/// Measures all curves in `rounds` turns.
///
/// # Errors
/// If a session cannot be built or a step fails.
pub fn run(threads: usize, rounds: usize, commit: &str) -> Result<Scaling> {
    let mut sessions = Vec::new();
    let processors = available_parallelism()?.get();
    let points = |curve: &'static str, values: &[usize]| values.iter().map(|&at| (curve, at)).collect::<Vec<_>>();
    let doubled: Vec<usize> =
        std::iter::successors(Some(1), |n| Some(2 * n)).take_while(|&n| n <= processors).collect();
    let all = [points("batch", &BATCHES), points("sequence", &SEQUENCES), points("layers", &LAYERS)];
    for (curve, at) in all.into_iter().flatten().chain(points("threads", &doubled)) {
        let (model, threads) = match curve {
            "batch" => (with(&[(B::NAME, at)]), threads),
            "sequence" => (with(&[(S::NAME, at), (B::NAME, ROWS)]), threads),
            "layers" => (with(&[(L::NAME, at)]), threads),
            _ => (with(&[]), at),
        };
        sessions.push(Session::new(curve, at, &model, threads)?);
    }
    for _ in 0..rounds {
        sessions.iter_mut().try_for_each(Session::turn)?;
    }
    let mut curves: BTreeMap<String, Vec<Point>> = BTreeMap::new();
    for s in sessions {
        curves.entry(s.curve.to_owned()).or_default().push(Point { at: s.at, ms: s.ms });
    }
    let curve = |points: Vec<Point>| {
        let last = &points[points.len().saturating_sub(LAST)..];
        Curve { exponent: exponent(&points), exponent_of_last: exponent(last), points }
    };
    let curves = curves.into_iter().map(|(name, points)| (name, curve(points))).collect();
    Ok(Scaling { date: today(), commit: commit.to_owned(), cpu: super::processor(), threads, curves })
}

/// Slope of the straight line through the logarithms; NaN for a single point.
fn exponent(points: &[Point]) -> f64 {
    let logs: Vec<(f64, f64)> = points.iter().map(|p| ((p.at as f64).ln(), median(&p.ms).ln())).collect();
    let n = logs.len() as f64;
    let (x, y) = logs.iter().fold((0.0, 0.0), |(x, y), p| (x + p.0 / n, y + p.1 / n));
    let (xx, xy) = logs.iter().fold((0.0, 0.0), |(xx, xy), p| (xx + (p.0 - x).powi(2), xy + (p.0 - x) * (p.1 - y)));
    xy / xx
}

/// One table for each curve.
pub fn table(scaling: &Scaling) -> String {
    let Scaling { cpu, date, commit, threads, .. } = scaling;
    let mut out =
        format!("# Cost of a step, {cpu}, {date}\n\nKiln {commit}; XS along one axis at a time; {threads} threads.\n");
    for (name, curve) in &scaling.curves {
        let Curve { exponent: all, exponent_of_last: last, .. } = curve;
        push(&mut out, format_args!("\n## {name}: exponent {all:.2}, of the last points {last:.2}\n\n"));
        push(&mut out, format_args!("| {name} | ms a step | range |\n|---|---|---|\n"));
        for p in &curve.points {
            let (least, most) = range(&p.ms);
            push(&mut out, format_args!("| {} | {:.2} | {least:.2}–{most:.2} |\n", p.at, median(&p.ms)));
        }
    }
    out
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 244.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 44.0;
/// Okabe and Ito's blue, vermilion and green.
const COLOURS: [&str; 3] = ["#0072B2", "#D55E00", "#009E73"];

/// Milliseconds a step over the size of an axis, both in logarithms; threads are not shown.
pub fn chart(scaling: &Scaling) -> String {
    let curves: Vec<_> = scaling.curves.iter().filter(|(name, _)| *name != "threads").collect();
    let points = || curves.iter().flat_map(|(_, c)| &c.points);
    let x_end = points().map(|p| p.at as f64).fold(1.0, f64::max).log2().ceil();
    let (y_begin, y_end) =
        points().map(|p| median(&p.ms)).fold((f64::INFINITY, 0.0f64), |(a, b), y| (a.min(y), b.max(y)));
    let (y_begin, y_end) = (y_begin.log10().floor(), y_end.log10().ceil());
    let x = |at: f64| LEFT + (WIDTH - LEFT - RIGHT) * at.log2() / x_end;
    let y = |ms: f64| HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (ms.log10() - y_begin) / (y_end - y_begin);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{}\" y=\"22\" text-anchor=\"middle\" font-size=\"15\">Milliseconds a step of XS ({}, {} threads)</text>\n",
        WIDTH / 2.0,
        scaling.cpu,
        scaling.threads
    );
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    for power in 0..=x_end as i32 {
        let (at, x) = (2f64.powi(power), x(2f64.powi(power)));
        push(
            &mut out,
            format_args!("<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\" stroke=\"#dddddd\"/>\n"),
        );
        push(&mut out, format_args!("<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{at}</text>\n", bottom + 18.0));
    }
    for power in y_begin as i32..=y_end as i32 {
        let (ms, y) = (10f64.powi(power), y(10f64.powi(power)));
        push(
            &mut out,
            format_args!("<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\" stroke=\"#dddddd\"/>\n"),
        );
        push(
            &mut out,
            format_args!("<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{ms}</text>\n", LEFT - 8.0, y + 4.0),
        );
    }
    for (i, (name, curve)) in curves.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let at = |p: &Point| (x(p.at as f64), y(median(&p.ms)));
        let line: Vec<String> = curve.points.iter().map(at).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        push(
            &mut out,
            format_args!(
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n",
                line.join(" ")
            ),
        );
        for (x, y) in curve.points.iter().map(at) {
            push(&mut out, format_args!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\"/>\n"));
        }
        let y = TOP + 20.0 * (i + 1) as f64;
        let label = format!("{name}: x^{:.2}, at the end x^{:.2}", curve.exponent, curve.exponent_of_last);
        push(&mut out, format_args!("<text x=\"{}\" y=\"{y}\" fill=\"{colour}\">{label}</text>\n", right + 12.0));
    }
    out.push_str("</svg>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn power_laws_have_their_exponents() {
        let points = |f: fn(f64) -> f64| -> Vec<Point> {
            [1, 2, 4, 8].map(|at| Point { at, ms: vec![9e9, f(at as f64), 0.0] }).to_vec()
        };
        assert!((exponent(&points(|x| 3.0 * x)) - 1.0).abs() < 1e-12);
        assert!((exponent(&points(|x| 0.1 * x.powf(1.5))) - 1.5).abs() < 1e-12);
        assert!((exponent(&points(|_| 7.0))).abs() < 1e-12);
    }

    #[test]
    fn curves_are_measured_and_drawn() {
        let curve = |points: Vec<Point>| Curve { exponent: exponent(&points), exponent_of_last: 1.0, points };
        let points = || [1, 2, 4].map(|at| Point { at, ms: vec![at as f64] }).to_vec();
        let curves = ["batch", "threads"].map(|name| (name.to_owned(), curve(points()))).into();
        let scaling = Scaling { date: "2026-01-01".into(), commit: "x".into(), cpu: "c".into(), threads: 2, curves };
        let svg = chart(&scaling);
        assert_eq!(svg.matches("<polyline").count(), 1);
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(table(&scaling).contains("## batch: exponent 1.00"));
    }

    #[test]
    fn sizes_replace_those_of_xs() {
        let model = with(&[(B::NAME, 3), (L::NAME, 1)]);
        assert_eq!(model.tokens_per_step(), 3 * 128);
    }
}
