//! The parallel loop: tasks numbered by shapes are claimed by workers in any order; which worker runs a task never changes bits.

use std::sync::atomic::{AtomicUsize, Ordering};

/// A fixed number of workers.
pub struct Pool {
    workers: Option<rayon::ThreadPool>,
    threads: usize,
}

impl Pool {
    /// A pool of `threads` workers; 0 means one per processor.
    ///
    /// # Errors
    /// When the system refuses to start threads.
    pub fn new(threads: usize) -> std::io::Result<Pool> {
        let threads = match threads {
            0 => std::thread::available_parallelism()?.get(),
            n => n,
        };
        if threads == 1 {
            return Ok(Pool { workers: None, threads });
        }
        let workers = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("kiln-{i}"))
            .build()
            .map_err(std::io::Error::other)?;
        Ok(Pool { workers: Some(workers), threads })
    }

    /// The calling thread alone.
    pub const fn serial() -> Pool {
        Pool { workers: None, threads: 1 }
    }

    /// Number of workers; scratch is sized by it.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Calls `f(task, worker)` for every task in `0..tasks`; `worker < threads()` and no two calls share a worker at a time.
    pub fn run(&self, tasks: usize, f: impl Fn(usize, usize) + Sync) {
        let workers = match &self.workers {
            Some(w) if tasks > 1 => w,
            _ => return (0..tasks).for_each(|t| f(t, 0)),
        };
        let next = AtomicUsize::new(0);
        workers.broadcast(|cx| {
            loop {
                let task = next.fetch_add(1, Ordering::Relaxed);
                if task >= tasks {
                    break;
                }
                f(task, cx.index());
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
