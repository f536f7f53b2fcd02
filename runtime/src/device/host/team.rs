//! A team: threads that run one function together and meet at barriers, for work of microseconds between two meetings.
//!
//! A [`super::pool::Pool`] starts and ends every loop with a message to each worker; here the whole of a run is one message, and its parts
//! meet by spinning. Nothing is allocated while it runs.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

// How often a waiting thread looks before it lets others run: some microseconds, as a pause takes up to 140 cycles. Where there are more
// threads than processors, whoever is waited for needs the time.
const SPINS: u32 = 1 << 7;
// How often a helper looks for new work, letting others run in between, before it sleeps: half a millisecond, in which a caller chooses a
// token.
const YIELDS: u32 = 1 << 6;

/// What all members run: `f(member, barrier)`.
type Work<'a> = dyn Fn(usize, Barrier<'_>) + Sync + 'a;

struct State {
    /// Number of the run; helpers wait for it to change.
    run: AtomicUsize,
    /// What the run executes.
    work: UnsafeCell<Option<*const Work<'static>>>,
    /// Helpers that have finished the run.
    done: AtomicUsize,
    /// Members that have reached the barrier, over all rounds of the run.
    arrived: AtomicUsize,
    members: usize,
    /// A member panicked; nobody may wait for it.
    broken: AtomicBool,
    ended: AtomicBool,
    /// Helpers that sleep, or are about to.
    sleeping: Mutex<usize>,
    wake: Condvar,
}

// SAFETY: `work` is written by the caller of `run` while no helper reads it (all were done with the last run), and is read after `run` has
// changed, which it publishes.
unsafe impl Sync for State {}
// SAFETY: as above; the pointer is only followed while `Team::run` keeps its target borrowed.
unsafe impl Send for State {}

/// Threads that run one function together.
pub struct Team {
    state: Arc<State>,
    helpers: Vec<JoinHandle<()>>,
}

impl Team {
    /// The calling thread and `threads − 1` helpers; 0 means one thread per processor.
    ///
    /// # Errors
    /// When the system refuses to start threads.
    pub fn new(threads: usize) -> std::io::Result<Team> {
        let members = match threads {
            0 => std::thread::available_parallelism()?.get(),
            n => n,
        };
        let state = Arc::new(State {
            run: AtomicUsize::new(0),
            work: UnsafeCell::new(None),
            done: AtomicUsize::new(0),
            arrived: AtomicUsize::new(0),
            members,
            broken: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            sleeping: Mutex::new(0),
            wake: Condvar::new(),
        });
        let mut team = Team { state, helpers: Vec::new() };
        for member in 1..members {
            let state = team.state.clone();
            let thread = std::thread::Builder::new().name(format!("kiln-decode-{member}"));
            team.helpers.push(thread.spawn(move || help(&state, member))?);
        }
        // A thread allocates when it starts.
        spin(|| team.state.done.load(Ordering::Acquire) == members - 1);
        Ok(team)
    }

    /// Number of members.
    pub fn members(&self) -> usize {
        self.state.members
    }

    /// Calls `f(member, barrier)` once on every member, at the same time; the caller is member 0. All members wait at the barrier equally
    /// often.
    ///
    /// # Panics
    /// If a member panics.
    pub fn run(&mut self, f: &Work<'_>) {
        let state = &*self.state;
        if state.members == 1 {
            return f(0, Barrier(state));
        }
        assert!(!state.broken.load(Ordering::Acquire), "a thread of the decoder has panicked");
        // SAFETY: only the lifetime changes; `Finish` waits for every helper before this function returns or unwinds.
        let work = unsafe { std::mem::transmute::<*const Work<'_>, *const Work<'static>>(std::ptr::from_ref(f)) };
        // SAFETY: all helpers are done with the last run, and `&mut self` excludes another one.
        unsafe { *state.work.get() = Some(work) };
        state.done.store(0, Ordering::Relaxed);
        state.arrived.store(0, Ordering::Relaxed);
        state.run.fetch_add(1, Ordering::SeqCst);
        if *state.sleeping.lock().unwrap_or_else(PoisonError::into_inner) > 0 {
            state.wake.notify_all();
        }
        let finish = Finish(state);
        f(0, Barrier(state));
        drop(finish);
        assert!(!state.broken.load(Ordering::Acquire), "a thread of the decoder has panicked");
    }
}

/// Where the members of a running team meet.
#[derive(Clone, Copy)]
pub struct Barrier<'a>(&'a State);

impl Barrier<'_> {
    /// Waits for all members.
    ///
    /// # Panics
    /// If another member has panicked.
    #[inline]
    pub fn wait(&self) {
        let state = self.0;
        let before = state.arrived.fetch_add(1, Ordering::AcqRel);
        let wanted = (before / state.members + 1) * state.members;
        spin(|| {
            assert!(!state.broken.load(Ordering::Relaxed), "a thread of the decoder has panicked");
            state.arrived.load(Ordering::Acquire) >= wanted
        });
    }
}

/// Waits for the helpers, also when the caller panics: they use what it has borrowed.
struct Finish<'a>(&'a State);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.broken.store(true, Ordering::Release);
        }
        spin(|| self.0.done.load(Ordering::Acquire) == self.0.members - 1);
    }
}

/// Looks until `ready`, letting other threads run now and then.
#[inline]
fn spin(mut ready: impl FnMut() -> bool) {
    loop {
        for _ in 0..SPINS {
            if ready() {
                return;
            }
            std::hint::spin_loop();
        }
        std::thread::yield_now();
    }
}

/// The loop of a helper.
fn help(state: &State, member: usize) {
    state.done.fetch_add(1, Ordering::AcqRel);
    let mut seen = 0;
    loop {
        seen = next_run(state, seen);
        if state.ended.load(Ordering::Acquire) {
            return;
        }
        let done = Done(state);
        // SAFETY: the caller wrote it before it changed `run`, and waits for `done` before it changes or frees it.
        let work = unsafe { (*state.work.get()).map(|w| &*w) };
        if let Some(work) = work {
            work(member, Barrier(state));
        }
        drop(done);
    }
}

/// Tells the caller that a helper has finished, also by a panic.
struct Done<'a>(&'a State);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.broken.store(true, Ordering::Release);
        }
        self.0.done.fetch_add(1, Ordering::AcqRel);
    }
}

/// Waits for another run than `seen`: awake for a while, then asleep.
fn next_run(state: &State, seen: usize) -> usize {
    let changed = || state.run.load(Ordering::SeqCst) != seen;
    for _ in 0..YIELDS {
        for _ in 0..SPINS {
            if changed() {
                return state.run.load(Ordering::SeqCst);
            }
            std::hint::spin_loop();
        }
        std::thread::yield_now();
    }
    let mut sleeping = state.sleeping.lock().unwrap_or_else(PoisonError::into_inner);
    *sleeping += 1;
    while !changed() {
        sleeping = state.wake.wait(sleeping).unwrap_or_else(PoisonError::into_inner);
    }
    *sleeping -= 1;
    state.run.load(Ordering::SeqCst)
}

impl Drop for Team {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::Release);
        self.state.run.fetch_add(1, Ordering::SeqCst);
        drop(self.state.sleeping.lock());
        self.state.wake.notify_all();
        for helper in self.helpers.drain(..) {
            // A helper that panicked has told its caller already.
            helper.join().ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    #[test]
    fn members_run_together_and_meet() {
        for threads in [1, 2, 3, 5] {
            let mut team = Team::new(threads).unwrap();
            assert_eq!(team.members(), threads);
            let counts: Vec<AtomicUsize> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
            for round in 0..40 {
                team.run(&|member, barrier| {
                    for meeting in 0..5 {
                        counts[member].fetch_add(1, Ordering::Relaxed);
                        barrier.wait();
                        let wanted = round * 5 + meeting + 1;
                        assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) >= wanted));
                        barrier.wait();
                    }
                });
            }
            assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 200));
        }
    }

    #[test]
    fn a_panic_of_any_member_ends_the_run() {
        for bad in 0..3 {
            let mut team = Team::new(3).unwrap();
            let run = catch_unwind(AssertUnwindSafe(|| {
                team.run(&|member, barrier| {
                    assert!(member != bad, "as it should");
                    barrier.wait();
                });
            }));
            assert!(run.is_err());
        }
    }
}
