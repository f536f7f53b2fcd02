//! Launches of a run as one CUDA graph: the driver is asked once for all of them.

use super::card::failed;
use super::server::Stream;
use crate::device::cube::{CubeError, Recording, Work};
use cudarc::driver::{result, sys};
use std::sync::Arc;

/// A graph, instantiated for its stream.
pub struct Graph {
    handle: sys::CUgraphExec,
    stream: Arc<Stream>,
}

// SAFETY: a graph belongs to its context, not to a thread, and is launched by one at a time.
unsafe impl Send for Graph {}

impl Graph {
    /// What `work` enqueues on a stream, instead of running it.
    ///
    /// # Errors
    /// What `work` or the driver says; nothing of it has run then.
    pub fn captured(stream: &Arc<Stream>, work: Work<'_>) -> Result<Graph, CubeError> {
        use sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL as OF_THIS_THREAD;
        let graph = stream.alone(|| {
            stream.card.bind()?;
            // SAFETY: the stream lives as long as this value, and the capture ends below whatever `work` does.
            unsafe { result::stream::begin_capture(stream.handle, OF_THIS_THREAD) }.map_err(failed)?;
            let outcome = work();
            // SAFETY: the capture has begun above.
            let graph = unsafe { result::stream::end_capture(stream.handle) };
            outcome?;
            graph.map_err(failed)
        })?;
        // SAFETY: the graph was just captured; the driver keeps what it needs of it.
        let handle = unsafe {
            let handle = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            let _ = result::graph::destroy(graph);
            handle.map_err(failed)?
        };
        Ok(Graph { handle, stream: stream.clone() })
    }
}

impl Recording for Graph {
    fn replay(&self) -> Result<(), CubeError> {
        let _entered = self.stream.enter();
        self.stream.card.bind()?;
        // SAFETY: both live as long as this value; memory that the graph uses is held by the schedule that keeps it.
        unsafe { result::graph::launch(self.handle, self.stream.handle) }.map_err(failed)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.stream.card.bind().is_ok() {
            // SAFETY: it was instantiated once; the driver waits for what still runs.
            let _ = unsafe { result::graph::exec_destroy(self.handle) };
        }
    }
}
