//! Curves over steps as a small SVG picture: axes with ticks, a title, a legend.

use std::fmt::Write;

/// One curve.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    /// Its name in the legend.
    pub name: String,
    /// (step, value); points that are not finite are left out.
    pub points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 48.0;
/// Okabe & Ito's colours, which colour-blind readers tell apart.
const COLOURS: [&str; 4] = ["#0072B2", "#D55E00", "#009E73", "#CC79A7"];
/// About this many ticks per axis.
const TICKS: f64 = 6.0;
/// More points than this per curve cannot be seen at this width.
const MAX_POINTS: usize = 2000;

/// The picture of these curves; without points, an empty frame.
pub fn svg(title: &str, x_label: &str, y_label: &str, curves: &[Curve]) -> String {
    let curves: Vec<Curve> = curves.iter().map(drawable).collect();
    let points = || curves.iter().flat_map(|c| &c.points);
    let x = Scale::over(points().map(|p| p.0), LEFT, WIDTH - RIGHT);
    let y = Scale::over(points().map(|p| p.1), HEIGHT - BOTTOM, TOP);

    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    let middle = (LEFT + WIDTH - RIGHT) / 2.0;
    text(&mut out, middle, 22.0, "middle", "font-size=\"15\"", title);
    text(&mut out, middle, HEIGHT - 10.0, "middle", "", x_label);
    let centre = (TOP + HEIGHT - BOTTOM) / 2.0;
    text(&mut out, 16.0, centre, "middle", &format!("transform=\"rotate(-90 16 {centre})\""), y_label);
    for tick in x.ticks() {
        let at = x.at(tick);
        line(&mut out, (at, TOP), (at, HEIGHT - BOTTOM));
        text(&mut out, at, HEIGHT - BOTTOM + 16.0, "middle", "", &label(tick));
    }
    for tick in y.ticks() {
        let at = y.at(tick);
        line(&mut out, (LEFT, at), (WIDTH - RIGHT, at));
        text(&mut out, LEFT - 6.0, at + 4.0, "end", "", &label(tick));
    }
    for (i, curve) in curves.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let path: Vec<String> = curve.points.iter().map(|&(a, b)| format!("{:.1},{:.1}", x.at(a), y.at(b))).collect();
        push(
            &mut out,
            format_args!(
                "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" points=\"{}\"/>\n",
                path.join(" ")
            ),
        );
        let row = TOP + 14.0 + 18.0 * i as f64;
        push(
            &mut out,
            format_args!(
                "<rect x=\"{}\" y=\"{}\" width=\"18\" height=\"3\" fill=\"{colour}\"/>\n",
                WIDTH - 140.0,
                row - 5.0
            ),
        );
        text(&mut out, WIDTH - 116.0, row, "start", "", &curve.name);
    }
    out.push_str("</svg>\n");
    out
}

/// Finite points, thinned evenly, the last one kept.
fn drawable(curve: &Curve) -> Curve {
    let finite: Vec<(f64, f64)> =
        curve.points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
    let stride = finite.len().div_ceil(MAX_POINTS).max(1);
    let last = finite.len().saturating_sub(1);
    let points =
        finite.into_iter().enumerate().filter(|(i, _)| i % stride == 0 || *i == last).map(|(_, p)| p).collect();
    Curve { name: curve.name.clone(), points }
}

/// A linear map from values to pixels.
struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Scale {
    fn over(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Scale {
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        let (low, high) = match (low <= high, high / 2.0 - low / 2.0 >= f64::MIN_POSITIVE) {
            (true, true) => (low, high),
            // Half the value to each side, so that a single value (or a range too small to divide by) is in the middle.
            (true, false) => (low - low.abs().max(1.0) / 2.0, high + high.abs().max(1.0) / 2.0),
            (false, _) => (0.0, 1.0),
        };
        Scale { low, high, from, to }
    }

    /// Halves before the subtraction: the range of two large values of opposite sign may be infinite.
    fn at(&self, value: f64) -> f64 {
        let part = (value / 2.0 - self.low / 2.0) / (self.high / 2.0 - self.low / 2.0);
        self.from + part * (self.to - self.from)
    }

    /// Multiples of 1, 2 or 5 times a power of ten.
    fn ticks(&self) -> Vec<f64> {
        let raw = (self.high / TICKS - self.low / TICKS).max(f64::MIN_POSITIVE);
        let power = 10f64.powf(raw.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= raw).unwrap_or(raw);
        let first = (self.low / step).ceil();
        (0..=(2.0 * TICKS) as u32)
            .map(|i| (first + f64::from(i)) * step)
            .take_while(|tick| *tick <= self.high)
            .collect()
    }
}

/// Up to five digits, without the noise of binary fractions.
fn label(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if (1e-3..1e6).contains(&size) => {
            let fixed = format!("{value:.4}");
            fixed.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
        _ => format!("{value:.1e}"),
    }
}

fn line(out: &mut String, from: (f64, f64), to: (f64, f64)) {
    let ((x1, y1), (x2, y2)) = (from, to);
    push(out, format_args!("<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"#ddd\"/>\n"));
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, attributes: &str, content: &str) {
    push(
        out,
        format_args!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" {attributes}>{}</text>\n",
            escaped(content)
        ),
    );
}

fn push(out: &mut String, content: std::fmt::Arguments<'_>) {
    // Writing into a String cannot fail.
    let _ = out.write_fmt(content);
}

/// XML text: markup is escaped, control characters, which XML forbids, become spaces.
fn escaped(content: &str) -> String {
    let mut out = String::with_capacity(content.len());
    for c in content.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() || matches!(c, '\u{FFFE}' | '\u{FFFF}') => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(points: &[(f64, f64)]) -> Curve {
        Curve { name: "train".into(), points: points.to_vec() }
    }

    #[test]
    fn curves_stay_inside_the_frame() {
        let picture = svg("loss", "step", "nats", &[curve(&[(0.0, 5.5), (50.0, 2.0), (100.0, 1.5)])]);
        assert!(picture.contains("points=\"64.0,40.0 384.0,330.5 704.0,372.0\""), "{picture}");
        assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"));
        assert!(picture.contains(">20</text>") && picture.contains(">2</text>"));
    }

    #[test]
    fn ticks_are_round_numbers_inside_the_range() {
        let scale = Scale { low: 1.37, high: 5.61, from: 0.0, to: 1.0 };
        assert_eq!(scale.ticks(), [2.0, 3.0, 4.0, 5.0]);
        let scale = Scale { low: 0.0, high: 2000.0, from: 0.0, to: 1.0 };
        assert_eq!(scale.ticks(), [0.0, 500.0, 1000.0, 1500.0, 2000.0]);
    }

    #[test]
    fn odd_data_gives_a_valid_picture() {
        for points in [
            &[][..],
            &[(1.0, 2.0)],
            &[(1.0, f64::NAN), (f64::INFINITY, 2.0)],
            &[(0.0, f64::MAX), (1.0, f64::MIN)],
            &[(0.0, 0.0), (1.0, 5e-324)],
        ] {
            let picture = svg("t", "x", "y", &[curve(points)]);
            assert!(!picture.contains("NaN") && !picture.contains("inf"), "{points:?}: {picture}");
        }
    }

    #[test]
    fn text_is_escaped() {
        let picture = svg("<script>&\"\u{0}", "x", "y", &[]);
        assert!(picture.contains("&lt;script&gt;&amp;&quot; <"));
    }

    #[test]
    fn long_curves_are_thinned() {
        let points: Vec<(f64, f64)> = (0..100_000).map(|i| (f64::from(i), 1.0 / f64::from(i + 1))).collect();
        assert!(svg("t", "x", "y", &[curve(&points)]).len() < 60_000);
        assert_eq!(drawable(&curve(&points)).points.last(), points.last());
    }
}
