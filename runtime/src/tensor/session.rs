//! The session of a thread: host values by index, call frames, and the layer being recorded, if there is one.

use super::record::Recording;
use kiln_compiler::interp::Array;
use kiln_compiler::ir::{Sizes, Type};
use std::cell::RefCell;
use std::marker::PhantomData;
use std::rc::Rc;

/// Index of a value in its thread's session.
///
/// The marker keeps it on its thread: elsewhere the index would mean another value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Handle {
    /// 0 for host values, the number of the recording otherwise.
    pub session: u32,
    /// Which value.
    pub index: u32,
    _on_its_thread: PhantomData<*const ()>,
}

impl Handle {
    /// The value with this index.
    pub fn new(session: u32, index: u32) -> Self {
        Handle { session, index, _on_its_thread: PhantomData }
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.session, self.index)
    }
}

/// A value of the eager run. Floats are f32 values held as f64, so that the interpreter reads them without a copy.
#[derive(Clone)]
pub struct HostValue {
    /// Element type and axes; axes that nobody has named start with `_`.
    pub ty: Type,
    /// Sizes and elements.
    pub array: Rc<Array>,
}

/// One running function.
pub struct FrameState {
    /// Name of the layer.
    pub layer: String,
    /// Sizes of the axes of its arguments.
    pub sizes: Sizes,
    /// Number of random operations so far.
    pub sites: i64,
}

/// What a thread holds.
#[derive(Default)]
pub struct Session {
    /// Host values, by index.
    pub values: Vec<HostValue>,
    /// Running functions, innermost last.
    pub frames: Vec<FrameState>,
    /// The layer being recorded.
    pub recording: Option<Recording>,
    /// Recordings started so far on this thread.
    pub recordings: u32,
    /// Seed of eager random operations.
    pub seed: u64,
}

thread_local! {
    static SESSION: RefCell<Session> = RefCell::default();
}

/// Runs `f` on this thread's session. `f` must not call user code, which would come back here.
pub fn with<T>(f: impl FnOnce(&mut Session) -> T) -> T {
    SESSION.with_borrow_mut(f)
}

/// The host value behind a handle.
///
/// # Panics
/// If the handle belongs to a recording, whose values are not known yet.
#[track_caller]
pub fn host(handle: Handle, what: &str) -> HostValue {
    let found = with(|s| match handle.session {
        0 => s.values.get(handle.index as usize).cloned(),
        _ => None,
    });
    found.unwrap_or_else(|| panic!("K0346: `{what}` reads a value, but a layer that is being recorded has none yet"))
}

/// Keeps a host value.
pub fn keep(value: HostValue) -> Handle {
    with(|s| {
        s.values.push(value);
        Handle::new(0, s.values.len() as u32 - 1)
    })
}
