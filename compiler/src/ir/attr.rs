//! Attributes of nodes: named constants.

use super::{Axis, DType};
use std::collections::BTreeMap;

/// One attribute value.
#[derive(Clone, Debug, PartialEq)]
pub enum Attr {
    /// An integer.
    Int(i64),
    /// A real number; printed so that it reads back exactly.
    Float(f64),
    /// A flag.
    Bool(bool),
    /// A word.
    Str(String),
    /// One axis.
    Axis(Axis),
    /// Several axes, in order.
    Axes(Vec<Axis>),
    /// An element type.
    DType(DType),
    /// The value of a `#[config]` argument; replaced when the model is linked.
    Config(String),
}

/// The attributes of one node, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attrs(BTreeMap<String, Attr>);

impl Attrs {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// With one more attribute.
    pub fn with(mut self, name: &str, value: impl Into<Attr>) -> Self {
        self.set(name, value);
        self
    }

    /// Sets an attribute.
    pub fn set(&mut self, name: &str, value: impl Into<Attr>) {
        self.0.insert(name.to_owned(), value.into());
    }

    /// Removes an attribute.
    pub fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// Reads an attribute.
    pub fn get(&self, name: &str) -> Option<&Attr> {
        self.0.get(name)
    }

    /// All attributes, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Attr)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// All values, to be rewritten in place.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Attr> {
        self.0.values_mut()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The axes under `name`. Type rules run first and refuse nodes that lack an attribute, so that later passes may rely on it.
    ///
    /// # Panics
    /// If it is missing: the verifier has not run.
    pub fn axes(&self, name: &str) -> &[Axis] {
        match self.get(name) {
            Some(Attr::Axes(a)) => a,
            other => panic!("attribute `{name}` must be axes, is {other:?}"),
        }
    }

    /// The axis under `name`; see [`Attrs::axes`] for when it panics.
    pub fn axis(&self, name: &str) -> Axis {
        match self.get(name) {
            Some(Attr::Axis(a)) => *a,
            other => panic!("attribute `{name}` must be an axis, is {other:?}"),
        }
    }

    /// The number under `name`; see [`Attrs::axes`] for when it panics.
    pub fn float(&self, name: &str) -> f64 {
        match self.get(name) {
            Some(Attr::Float(x)) => *x,
            Some(Attr::Int(i)) => *i as f64,
            other => panic!("attribute `{name}` must be a number, is {other:?}"),
        }
    }

    /// The integer under `name`; see [`Attrs::axes`] for when it panics.
    pub fn int(&self, name: &str) -> i64 {
        match self.get(name) {
            Some(Attr::Int(i)) => *i,
            other => panic!("attribute `{name}` must be an integer, is {other:?}"),
        }
    }

    /// The flag under `name`, false if it is absent.
    pub fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), Some(Attr::Bool(true)))
    }

    /// The element type under `name`; see [`Attrs::axes`] for when it panics.
    pub fn dtype(&self, name: &str) -> DType {
        match self.get(name) {
            Some(Attr::DType(d)) => *d,
            other => panic!("attribute `{name}` must be an element type, is {other:?}"),
        }
    }

    /// The word under `name`; see [`Attrs::axes`] for when it panics.
    pub fn str(&self, name: &str) -> &str {
        match self.get(name) {
            Some(Attr::Str(s)) => s,
            other => panic!("attribute `{name}` must be a word, is {other:?}"),
        }
    }
}

macro_rules! attr_from {
    ($($t:ty => $v:ident),*) => { $(impl From<$t> for Attr { fn from(x: $t) -> Attr { Attr::$v(x.into()) } })* };
}
attr_from!(i64 => Int, f64 => Float, bool => Bool, String => Str, &str => Str, Axis => Axis, Vec<Axis> => Axes, &[Axis] => Axes, DType => DType);
