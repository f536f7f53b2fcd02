//! Profiles: which worker was busy with which step of the schedule when, as a Chrome trace and as a table against what the machine can do.
//!
//! The host records while it trains; the schedule is the same in every training step, so steps are told apart by their number in the plan.

use crate::link::Model;
use crate::plan::Plan;
use crate::plan::cost::{self, Cost};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A part of a training step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// Step of the plan.
    Step(usize),
    /// The optimizer.
    Update,
}

/// A worker that was busy.
#[derive(Clone, Copy, Debug)]
pub struct Slice {
    /// Number of the worker.
    pub worker: usize,
    /// With what.
    pub what: What,
    /// Since the recording began.
    pub begin: Duration,
    /// Since the recording began.
    pub end: Duration,
}

/// What a device records.
#[derive(Clone, Debug)]
pub struct Recording {
    began: Instant,
    workers: usize,
    slices: Vec<Slice>,
    /// From the first worker's begin to the last one's end, in the order of execution.
    parts: Vec<(What, Duration)>,
}

/// What the machine can do, as measured by it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceilings {
    /// Products of large matrices, in 10⁹ operations per second.
    pub gflops: f64,
    /// A copy that no cache holds, read and written, in 10⁹ bytes per second.
    pub gb_per_s: f64,
}

/// A recording of some training steps with the model and the plan that it is of.
pub struct Profile<'a> {
    /// The model.
    pub model: &'a Model,
    /// The plan of a training step.
    pub plan: &'a Plan,
    /// What was recorded.
    pub recording: Recording,
}

impl Recording {
    /// An empty one, which begins now.
    pub fn new(workers: usize) -> Recording {
        Recording { began: Instant::now(), workers, slices: Vec::new(), parts: Vec::new() }
    }

    /// Adds a part that took from `begin` to `end`; `notes` calls its argument for every time that a worker was busy with it. A part that
    /// no worker noted was done by the first one alone.
    pub fn add(
        &mut self,
        what: What,
        begin: Instant,
        end: Instant,
        notes: impl FnOnce(&mut dyn FnMut(usize, (Instant, Instant))),
    ) {
        let since = |at: Instant| at.saturating_duration_since(self.began);
        let before = self.slices.len();
        let slices = &mut self.slices;
        notes(&mut |worker, (begin, end)| {
            slices.push(Slice { worker, what, begin: since(begin), end: since(end) });
        });
        if slices.len() == before {
            slices.push(Slice { worker: 0, what, begin: since(begin), end: since(end) });
        }
        self.parts.push((what, end.saturating_duration_since(begin)));
    }

    /// Everything that workers did.
    pub fn slices(&self) -> &[Slice] {
        &self.slices
    }

    /// Workers of the device.
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// Training steps: how often the optimizer ran.
    pub fn steps(&self) -> usize {
        self.parts.iter().filter(|(what, _)| *what == What::Update).count()
    }
}

/// A row of the table: all parts of one name.
#[derive(Debug, Default)]
struct Row {
    times: usize,
    seconds: f64,
    busy: f64,
    cost: Cost,
}

impl Profile<'_> {
    /// The name of a part.
    fn name(&self, what: What) -> String {
        match what {
            What::Step(i) => cost::name(self.model, &self.plan.steps[i]),
            What::Update => "optimizer".to_owned(),
        }
    }

    /// The phase, the layer and the line of a part.
    fn place(&self, what: What) -> (String, String, String) {
        let What::Step(i) = what else { return ("update".to_owned(), String::new(), String::new()) };
        let step = &self.plan.steps[i];
        let phase = format!("{:?}", step.phase).to_lowercase();
        (phase, step.path.to_string(), format!("{}:{}", step.file, step.line))
    }

    /// A trace for `chrome://tracing` or Perfetto: one lane per worker, one slice per step of the schedule, with its layer and line.
    pub fn trace(&self) -> String {
        const MICRO: f64 = 1e6;
        let lane = |worker: usize| json!({ "ph": "M", "pid": 0, "tid": worker, "name": "thread_name", "args": { "name": format!("worker {worker}") } });
        let slice = |s: &Slice| {
            let (phase, layer, line) = self.place(s.what);
            json!({
                "ph": "X", "pid": 0, "tid": s.worker, "name": self.name(s.what), "cat": phase,
                "ts": s.begin.as_secs_f64() * MICRO, "dur": (s.end - s.begin).as_secs_f64() * MICRO,
                "args": { "layer": layer, "line": line },
            })
        };
        let lanes = (0..self.recording.workers).map(lane);
        let events: Vec<_> = lanes.chain(self.recording.slices.iter().map(slice)).collect();
        json!({ "displayTimeUnit": "ms", "traceEvents": events }).to_string()
    }

    /// Per name and phase, the longest first: milliseconds of a training step, share, rate, its part of the ceiling, and how much of their
    /// time workers were busy. Steps with products are compared with the ceiling of products, others with that of copies.
    pub fn table(&self, ceilings: Ceilings) -> String {
        const GIGA: f64 = 1e9;
        let steps = self.recording.steps().max(1) as f64;
        let rows = self.rows();
        let all: f64 = rows.iter().map(|(_, row)| row.seconds).sum();
        let mut out = format!(
            "{} steps of {:.2} ms; ceilings: products {:.0} GFLOP/s, copies {:.1} GB/s\n\
             {:>9}  {:>6}  {:>5}  {:>13}  {:>10}  {:>5}  kernel\n",
            self.recording.steps(),
            1e3 * all / steps,
            ceilings.gflops,
            ceilings.gb_per_s,
            "ms a step",
            "share",
            "times",
            "rate",
            "of ceiling",
            "busy"
        );
        for ((name, phase), row) in rows {
            let (rate, unit, ceiling) = match row.cost.flops > 0.0 {
                true => (row.cost.flops / row.seconds / GIGA, "GFLOP/s", ceilings.gflops),
                false => (row.cost.bytes as f64 / row.seconds / GIGA, "GB/s", ceilings.gb_per_s),
            };
            let line = format_args!(
                "{:>9.3}  {:>4.1} %  {:>5.0}  {rate:>5.1} {unit:<7}  {:>8.0} %  {:>3.0} %  {name} ({phase})\n",
                1e3 * row.seconds / steps,
                100.0 * row.seconds / all,
                row.times as f64 / steps,
                100.0 * rate / ceiling,
                100.0 * row.busy / (row.seconds * self.recording.workers as f64),
            )
            .to_string();
            out.push_str(&line);
        }
        out
    }

    fn rows(&self) -> Vec<((String, String), Row)> {
        let mut rows: BTreeMap<(String, String), Row> = BTreeMap::new();
        let key = |what: What| (self.name(what), self.place(what).0);
        for &(what, time) in &self.recording.parts {
            let row = rows.entry(key(what)).or_default();
            let cost = match what {
                What::Step(i) => cost::cost(self.plan, &self.plan.steps[i]),
                What::Update => self.update_cost(),
            };
            row.times += 1;
            row.seconds += time.as_secs_f64();
            row.cost = Cost { bytes: row.cost.bytes + cost.bytes, flops: row.cost.flops + cost.flops };
        }
        for s in &self.recording.slices {
            let row = rows.entry(key(s.what)).or_default();
            row.busy += (s.end - s.begin).as_secs_f64();
        }
        let mut rows: Vec<_> = rows.into_iter().collect();
        rows.sort_by(|a, b| b.1.seconds.total_cmp(&a.1.seconds));
        rows
    }

    /// Weight, gradient and two moments are read, all but the gradient written.
    fn update_cost(&self) -> Cost {
        const VISITS: usize = 7;
        let elements: usize = self.model.params.iter().filter(|p| !p.frozen).map(crate::link::Param::len).sum();
        Cost { bytes: VISITS * size_of::<f32>() * elements, flops: 0.0 }
    }
}

/// The trace and the table of a profile.
#[derive(Clone, Debug)]
pub struct Profiled {
    /// See [`Profile::trace`].
    pub trace: String,
    /// See [`Profile::table`].
    pub table: String,
}

impl Profiled {
    /// Both.
    pub fn of(profile: &Profile<'_>, ceilings: Ceilings) -> Profiled {
        Profiled { trace: profile.trace(), table: profile.table(ceilings) }
    }
}
