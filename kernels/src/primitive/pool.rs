//! A pool of fixed threads that share out numbered tasks.
//!
//! The threads are created once. A call of [`Pool::run`] publishes a task count and a closure; the
//! calling thread and the workers claim task numbers from one atomic word until none is left, and
//! the call returns when all claimed tasks are done. A worker that wakes too late finds nothing to
//! claim and costs nothing. A call allocates nothing.
//!
//! Results of operators do not depend on the number of threads, because tasks are cut by the
//! operator from its shapes alone, and no task reads what another one writes.

use std::any::Any;
use std::cell::Cell;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

/// Turns of waiting before a thread sleeps: some tens of microseconds, longer than the gap between
/// two operators of one step and shorter than what an idle core is worth to others.
const SPIN_TURNS: u32 = 1500;

/// In place of the next task's number: there is no run.
const CLOSED: u64 = 0xffff_ffff;

type Task = dyn Fn(usize) + Sync;

/// Fixed threads that execute tasks together with the caller. See the [module](self).
pub struct Pool {
    shared: Arc<State>,
    workers: Vec<JoinHandle<()>>,
    /// Held during a run, so that two threads that share a pool take turns.
    turn: Mutex<()>,
}

impl Pool {
    /// A pool that computes on `threads` threads in all: the caller and `threads - 1` workers.
    /// Zero counts as one. Where the system refuses a thread, the pool goes on with fewer.
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(State::default());
        let workers = (1..threads)
            .map_while(|index| {
                let shared = Arc::clone(&shared);
                thread::Builder::new()
                    .name(format!("kernel-{index}"))
                    .spawn(move || shared.work())
                    .ok()
            })
            .collect();
        Self { shared, workers, turn: Mutex::new(()) }
    }

    /// How many threads compute, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `f(0)`, …, `f(tasks - 1)`, each once, in any order and on any of the threads.
    ///
    /// A call from inside a task (of any pool) runs its tasks on the calling thread.
    ///
    /// # Panics
    /// If a task panics, the tasks not yet begun are skipped, and the call panics with the first
    /// payload after the running ones have ended.
    pub fn run(&self, tasks: usize, f: &(dyn Fn(usize) + Sync)) {
        if tasks <= 1 || self.workers.is_empty() || INSIDE.get() {
            (0..tasks).for_each(f);
            return;
        }
        let tasks = u32::try_from(tasks).expect("operators cut their work into far fewer tasks");
        let _turn = lock(&self.turn);
        self.shared.run(tasks, f);
    }

    /// Calls `f(index, part)` for each of `count` parts of one or several outputs (see [`Parts`]).
    pub fn for_parts<P: Parts>(&self, count: usize, parts: P, f: impl Fn(usize, P::Part) + Sync) {
        self.run(count, &|index| {
            // SAFETY: `run` calls this once for each index, and parts of different index are
            // disjoint. `parts` lives until `run` returns.
            f(index, unsafe { parts.part(index) });
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        {
            let _guard = lock(&self.shared.sleep);
            self.shared.wake.notify_all();
        }
        for worker in self.workers.drain(..) {
            // A worker catches the panics of tasks, so it ends by itself and without a payload.
            let _ = worker.join();
        }
    }
}

/// One or several outputs that can be cut into parts, one for each task.
///
/// Implemented by [`Chunks`] and by tuples of outputs that are cut in step.
pub trait Parts: Sync {
    /// What a task receives.
    type Part;

    /// The part of this index, empty beyond the end.
    ///
    /// # Safety
    /// Each index is asked for at most once, and the part is dropped before the output is used.
    unsafe fn part(&self, index: usize) -> Self::Part;
}

/// A mutable slice in chunks of equal length, the last one possibly shorter.
pub struct Chunks<'a, T> {
    start: *mut T,
    len: usize,
    chunk: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: the parts are disjoint mutable slices, each used by one thread, which `T: Send` permits.
unsafe impl<T: Send> Sync for Chunks<'_, T> {}

impl<'a, T> Chunks<'a, T> {
    /// Cuts `slice` into chunks of `chunk` elements (at least one).
    pub fn new(slice: &'a mut [T], chunk: usize) -> Self {
        let len = slice.len();
        Self { start: slice.as_mut_ptr(), len, chunk: chunk.max(1), slice: PhantomData }
    }

    /// The number of chunks.
    pub fn count(&self) -> usize {
        self.len.div_ceil(self.chunk)
    }
}

impl<'a, T: Send> Parts for Chunks<'a, T> {
    type Part = &'a mut [T];

    unsafe fn part(&self, index: usize) -> &'a mut [T] {
        let begin = index.saturating_mul(self.chunk).min(self.len);
        let end = begin.saturating_add(self.chunk).min(self.len);
        // SAFETY: the range lies inside the slice, and chunks of different index do not overlap.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(begin), end - begin) }
    }
}

/// An output of which each task writes its own part, where the parts are not chunks.
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: tasks use disjoint runs, each on one thread, which `T: Send` permits.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// `len` elements from `begin`.
    ///
    /// # Safety
    /// No other run that overlaps this one is alive.
    ///
    /// # Panics
    /// If the run leaves the slice.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn run(&self, begin: usize, len: usize) -> &'a mut [T] {
        assert!(begin <= self.len && len <= self.len - begin);
        // SAFETY: inside the slice by the assertion, and exclusive as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(begin), len) }
    }
}

/// An output that may be absent.
impl<P: Parts> Parts for Option<P> {
    type Part = Option<P::Part>;

    unsafe fn part(&self, index: usize) -> Self::Part {
        // SAFETY: as the caller promises.
        self.as_ref().map(|parts| unsafe { parts.part(index) })
    }
}

macro_rules! parts_of_tuple {
    ($($name:ident $place:tt),+) => {
        impl<$($name: Parts),+> Parts for ($($name,)+) {
            type Part = ($($name::Part,)+);

            unsafe fn part(&self, index: usize) -> Self::Part {
                // SAFETY: as the caller promises, for each member of the tuple.
                unsafe { ($(self.$place.part(index),)+) }
            }
        }
    };
}
parts_of_tuple!(A 0, B 1);
parts_of_tuple!(A 0, B 1, C 2);
parts_of_tuple!(A 0, B 1, C 2, D 3);

thread_local! {
    /// Whether this thread is executing a task.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// What the caller and the workers share.
///
/// `claim` holds the number of the run (upper half) and the next task (lower half). Between two runs
/// it is closed: no thread can claim, under a number of its own. The other fields of a run are
/// written only while it is closed. A thread reads them first and claims by compare-and-swap
/// afterwards. Had it read a field of a later run, it would have seen the closing before its swap,
/// which then fails; so a swap that succeeds proves that what was read belongs to that run.
#[derive(Default)]
struct State {
    claim: AtomicU64,
    tasks: AtomicUsize,
    /// Address of the fat pointer to the closure, which lies on the caller's stack.
    closure: AtomicPtr<*const Task>,
    done: AtomicUsize,
    failed: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
    sleep: Mutex<()>,
    wake: Condvar,
    sleepers: AtomicUsize,
    finish: Mutex<()>,
    finished: Condvar,
    caller_waits: AtomicBool,
}

impl State {
    fn run(&self, tasks: u32, f: &(dyn Fn(usize) + Sync)) {
        // SAFETY: only the lifetime is erased. The closure is called between a successful claim
        // and the count of `done` that follows it, and this function returns when `done` says
        // that every claimed task has ended.
        let closure: *const Task =
            unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static Task>(f) };
        let last = self.claim.load(Ordering::Relaxed) >> 32;
        let number = |after: u64| (last.wrapping_add(after) & 0xffff_ffff) << 32;
        self.claim.store(number(1) | CLOSED, Ordering::SeqCst);
        self.tasks.store(tasks as usize, Ordering::Release);
        self.closure.store((&raw const closure).cast_mut(), Ordering::Release);
        self.done.store(0, Ordering::Relaxed);
        // A number other than that of the closing, so that a worker which saw only that wakes again.
        self.claim.store(number(2), Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            let _guard = lock(&self.sleep);
            self.wake.notify_all();
        }
        INSIDE.set(true);
        self.take_part();
        INSIDE.set(false);
        self.wait_until_done(tasks as usize);
        if self.failed.swap(false, Ordering::Relaxed) {
            let payload = lock(&self.panic).take();
            resume_unwind(payload.unwrap_or_else(|| Box::new("a task panicked")));
        }
    }

    /// Claims and executes tasks of the present run until none is left.
    fn take_part(&self) {
        loop {
            let claim = self.claim.load(Ordering::Acquire);
            let tasks = self.tasks.load(Ordering::Acquire);
            let closure = self.closure.load(Ordering::Acquire);
            let index = (claim & CLOSED) as usize;
            if index >= tasks || index == CLOSED as usize {
                return;
            }
            let swap = self.claim.compare_exchange_weak(
                claim,
                claim + 1,
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
            if swap.is_err() {
                continue;
            }
            if !self.failed.load(Ordering::Relaxed) {
                // SAFETY: the claim succeeded, so `closure` belongs to this run, and the caller
                // stays in `run` until this task is counted in `done`.
                let f: &Task = unsafe { &**closure };
                if let Err(payload) = catch_unwind(AssertUnwindSafe(|| f(index))) {
                    lock(&self.panic).get_or_insert(payload);
                    self.failed.store(true, Ordering::Relaxed);
                }
            }
            // After the count the caller may return, so nothing of the run is used below.
            if self.done.fetch_add(1, Ordering::SeqCst) + 1 == tasks
                && self.caller_waits.load(Ordering::SeqCst)
            {
                let _guard = lock(&self.finish);
                self.finished.notify_all();
            }
        }
    }

    fn wait_until_done(&self, tasks: usize) {
        for _ in 0..SPIN_TURNS {
            if self.done.load(Ordering::Acquire) == tasks {
                return;
            }
            std::hint::spin_loop();
        }
        let mut guard = lock(&self.finish);
        self.caller_waits.store(true, Ordering::SeqCst);
        while self.done.load(Ordering::SeqCst) != tasks {
            guard = self.finished.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.caller_waits.store(false, Ordering::SeqCst);
    }

    /// The life of a worker.
    fn work(&self) {
        INSIDE.set(true);
        let mut seen = 0;
        while self.wait_for_run(&mut seen) {
            self.take_part();
        }
    }

    /// Waits for a run other than `seen`; false when the pool ends.
    fn wait_for_run(&self, seen: &mut u64) -> bool {
        let mut changed = |order| {
            let run = self.claim.load(order) >> 32;
            std::mem::replace(seen, run) != run
        };
        for _ in 0..SPIN_TURNS {
            if self.stop.load(Ordering::Relaxed) {
                return false;
            }
            if changed(Ordering::Acquire) {
                return true;
            }
            std::hint::spin_loop();
        }
        let mut guard = lock(&self.sleep);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let more = loop {
            if self.stop.load(Ordering::SeqCst) {
                break false;
            }
            if changed(Ordering::SeqCst) {
                break true;
            }
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        };
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        more
    }
}

/// The guarded values are valid at any moment, so a poisoned lock is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_exactly_once_for_any_number_of_threads() {
        for threads in [0, 1, 2, 3, 8] {
            let pool = Pool::new(threads);
            for tasks in [0, 1, 2, 3, 7, 100, 1000] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, &|index| {
                    counts[index].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn many_short_runs_lose_no_task() {
        let pool = Pool::new(3);
        let total = AtomicUsize::new(0);
        for _ in 0..20_000 {
            pool.run(3, &|index| {
                total.fetch_add(index + 1, Ordering::Relaxed);
            });
        }
        assert_eq!(total.into_inner(), 20_000 * 6);
    }

    /// A worker that was late in a run of few tasks once took a task of the next, longer run before
    /// that run was published: the task ran twice, and the caller waited for ever.
    #[test]
    fn a_worker_that_is_late_takes_no_task_of_the_next_run() {
        let pool = Pool::new(2);
        let counts: Vec<AtomicUsize> = (0..64).map(|_| AtomicUsize::new(0)).collect();
        let pause = |us: u64| {
            let begin = std::time::Instant::now();
            while begin.elapsed().as_nanos() < u128::from(us) * 1000 {
                std::hint::spin_loop();
            }
        };
        for round in 1..=20_000 {
            // The worker goes to sleep, is woken by the short run, and arrives when the long one begins.
            pause(60);
            pool.run(2, &|_| ());
            pause(round as u64 % 40);
            pool.run(64, &|index| {
                counts[index].fetch_add(1, Ordering::Relaxed);
            });
            let exact = |count: &AtomicUsize| count.load(Ordering::Relaxed) == round;
            assert!(counts.iter().all(exact), "round {round}");
        }
    }

    #[test]
    fn sleeping_workers_wake_again() {
        let pool = Pool::new(2);
        for _ in 0..3 {
            thread::sleep(std::time::Duration::from_millis(20));
            let mut values = [0u32; 64];
            let chunks = Chunks::new(&mut values, 1);
            pool.for_parts(chunks.count(), chunks, |index, part| part[0] = index as u32);
            assert!(values.iter().enumerate().all(|(index, &value)| value == index as u32));
        }
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2);
        for guilty in [0, 5, 31] {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(32, &|index| assert!(index != guilty, "task {index}"));
            }));
            let payload = result.expect_err("the task panicked");
            assert_eq!(payload.downcast_ref::<String>(), Some(&format!("task {guilty}")));
        }
        let sum = AtomicUsize::new(0);
        pool.run(10, &|index| {
            sum.fetch_add(index, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 45);
    }

    #[test]
    fn a_nested_call_runs_inline() {
        let pool = Pool::new(2);
        let sum = AtomicUsize::new(0);
        pool.run(4, &|_| {
            let here = thread::current().id();
            pool.run(4, &|_| {
                assert_eq!(thread::current().id(), here);
                sum.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(sum.into_inner(), 16);
    }

    #[test]
    fn two_callers_take_turns() {
        let pool = Pool::new(2);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let sum = AtomicUsize::new(0);
                        pool.run(8, &|index| {
                            sum.fetch_add(index, Ordering::Relaxed);
                        });
                        assert_eq!(sum.into_inner(), 28);
                    }
                });
            }
        });
    }

    #[test]
    fn chunks_cover_a_slice_of_any_length() {
        let pool = Pool::new(2);
        for len in [0, 1, 9, 10, 11] {
            let mut values = vec![0; len];
            let chunks = Chunks::new(&mut values, 10);
            let count = chunks.count();
            pool.for_parts(count, chunks, |_, part| part.iter_mut().for_each(|value| *value += 1));
            assert_eq!(values, vec![1; len]);
        }
    }
}
