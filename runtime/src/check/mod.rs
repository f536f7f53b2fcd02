//! Checks for tools and tests: every registered layer, and every layer below one, in one line. In: the definitions that `#[layer]`
//! registers. Out: what was compared, or every difference. Planning never reads this.
//!
//! ```
//! use kiln::prelude::*;
//!
//! axes! { B: "batch", D: "model" }
//!
//! /// A gate.
//! #[layer]
//! fn gated(x: Tensor<B, D>, #[param(init = ones)] w: Tensor<D>) -> Tensor<B, D> {
//!     (x * w).silu()
//! }
//!
//! let report = kiln::check::recordings().unwrap();
//! assert!(report.compared.iter().any(|name| name == "gated"));
//! ```

pub mod kernels;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub mod library;
mod recording;

pub use recording::recorded_is_parsed;

use crate::layer::{KindSig, LayerDef, layers};
use std::collections::BTreeSet;
use std::fmt;

/// What was compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Names of the layers, children before parents; instances of a generic layer with their axes.
    pub compared: Vec<String>,
    /// Names of layers that cannot be compared: their body is recorded only.
    pub recorded_only: Vec<String>,
}

/// A layer that fails a check.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("layer `{layer}`: {message}")]
pub struct Failure {
    /// Name of the layer.
    pub layer: String,
    /// What differs.
    pub message: String,
}

/// Every layer that fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failures(pub Vec<Failure>);

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} layers fail", self.0.len())?;
        self.0.iter().try_for_each(|failure| write!(f, "\n{failure}"))
    }
}

impl std::error::Error for Failures {}

/// Records the body of every layer and compares it with what the macro has parsed.
///
/// # Errors
/// Every layer whose two functions differ.
pub fn recordings() -> Result<Report, Failures> {
    let mut report = Report::default();
    let mut failures = Vec::new();
    for def in every_layer() {
        match recorded_is_parsed(def) {
            Ok(true) => report.compared.push(instance_name(def)),
            Ok(false) => report.recorded_only.push(instance_name(def)),
            Err(failure) => failures.push(failure),
        }
    }
    if failures.is_empty() { Ok(report) } else { Err(Failures(failures)) }
}

/// Registered layers and the layers below them, which brings in the instances of generic ones; each once, children before parents.
pub fn every_layer() -> Vec<&'static LayerDef> {
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    let mut roots: Vec<&'static LayerDef> = layers().collect();
    // The linker's order is not the same everywhere.
    roots.sort_by_key(|def| (def.module, def.name));
    for def in roots {
        add(def, &mut seen, &mut found);
    }
    found
}

fn add(def: &'static LayerDef, seen: &mut BTreeSet<(&'static str, String)>, found: &mut Vec<&'static LayerDef>) {
    if !seen.insert((def.module, instance_name(def))) {
        return;
    }
    def.subs.iter().for_each(|child| add(child, seen, found));
    found.push(def);
}

/// `swiglu`, or `linear over [B, D], [D, F]` where the IR has axis parameters.
fn instance_name(def: &LayerDef) -> String {
    let is_generic = kiln_compiler::ir::text::parse_layer(def.ir).is_ok_and(|l| !l.generics.is_empty());
    if !is_generic {
        return def.name.to_owned();
    }
    let axes = |kind: KindSig| match kind {
        KindSig::Tensor(axes) | KindSig::Ids(axes) => format!("[{}]", axes.join(", ")),
        KindSig::Rope(seq, head) => format!("[{seq}, {head}]"),
        KindSig::Loss | KindSig::Tuple(_) => String::new(),
    };
    let all: Vec<String> = def.sig.inputs.iter().chain(def.sig.params).map(|a| axes(a.kind)).collect();
    format!("{} over {}", def.name, all.join(", "))
}
