//! What `#[layer]` needs of its struct: building it from a source of parameters, and calling it.

use super::init::Scope;
use super::record::{self, RepeatPart};
use super::session::{self, Handle};
use super::{ConfigScalar, Ids, Loss, Repeat, Rope, Tensor};
use crate::layer::Layer;
use std::rc::Rc;

/// The struct beside a layer's function.
pub trait Parts: Clone {
    /// Builds it, field by field in the order of the arguments.
    fn build(from: &mut Source) -> Self;

    /// Some parameter of it or of a child: while recording, it tells which child of the caller this is.
    fn marker(&self) -> Option<Tensor>;
}

/// Where the fields of a layer's struct come from.
#[derive(Clone, Debug)]
pub struct Source {
    origin: Origin,
    /// Path of the layer, ending in `.` unless it is empty.
    path: String,
}

#[derive(Clone, Debug)]
enum Origin {
    /// Child number so-and-so of the layer being recorded.
    Recorded(usize),
    /// Initial values on the host.
    Host(Rc<Scope>),
}

impl Source {
    /// Fields of child number `sub`, called `name`, of the layer being recorded.
    pub(super) fn recorded(sub: usize, name: &str) -> Source {
        Source { origin: Origin::Recorded(sub), path: format!("{name}.") }
    }

    /// Initial values of the layer at `path`.
    pub(super) fn host(scope: Rc<Scope>, path: String) -> Source {
        Source { origin: Origin::Host(scope), path }
    }

    /// The parameter `name`.
    pub fn param(&mut self, name: &str) -> Tensor {
        match &self.origin {
            Origin::Recorded(sub) => Tensor(record::placeholder(*sub, format!("{}{name}", self.path))),
            Origin::Host(scope) => scope.param(name, &self.path),
        }
    }

    /// The child `name`.
    pub fn sub<T: Parts>(&mut self, name: &str) -> T {
        let path = format!("{}{name}.", self.path);
        let origin = match &self.origin {
            Origin::Recorded(sub) => Origin::Recorded(*sub),
            Origin::Host(scope) => Origin::Host(scope.child(name).0),
        };
        T::build(&mut Source { origin, path })
    }

    /// The copies of the child `name`.
    pub fn repeat<T: Parts>(&mut self, name: &str) -> Repeat<T> {
        match &self.origin {
            Origin::Recorded(sub) => {
                let part = RepeatPart { sub: *sub, nested: true };
                Repeat::recorded(self.sub(name), part)
            }
            Origin::Host(scope) => {
                let (scope, copies) = scope.child(name);
                let copy = |i| T::build(&mut Source::host(scope.clone(), format!("{}{name}.{i}.", self.path)));
                (0..copies).map(copy).collect()
            }
        }
    }

    /// The `#[config]` value `name`.
    pub fn config<T: ConfigScalar>(&mut self, name: &str) -> T {
        match &self.origin {
            Origin::Recorded(_) => record::config(&format!("{}{name}", self.path)),
            Origin::Host(scope) => scope.config(name),
        }
    }
}

/// Arguments of a layer: a tuple of tensors, ids and ropes.
pub trait Args {
    /// Their values in order.
    fn handles(&self) -> Vec<Handle>;
}

/// What a layer returns: a tensor, several in a tuple, or a loss.
pub trait Returns: Sized {
    /// Number of values.
    const VALUES: usize;

    /// From its values.
    fn from_handles(handles: &[Handle]) -> Self;

    /// Its values.
    fn handles(&self) -> Vec<Handle>;
}

/// Calls a layer: eagerly runs its function, while recording appends a `call`.
#[track_caller]
pub fn call<L: Layer + Parts, A: Args, R: Returns>(layer: &L, args: A, body: impl FnOnce(A) -> R) -> R {
    if !session::with(|s| s.recording.is_some()) {
        return body(args);
    }
    let outputs = record::call(L::DEF, &L::SIG, layer.marker(), &args.handles(), super::apply::here());
    R::from_handles(&outputs)
}

/// One argument.
pub trait ArgValue {
    /// Its value.
    fn handle(&self) -> Handle;
}

impl ArgValue for Tensor {
    fn handle(&self) -> Handle {
        self.0
    }
}

impl ArgValue for Ids {
    fn handle(&self) -> Handle {
        self.0
    }
}

impl ArgValue for Rope {
    fn handle(&self) -> Handle {
        self.base.0
    }
}

impl Args for () {
    fn handles(&self) -> Vec<Handle> {
        Vec::new()
    }
}

macro_rules! tuple_args {
    ($($name:ident $at:tt),+) => {
        impl<$($name: ArgValue),+> Args for ($($name,)+) {
            fn handles(&self) -> Vec<Handle> {
                vec![$(self.$at.handle()),+]
            }
        }
    };
}
tuple_args!(A0 0);
tuple_args!(A0 0, A1 1);
tuple_args!(A0 0, A1 1, A2 2);
tuple_args!(A0 0, A1 1, A2 2, A3 3);
tuple_args!(A0 0, A1 1, A2 2, A3 3, A4 4);
tuple_args!(A0 0, A1 1, A2 2, A3 3, A4 4, A5 5);
tuple_args!(A0 0, A1 1, A2 2, A3 3, A4 4, A5 5, A6 6);
tuple_args!(A0 0, A1 1, A2 2, A3 3, A4 4, A5 5, A6 6, A7 7);
tuple_args!(A0 0, A1 1, A2 2, A3 3, A4 4, A5 5, A6 6, A7 7, A8 8);
tuple_args!(A0 0, A1 1, A2 2, A3 3, A4 4, A5 5, A6 6, A7 7, A8 8, A9 9);
tuple_args!(A0 0, A1 1, A2 2, A3 3, A4 4, A5 5, A6 6, A7 7, A8 8, A9 9, A10 10);
tuple_args!(A0 0, A1 1, A2 2, A3 3, A4 4, A5 5, A6 6, A7 7, A8 8, A9 9, A10 10, A11 11);

impl Returns for Tensor {
    const VALUES: usize = 1;

    fn from_handles(handles: &[Handle]) -> Self {
        Tensor(handles[0])
    }

    fn handles(&self) -> Vec<Handle> {
        vec![self.0]
    }
}

impl Returns for Loss {
    const VALUES: usize = 2;

    fn from_handles(handles: &[Handle]) -> Self {
        Loss { sum: Tensor(handles[0]), count: Tensor(handles[1]) }
    }

    fn handles(&self) -> Vec<Handle> {
        vec![self.sum.0, self.count.0]
    }
}

macro_rules! tuple_returns {
    ($n:literal: $($at:tt),+) => {
        impl Returns for ($(tuple_returns!(@tensor $at),)+) {
            const VALUES: usize = $n;

            fn from_handles(handles: &[Handle]) -> Self {
                ($(Tensor(handles[$at]),)+)
            }

            fn handles(&self) -> Vec<Handle> {
                vec![$(self.$at.0),+]
            }
        }
    };
    (@tensor $at:tt) => { Tensor };
}
tuple_returns!(2: 0, 1);
tuple_returns!(3: 0, 1, 2);
tuple_returns!(4: 0, 1, 2, 3);
tuple_returns!(5: 0, 1, 2, 3, 4);
tuple_returns!(6: 0, 1, 2, 3, 4, 5);
tuple_returns!(7: 0, 1, 2, 3, 4, 5, 6);
tuple_returns!(8: 0, 1, 2, 3, 4, 5, 6, 7);
