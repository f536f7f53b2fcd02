//! Keeps others out while a thread captures what it enqueues on a stream: what they enqueue would become part of its graph.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

/// Many may enqueue at once, or one capture.
#[derive(Debug, Default)]
pub struct Gate {
    lock: RwLock<()>,
    /// The capturing thread; 0 for none.
    owner: AtomicUsize,
}

/// Held while something is enqueued.
pub type Entered<'a> = RwLockReadGuard<'a, ()>;

/// A thread's own number, never 0.
fn this_thread() -> usize {
    thread_local!(static PLACE: u8 = const { 0 });
    PLACE.with(|place| std::ptr::from_ref(place).addr())
}

impl Gate {
    /// Waits while another thread is alone; the thread that is need not.
    pub fn enter(&self) -> Option<Entered<'_>> {
        let is_own = self.owner.load(Ordering::Acquire) == this_thread();
        (!is_own).then(|| self.lock.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs `work` while no other thread has entered.
    pub fn alone<T>(&self, work: impl FnOnce() -> T) -> T {
        let _guard = self.lock.write().unwrap_or_else(PoisonError::into_inner);
        self.owner.store(this_thread(), Ordering::Release);
        let value = work();
        self.owner.store(0, Ordering::Release);
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    #[test]
    fn others_wait_while_one_is_alone() {
        const PAUSE: Duration = Duration::from_millis(50);
        let gate = Gate::default();
        let (entered, was_entered) = channel();
        std::thread::scope(|scope| {
            gate.alone(|| {
                assert!(gate.enter().is_none(), "the thread that is alone passes");
                scope.spawn(|| {
                    let _entered = gate.enter();
                    entered.send(()).unwrap();
                });
                assert!(was_entered.recv_timeout(PAUSE).is_err(), "another does not");
            });
            was_entered.recv().unwrap();
        });
        assert!(gate.enter().is_some() && gate.enter().is_some(), "several enter at once");
    }
}
