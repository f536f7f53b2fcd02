//! Axis names, and the sizes that a session binds to them.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::{LazyLock, Mutex};

/// A named dimension. Identity is the name; comparison is by text, so order is deterministic.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Axis(&'static str);

static NAMES: LazyLock<Mutex<HashSet<&'static str>>> = LazyLock::new(|| Mutex::new(HashSet::new()));

impl Axis {
    /// The axis called `name`.
    pub fn new(name: &str) -> Axis {
        // A poisoned lock still holds a valid set: names are only ever added.
        let mut names = NAMES.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(known) = names.get(name) {
            return Axis(known);
        }
        let kept: &'static str = Box::leak(name.to_owned().into_boxed_str());
        names.insert(kept);
        Axis(kept)
    }

    /// The axis called `name`, in constants.
    pub const fn of(name: &'static str) -> Axis {
        Axis(name)
    }

    /// Its name as the user wrote it.
    pub const fn name(self) -> &'static str {
        self.0
    }

    /// Axes that the parser invents for a callee's unknown result; linking replaces them.
    pub fn is_wildcard(self) -> bool {
        self.0.starts_with('?')
    }
}

impl fmt::Display for Axis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl fmt::Debug for Axis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Axis → size in elements.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sizes(BTreeMap<Axis, usize>);

impl Sizes {
    /// No sizes yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Binds `axis`, returning the size that it had before.
    pub fn bind(&mut self, axis: Axis, size: usize) -> Option<usize> {
        self.0.insert(axis, size)
    }

    /// The size of `axis`, if it is bound.
    pub fn get(&self, axis: Axis) -> Option<usize> {
        self.0.get(&axis).copied()
    }

    /// The size of an axis that linking has bound.
    ///
    /// # Panics
    /// If it is unbound: linking checks every axis of a model, so that is a bug of Kiln.
    pub fn of(&self, axis: Axis) -> usize {
        self.get(axis).unwrap_or_else(|| panic!("axis `{axis}` has no size after linking"))
    }

    /// The sizes of a shape, in its order.
    pub fn shape(&self, shape: &[Axis]) -> Vec<usize> {
        shape.iter().map(|&a| self.of(a)).collect()
    }

    /// Number of elements of a shape.
    pub fn elements(&self, shape: &[Axis]) -> usize {
        shape.iter().map(|&a| self.of(a)).product()
    }

    /// All bindings, by name.
    pub fn iter(&self) -> impl Iterator<Item = (Axis, usize)> + '_ {
        self.0.iter().map(|(&a, &n)| (a, n))
    }
}

impl FromIterator<(Axis, usize)> for Sizes {
    fn from_iter<I: IntoIterator<Item = (Axis, usize)>>(iter: I) -> Self {
        Sizes(iter.into_iter().collect())
    }
}
