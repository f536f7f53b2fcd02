//! The parallel loop: tasks numbered by shapes are claimed by workers in any order; which worker runs a task never changes bits.
//!
//! Worker 0 leads: [`Pool::lead`] hands it a whole schedule, in which it runs loop after loop with the others. They wait for it, at first
//! awake – a step is hundreds of loops, and waking a thread takes as long as a small one – and after a while asleep. Where a pool has all
//! processors of the process, each worker keeps to one of its own: left to themselves two often share one. The calling thread sleeps
//! meanwhile, and is never bound.
//!
//! Own threads rather than a crate: rayon's broadcast takes 8 µs, and allocates.
#![allow(unsafe_code)]

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::Instant;

/// A fixed number of workers.
pub struct Pool {
    crew: Option<Crew>,
    threads: usize,
}

/// The threads of a pool.
struct Crew {
    board: Arc<Board>,
    threads: Vec<JoinHandle<()>>,
    /// One schedule at a time.
    turn: Mutex<()>,
}

/// When a worker began its part of a loop, and when it found no more tasks.
pub type Busy = (Instant, Instant);

/// A loop that is running: called with a task and a worker.
type Body = dyn Fn(usize, usize) + Sync;

/// Where workers look for work.
struct Board {
    /// What the leader is asked to do.
    order: Mutex<Order>,
    /// Rings when the order changes.
    bell: Condvar,
    /// Number of the current loop; a new number is a new loop.
    round: AtomicUsize,
    /// Body and tasks of the current loop. The body lives as long as `running` is not 0.
    work: UnsafeCell<(*const Body, usize)>,
    /// The next task that nobody has claimed.
    next: AtomicUsize,
    /// Followers that have not finished the current loop.
    running: AtomicUsize,
    /// Followers, and whether each is, or is about to be, asleep.
    followers: Mutex<Vec<Thread>>,
    asleep: Vec<AtomicBool>,
    /// What the first task that panicked said.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Whether workers note when they are busy, and what each has noted.
    notes: AtomicBool,
    noted: Vec<Mutex<Vec<Busy>>>,
    ends: AtomicBool,
}

/// The state of the leader.
enum Order {
    None,
    /// The call lives until the order is done.
    Asked(*mut (dyn FnMut() + Send)),
    Done,
}

// SAFETY: `work` is written by the leader while no follower runs, and read by followers after they have seen a new round; the body is
// `Sync`. An order is made by the thread that holds the turn and waits for its end; the call is `Send`.
unsafe impl Send for Board {}
// SAFETY: as above.
unsafe impl Sync for Board {}

/// Looks at the board before a follower goes to sleep: some 200 µs.
const LOOKS: usize = 10_000;

thread_local! {
    /// Whether this thread is inside of a loop.
    static IN_LOOP: Cell<bool> = const { Cell::new(false) };
    /// The board whose leader this thread is.
    static LEADS: Cell<*const Board> = const { Cell::new(ptr::null()) };
}

impl Pool {
    /// A pool of `threads` workers; 0 means one per processor.
    ///
    /// # Errors
    /// When the system refuses to start threads.
    pub fn new(threads: usize) -> std::io::Result<Pool> {
        let processors = thread::available_parallelism()?.get();
        let threads = if threads == 0 { processors } else { threads };
        if threads == 1 {
            return Ok(Pool { crew: None, threads });
        }
        let idle: &'static Body = &|_, _| {};
        let board = Arc::new(Board {
            order: Mutex::new(Order::None),
            bell: Condvar::new(),
            round: AtomicUsize::new(0),
            work: UnsafeCell::new((idle, 0)),
            next: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            followers: Mutex::default(),
            asleep: (1..threads).map(|_| AtomicBool::new(false)).collect(),
            panic: Mutex::new(None),
            notes: AtomicBool::new(false),
            noted: (0..threads).map(|_| Mutex::default()).collect(),
            ends: AtomicBool::new(false),
        });
        // More workers than processors only take time from each other while they look.
        let looks = if threads <= processors { LOOKS } else { 0 };
        let own = if threads == processors { core_affinity::get_core_ids() } else { None };
        let own = own.filter(|ids| ids.len() == threads);
        let mut crew = Crew { board, threads: Vec::new(), turn: Mutex::new(()) };
        for worker in 0..threads {
            let (board, processor) = (crew.board.clone(), own.as_ref().map(|ids| ids[worker]));
            let thread = thread::Builder::new().name(format!("kiln-{worker}")).spawn(move || {
                if let Some(id) = processor {
                    core_affinity::set_for_current(id);
                }
                if worker == 0 { board.lead() } else { board.follow(worker, looks) }
            })?;
            if worker > 0 {
                held(&crew.board.followers).push(thread.thread().clone());
            }
            crew.threads.push(thread);
        }
        Ok(Pool { crew: Some(crew), threads })
    }

    /// The calling thread alone.
    pub const fn serial() -> Pool {
        Pool { crew: None, threads: 1 }
    }

    /// Number of workers; scratch is sized by it.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// From now on workers note when they are busy, or no longer.
    pub fn note(&self, on: bool) {
        if let Some(crew) = &self.crew {
            crew.board.notes.store(on, Ordering::Relaxed);
        }
    }

    /// Calls `f(worker, busy)` for what workers have noted since the last call.
    pub fn take_notes(&self, mut f: impl FnMut(usize, Busy)) {
        let Some(crew) = &self.crew else { return };
        for (worker, noted) in crew.board.noted.iter().enumerate() {
            held(noted).drain(..).for_each(|busy| f(worker, busy));
        }
    }

    /// Calls `f` on the worker that leads, which starts loops without a detour, and gives its result.
    ///
    /// # Panics
    /// As `f` does.
    pub fn lead<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        match &self.crew {
            Some(crew) if LEADS.get() != Arc::as_ptr(&crew.board) => crew.lead(f),
            _ => f(),
        }
    }

    /// Calls `f(task, worker)` for every task in `0..tasks`; `worker < threads()` and no two calls share a worker at a time.
    ///
    /// # Panics
    /// As `f` does in one of the tasks; and if a task of a loop of several workers starts another one.
    pub fn run(&self, tasks: usize, f: impl Fn(usize, usize) + Sync) {
        match &self.crew {
            Some(crew) if tasks > 1 => {
                assert!(!IN_LOOP.get(), "a task of a parallel loop starts another one");
                self.lead(|| crew.board.run(tasks, &f));
            }
            _ => (0..tasks).for_each(|t| f(t, 0)),
        }
    }
}

/// A lock whose owner may have panicked: what it guards is always whole.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Crew {
    fn lead<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        let _turn = held(&self.turn);
        let (mut f, mut result) = (Some(f), None);
        let mut call = || result = f.take().map(|f| catch_unwind(AssertUnwindSafe(f)));
        let call: &mut (dyn FnMut() + Send) = &mut call;
        // SAFETY: the lifetime of the call is forgotten, but this function waits until the leader has done with it.
        let call = unsafe { std::mem::transmute::<&mut (dyn FnMut() + Send), &'static mut (dyn FnMut() + Send)>(call) };
        let mut order = held(&self.board.order);
        *order = Order::Asked(call);
        self.board.bell.notify_all();
        while !matches!(*order, Order::Done) {
            order = self.board.bell.wait(order).unwrap_or_else(PoisonError::into_inner);
        }
        *order = Order::None;
        drop(order);
        match result.expect("the leader makes the call before it says that it is done") {
            Ok(value) => value,
            Err(payload) => resume_unwind(payload),
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        let order = held(&self.board.order);
        self.board.ends.store(true, Ordering::SeqCst);
        drop(order);
        self.board.bell.notify_all();
        self.board.round.fetch_add(1, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            // A worker catches the panics of what it runs.
            let _ = thread.join();
        }
    }
}

impl Board {
    /// What worker 0 does all its life.
    fn lead(&self) {
        LEADS.set(self);
        let mut order = held(&self.order);
        loop {
            if let Order::Asked(call) = *order {
                drop(order);
                // SAFETY: who asked waits until the order is done, and nobody else has the call.
                unsafe { (*call)() };
                order = held(&self.order);
                *order = Order::Done;
                self.bell.notify_all();
            } else if self.ends.load(Ordering::SeqCst) {
                return;
            } else {
                order = self.bell.wait(order).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// A loop, by the leader and all followers.
    fn run(&self, tasks: usize, f: &(dyn Fn(usize, usize) + Sync)) {
        IN_LOOP.set(true);
        // SAFETY: no follower runs, since the last loop has ended and only the leader starts one. The lifetime of the body is forgotten,
        // but this call returns only after every follower has finished the loop.
        unsafe {
            *self.work.get() = (std::mem::transmute::<&(dyn Fn(usize, usize) + Sync), &'static Body>(f), tasks);
        }
        self.next.store(0, Ordering::Relaxed);
        self.running.store(self.asleep.len(), Ordering::Relaxed);
        // Sequentially consistent with the flags of sleepers: either the leader sees the flag, or the sleeper the new round.
        self.round.fetch_add(1, Ordering::SeqCst);
        for (i, asleep) in self.asleep.iter().enumerate() {
            if asleep.load(Ordering::SeqCst) {
                held(&self.followers)[i].unpark();
            }
        }
        self.claim(f, tasks, 0);
        let mut looks = 0;
        while self.running.load(Ordering::Acquire) != 0 {
            // A follower that has lost its processor to others may need this one.
            if looks < LOOKS {
                std::hint::spin_loop()
            } else {
                thread::yield_now()
            }
            looks += 1;
        }
        IN_LOOP.set(false);
        let panic = held(&self.panic).take();
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }

    /// What the other workers do all their lives.
    fn follow(&self, worker: usize, looks: usize) {
        IN_LOOP.set(true);
        let mut seen = 0;
        loop {
            seen = self.wait(seen, worker, looks);
            if self.ends.load(Ordering::SeqCst) {
                return;
            }
            // SAFETY: a new round was seen, so the work is written, and it stays until this worker has said that it is done.
            unsafe {
                let (body, tasks) = *self.work.get();
                self.claim(&*body, tasks, worker);
            }
            self.running.fetch_sub(1, Ordering::Release);
        }
    }

    /// The number of a round after `seen`.
    fn wait(&self, seen: usize, worker: usize, looks: usize) -> usize {
        for _ in 0..looks {
            let round = self.round.load(Ordering::Acquire);
            if round != seen {
                return round;
            }
            std::hint::spin_loop();
        }
        let asleep = &self.asleep[worker - 1];
        asleep.store(true, Ordering::SeqCst);
        let round = loop {
            let round = self.round.load(Ordering::SeqCst);
            if round != seen {
                break round;
            }
            thread::park();
        };
        asleep.store(false, Ordering::SeqCst);
        round
    }

    /// Runs tasks until none is left, and notes how long that took.
    fn claim(&self, body: &(dyn Fn(usize, usize) + Sync), tasks: usize, worker: usize) {
        if !self.notes.load(Ordering::Relaxed) {
            return self.claim_all(body, tasks, worker);
        }
        let begin = Instant::now();
        self.claim_all(body, tasks, worker);
        held(&self.noted[worker]).push((begin, Instant::now()));
    }

    /// Runs tasks until none is left; after a panic the others are still claimed, so that the loop ends.
    fn claim_all(&self, body: &(dyn Fn(usize, usize) + Sync), tasks: usize, worker: usize) {
        loop {
            let task = self.next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                return;
            }
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| body(task, worker))) {
                held(&self.panic).get_or_insert(payload);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 3, 7] {
            let pool = Pool::new(threads).unwrap();
            for tasks in [0, 1, 2, 97] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, |t, w| {
                    assert!(w < pool.threads());
                    counts[t].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn workers_wake_up_again() {
        let pool = Pool::new(2).unwrap();
        let count = AtomicUsize::new(0);
        for pause in [0, 0, 5, 0, 20] {
            thread::sleep(Duration::from_millis(pause));
            pool.run(50, |_, _| {
                count.fetch_add(1, Ordering::Relaxed);
            });
        }
        assert_eq!(count.into_inner(), 250);
    }

    #[test]
    fn no_two_tasks_share_a_worker() {
        let pool = Pool::new(4).unwrap();
        let busy: Vec<AtomicBool> = (0..4).map(|_| AtomicBool::new(false)).collect();
        for _ in 0..200 {
            pool.run(16, |_, w| {
                assert!(!busy[w].swap(true, Ordering::SeqCst));
                std::hint::spin_loop();
                busy[w].store(false, Ordering::SeqCst);
            });
        }
    }

    #[test]
    fn threads_take_turns() {
        let pool = Pool::new(3).unwrap();
        let count = AtomicUsize::new(0);
        thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    (0..50).for_each(|_| {
                        pool.run(9, |_, _| {
                            count.fetch_add(1, Ordering::Relaxed);
                        })
                    })
                });
            }
        });
        assert_eq!(count.into_inner(), 4 * 50 * 9);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let pool = Pool::new(3).unwrap();
        for bad in [0, 7, 30] {
            let caught = catch_unwind(AssertUnwindSafe(|| pool.run(31, |t, _| assert_ne!(t, bad, "task {t}"))));
            let said = caught.expect_err("one task panics");
            assert!(said.downcast_ref::<String>().is_some_and(|s| s.contains(&format!("task {bad}"))));
            let count = AtomicUsize::new(0);
            pool.run(31, |_, _| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.into_inner(), 31);
        }
    }

    #[test]
    fn a_schedule_runs_on_the_leader() {
        let pool = Pool::new(2).unwrap();
        let mut seen = Vec::new();
        let name = pool.lead(|| {
            pool.run(2, |_, _| {});
            seen.push(1);
            pool.lead(|| thread::current().name().map(str::to_owned))
        });
        assert_eq!((name.as_deref(), seen), (Some("kiln-0"), vec![1]));
        let caught = catch_unwind(AssertUnwindSafe(|| pool.lead(|| panic!("inside"))));
        assert_eq!(caught.err().and_then(|p| p.downcast_ref::<&str>().copied()), Some("inside"));
        assert_eq!(pool.lead(|| 7), 7);
    }

    #[test]
    fn a_loop_within_a_loop_is_refused() {
        let (outer, inner) = (Pool::new(2).unwrap(), Pool::new(2).unwrap());
        let caught = catch_unwind(AssertUnwindSafe(|| outer.run(4, |_, _| inner.run(4, |_, _| {}))));
        assert!(caught.is_err());
        outer.run(4, |_, _| {});
    }
}
