//! Entry of a layer's function: binds the axis names of its arguments and checks that one name has one size.

use super::session::{self, FrameState, Handle};
use super::{Ids, Tensor, eager};
use kiln_compiler::ir::{Axis, Sizes};

/// One running function; leaving it forgets its sizes.
#[derive(Debug)]
pub struct Frame {
    layer: &'static str,
}

impl Frame {
    /// Enters the function of `layer`.
    pub fn enter(layer: &'static str) -> Frame {
        session::with(|s| s.frames.push(FrameState { layer: layer.to_owned(), sizes: Sizes::new(), sites: 0 }));
        Frame { layer }
    }

    /// The argument `name` with its axes.
    ///
    /// # Panics
    /// If it has another number of axes, or an axis has another size in an earlier argument.
    #[track_caller]
    pub fn argument<T: Named>(&self, x: T, name: &str, axes: &[&str]) -> T {
        T::from_handle(self.bind(x.handle(), name, axes))
    }

    #[track_caller]
    fn bind(&self, handle: Handle, name: &str, axes: &[&str]) -> Handle {
        if session::with(|s| s.recording.is_some()) {
            return handle;
        }
        let layer = self.layer;
        let dims = session::host(handle, name).array.dims.clone();
        let (rank, wanted) = (dims.len(), axes.len());
        let list = axes.join(", ");
        assert_eq!(
            rank, wanted,
            "K0122: argument `{name}` of `{layer}` has {wanted} axes, [{list}]; the tensor given has sizes {dims:?}"
        );
        let axes: Vec<Axis> = axes.iter().map(|a| Axis::new(a)).collect();
        for (&axis, &n) in axes.iter().zip(&dims) {
            let before = session::with(|s| s.frames.last_mut().and_then(|f| f.sizes.bind(axis, n)));
            assert!(
                before.is_none_or(|b| b == n),
                "K0121: axis `{axis}` of `{layer}` has size {n} in argument `{name}`, but {} in an earlier one",
                before.unwrap_or(n)
            );
        }
        eager::rename_all(handle, &axes)
    }
}

/// Arguments whose axes have names: tensors and ids.
pub trait Named {
    /// The value.
    fn handle(&self) -> Handle;

    /// From the value.
    fn from_handle(handle: Handle) -> Self;
}

impl Named for Tensor {
    fn handle(&self) -> Handle {
        self.0
    }

    fn from_handle(handle: Handle) -> Self {
        Tensor(handle)
    }
}

impl Named for Ids {
    fn handle(&self) -> Handle {
        self.0
    }

    fn from_handle(handle: Handle) -> Self {
        Ids(handle)
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        session::with(|s| {
            let left = s.frames.pop();
            debug_assert_eq!(left.map(|f| f.layer).as_deref(), Some(self.layer), "frames are left innermost first");
        });
    }
}
