//! `Repeat<Child>`: the copies of a child. Eagerly a list; while recording it yields twice, and the two rounds become one node.

use super::loops;
use super::record::RepeatPart;
use super::{Parts, Tensor};
use std::rc::Rc;

/// Copies of a layer, applied one after the other by `for block in blocks { x = block.forward(x); }`.
#[derive(Clone, Debug)]
pub struct Repeat<T> {
    copies: Rc<[T]>,
    recorded: Option<RepeatPart>,
}

impl<T: Clone> Repeat<T> {
    /// Copies on the host.
    pub fn new(copies: impl IntoIterator<Item = T>) -> Self {
        Repeat { copies: copies.into_iter().collect(), recorded: None }
    }

    /// Stands for all copies while a layer is recorded.
    pub(super) fn recorded(copy: T, part: RepeatPart) -> Self {
        Repeat { copies: Rc::new([copy]), recorded: Some(part) }
    }

    /// Number of copies; while a layer is recorded it is not known, and 1 stands for all.
    pub fn len(&self) -> usize {
        self.copies.len()
    }

    /// Whether there is no copy.
    pub fn is_empty(&self) -> bool {
        self.copies.is_empty()
    }
}

impl<T: Parts> Repeat<T> {
    /// A parameter that tells which child this is.
    pub fn marker(&self) -> Option<Tensor> {
        self.copies.first().and_then(Parts::marker)
    }
}

impl<T: Clone> FromIterator<T> for Repeat<T> {
    fn from_iter<I: IntoIterator<Item = T>>(copies: I) -> Self {
        Repeat::new(copies)
    }
}

impl<T: Clone> IntoIterator for Repeat<T> {
    type Item = T;
    type IntoIter = RepeatIter<T>;

    #[track_caller]
    fn into_iter(self) -> RepeatIter<T> {
        if let Some(part) = self.recorded {
            loops::begin(part, super::apply::here());
        }
        RepeatIter { copies: self.copies, next: 0, recorded: self.recorded }
    }
}

/// Copies by value.
#[derive(Debug)]
pub struct RepeatIter<T> {
    copies: Rc<[T]>,
    next: usize,
    recorded: Option<RepeatPart>,
}

impl<T: Clone> Iterator for RepeatIter<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        let round = self.next;
        self.next += 1;
        let Some(_) = self.recorded else { return self.copies.get(round).cloned() };
        match loops::next_round(round) {
            true => Some(self.copies[0].clone()),
            false => {
                self.recorded = None;
                None
            }
        }
    }
}

impl<T> Drop for RepeatIter<T> {
    fn drop(&mut self) {
        if self.recorded.is_some() && !std::thread::panicking() {
            loops::abandon();
        }
    }
}
