//! What a person sees while training: a bar on a terminal, plain lines elsewhere; a closed pipe never stops a run.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Shows how far a run is.
#[derive(Debug)]
pub enum Progress {
    /// A bar that is drawn in place.
    Bar(ProgressBar),
    /// One line per report.
    Lines {
        /// Steps of the whole run.
        steps: u64,
    },
}

/// What the environment allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// A bar with colours.
    Colour,
    /// A bar without colours.
    Plain,
    /// Lines without escape codes.
    Lines,
}

/// One report.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Report {
    /// Steps that are complete.
    pub step: u64,
    /// Mean loss, in nats.
    pub loss: f64,
    /// Mean validation loss, on steps that evaluate.
    pub valid_loss: Option<f64>,
    /// Units per second.
    pub per_second: f64,
    /// What is counted: `tokens`, `rows`.
    pub unit: &'static str,
    /// Seconds until the end at this speed.
    pub eta_s: f64,
}

impl Style {
    /// A bar needs standard error and output on a terminal that can redraw; `NO_COLOR` (no-color.org) takes its colours.
    pub fn of_environment() -> Style {
        let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        match io::stderr().is_terminal() && io::stdout().is_terminal() && !dumb {
            false => Style::Lines,
            true if set("NO_COLOR") => Style::Plain,
            true => Style::Colour,
        }
    }
}

impl Progress {
    /// Shows a run of `steps` steps of which `done` are complete.
    pub fn new(style: Style, steps: u64, done: u64) -> Self {
        let template = match style {
            Style::Lines => return Progress::Lines { steps },
            Style::Plain => "{bar:24} {pos}/{len} {msg}",
            Style::Colour => "{bar:24.cyan/blue} {pos}/{len} {msg}",
        };
        let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr());
        // The template is a constant: if it did not parse, the default style would show.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("█▉▊▋▌▍▎▏ "));
        }
        bar.set_position(done);
        Progress::Bar(bar)
    }

    /// Moves a bar to step `done`; lines say nothing of it.
    pub fn advance(&self, done: u64) {
        match self {
            Progress::Lines { .. } => {}
            Progress::Bar(bar) => bar.set_position(done),
        }
    }

    /// Shows a report.
    pub fn report(&self, report: &Report) {
        match self {
            Progress::Lines { steps } => print_note(&format!("step {}/{steps} {}", report.step, report.text())),
            Progress::Bar(bar) => {
                bar.set_position(report.step);
                bar.set_message(report.text());
            }
        }
    }

    /// Prints a line that stays, above the bar if there is one.
    pub fn line(&self, text: &str) {
        match self {
            Progress::Lines { .. } => print_note(text),
            Progress::Bar(bar) => bar.suspend(|| print_note(text)),
        }
    }

    /// Ends the bar where it is.
    pub fn finish(&self) {
        if let Progress::Bar(bar) = self {
            bar.abandon();
        }
    }
}

impl Report {
    fn text(&self) -> String {
        let valid = self.valid_loss.map_or(String::new(), |loss| format!(" valid {loss:.4}"));
        let left = duration_text(self.eta_s);
        format!("loss {:.4}{valid} {:.0} {}/s ETA {left}", self.loss, self.per_second, self.unit)
    }
}

/// `1h 02m`, `2m 05s` or `7s`; `?` when it cannot be known.
pub fn duration_text(seconds: f64) -> String {
    let Ok(duration) = Duration::try_from_secs_f64(seconds) else { return "?".to_owned() };
    let s = duration.as_secs_f64().round() as u64;
    match (s / 3600, s / 60 % 60, s % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m {s:02}s"),
        (h, m, _) => format!("{h}h {m:02}m"),
    }
}

/// Prints a result line. If the reader has closed the pipe (`.. | head`), the process ends quietly with status 0.
///
/// # Panics
/// Never; other errors of standard output end the process with status 1 and a message.
pub fn print_line(text: &str) {
    print_text(&format!("{text}\n"));
}

/// The same without an end of line, shown at once.
pub fn print_text(text: &str) {
    match write_out(text) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => {
            let _ = writeln!(io::stderr(), "cannot write to standard output: {error}");
            std::process::exit(1);
        }
    }
}

/// Prints a line of a training run, which goes on when nobody reads its lines: its record is `metrics.jsonl`.
pub fn print_note(text: &str) {
    let _ = write_out(&format!("{text}\n"));
}

fn write_out(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_short_and_without_escape_codes() {
        let report =
            Report { step: 5, loss: 2.34567, valid_loss: None, per_second: 1234.5, unit: "tokens", eta_s: 65.2 };
        assert_eq!(report.text(), "loss 2.3457 1234 tokens/s ETA 1m 05s");
        let evaluated = Report { valid_loss: Some(2.5), eta_s: f64::NAN, ..report };
        assert_eq!(evaluated.text(), "loss 2.3457 valid 2.5000 1234 tokens/s ETA ?");
    }

    #[test]
    fn durations_read_well() {
        let texts = [0.4, 59.6, 61.0, 3599.0, 3661.0, -1.0, 1e300].map(duration_text);
        assert_eq!(texts, ["0s", "1m 00s", "1m 01s", "59m 59s", "1h 01m", "?", "?"]);
    }

    #[test]
    fn tests_see_lines() {
        // The harness captures output, so neither stream is a terminal for certain only when both are pipes.
        if !io::stdout().is_terminal() {
            assert_eq!(Style::of_environment(), Style::Lines);
        }
        Progress::new(Style::Lines, 10, 0).finish();
    }
}
