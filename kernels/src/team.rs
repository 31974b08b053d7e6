//! Threads that stay together through many short parallel loops in a row, as a decoding step has: five a layer, of some
//! tens of microseconds each, between which a thread of rayon's pool falls asleep and takes as long to wake.
//!
//! Whoever leads a team ([`gather`]) does its own work and takes part in every loop (`for_each`); the others wait for the
//! next loop by spinning. Nobody depends on them: a loop ends when all of its tasks are done, and the leader does those
//! that nobody else took, so that a busy machine or a pool in use elsewhere costs speed and nothing else. Those who find
//! nothing to do for a while leave.
#![allow(unsafe_code)] // helpers borrow the loop's body from the leader's stack

use rayon::prelude::*;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Helpers leave after so long without a task: longer than anything that a step does between two loops.
const PATIENCE: Duration = Duration::from_micros(500);
/// Looks for a task between two pauses that let other threads run.
const SPINS: u32 = 200;

thread_local! {
    /// The team that this thread leads.
    static LED: Cell<Option<*const Team>> = const { Cell::new(None) };
}

type Body<'a> = dyn Fn(usize) + Sync + 'a;

struct Team {
    /// The tasks of the loop (high half) and how many are taken (low half).
    tickets: AtomicU64,
    /// Tasks that are done.
    done: AtomicUsize,
    /// The body of the loop; written before its tickets are published, read by those who took one.
    body: UnsafeCell<Option<*const Body<'static>>>,
    /// Whether the leader is inside a loop.
    looping: Cell<bool>,
    panicked: AtomicBool,
    dismissed: AtomicBool,
}

// SAFETY: `looping` is touched by the leader alone, `body` as its comment says: the leader writes it while no ticket is out.
unsafe impl Sync for Team {}

/// Runs `work` with a team of all of rayon's threads for the loops inside it. Inside another team it just runs.
pub fn gather<R>(work: impl FnOnce() -> R) -> R {
    let helpers = rayon::current_num_threads() - 1;
    if helpers == 0 || LED.get().is_some() {
        return work();
    }
    let team = Team {
        tickets: AtomicU64::new(0),
        done: AtomicUsize::new(0),
        body: UnsafeCell::new(None),
        looping: Cell::new(false),
        panicked: AtomicBool::new(false),
        dismissed: AtomicBool::new(false),
    };
    rayon::in_place_scope(|scope| {
        for _ in 0..helpers {
            let team = &team;
            scope.spawn(move |_| team.help());
        }
        let _leading = Leading::of(&team);
        work()
    })
}

/// [`gather`] for work whose loops are short, which `short` says; else `work` alone.
pub fn gather_if<R>(short: bool, work: impl FnOnce() -> R) -> R {
    match short {
        true => gather(work),
        false => work(),
    }
}

/// Makes this thread lead a team, and dismisses the team when dropped.
struct Leading<'a>(&'a Team);

impl<'a> Leading<'a> {
    fn of(team: &'a Team) -> Self {
        LED.set(Some(team));
        Self(team)
    }
}

impl Drop for Leading<'_> {
    fn drop(&mut self) {
        LED.set(None);
        self.0.dismissed.store(true, Ordering::Release);
    }
}

/// Runs `body(0)` … `body(n - 1)` in any order: by the team that this thread leads, if there is one, else on rayon's pool.
pub(crate) fn for_each(n: usize, body: impl Fn(usize) + Sync + Send) {
    match LED.get() {
        _ if n == 1 => body(0),
        // SAFETY: the pointer is there only while `gather` keeps the team alive on this thread's stack.
        Some(team) => unsafe { &*team }.run(n, &body),
        None => (0..n).into_par_iter().for_each(body),
    }
}

impl Team {
    /// The number of a task that is now this thread's.
    fn take(&self) -> Option<usize> {
        let mut tickets = self.tickets.load(Ordering::Relaxed);
        loop {
            let (tasks, taken) = (tickets >> 32, tickets & u64::from(u32::MAX));
            if taken >= tasks {
                return None;
            }
            match self.tickets.compare_exchange_weak(
                tickets,
                tickets + 1,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(taken as usize),
                Err(changed) => tickets = changed,
            }
        }
    }

    fn run(&self, n: usize, body: &Body<'_>) {
        if n > u32::MAX as usize || self.looping.replace(true) {
            (0..n).for_each(body);
            return;
        }
        // SAFETY: no ticket is out, so that nobody reads the body now; this function does not return before every ticket
        // that it publishes is given back, so that the borrow outlives its readers.
        unsafe {
            *self.body.get() = Some(std::mem::transmute::<*const Body<'_>, *const Body<'static>>(body));
        }
        self.done.store(0, Ordering::Relaxed);
        self.tickets.store((n as u64) << 32, Ordering::Release);
        let own = catch_unwind(AssertUnwindSafe(|| {
            while let Some(task) = self.take() {
                body(task);
                self.done.fetch_add(1, Ordering::Relaxed);
            }
        }));
        // After a panic of ours, tasks that nobody took are not done, and the one that panicked never ends.
        let tickets = self.tickets.swap(0, Ordering::Relaxed);
        let taken = (tickets & u64::from(u32::MAX)) as usize - usize::from(own.is_err());
        let mut spins = 0;
        while self.done.load(Ordering::Acquire) < taken {
            pause(&mut spins);
        }
        self.looping.set(false);
        if let Err(payload) = own {
            resume_unwind(payload);
        }
        assert!(!self.panicked.swap(false, Ordering::Relaxed), "a task of a parallel loop panicked");
    }

    fn help(&self) {
        let (mut spins, mut idle_since) = (0, None);
        while !self.dismissed.load(Ordering::Acquire) {
            if let Some(task) = self.take() {
                idle_since = None;
                // SAFETY: a ticket of ours is out, so that the leader waits for us and the body stays.
                let body = unsafe { (*self.body.get()).map(|body| &*body) };
                let run = || body.iter().for_each(|body| body(task));
                if catch_unwind(AssertUnwindSafe(run)).is_err() {
                    self.panicked.store(true, Ordering::Relaxed);
                }
                self.done.fetch_add(1, Ordering::Release);
            } else if pause(&mut spins) && idle_since.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                return;
            }
        }
    }
}

/// Waits a moment; now and then it lets other threads run, and says so.
fn pause(spins: &mut u32) -> bool {
    *spins += 1;
    std::hint::spin_loop();
    let yields = spins.is_multiple_of(SPINS);
    if yields {
        std::thread::yield_now();
    }
    yields
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
    }

    #[test]
    fn every_task_is_done_once() {
        for threads in [1, 2, 3, 8] {
            pool(threads, || {
                gather(|| {
                    for n in (0..300).chain([5000]) {
                        let counts: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                        for_each(n, |i| {
                            counts[i].fetch_add(1, Ordering::Relaxed);
                        });
                        assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1), "{n} tasks");
                    }
                });
            });
        }
    }

    #[test]
    fn loops_inside_loops_and_teams_inside_teams_run() {
        let sum = AtomicUsize::new(0);
        let add = |i: usize| {
            sum.fetch_add(i, Ordering::Relaxed);
        };
        pool(3, || gather(|| gather(|| for_each(10, |i| for_each(10, |k| add(10 * i + k))))));
        assert_eq!(sum.into_inner(), 99 * 100 / 2);
    }

    #[test]
    fn helpers_who_left_and_pools_in_use_change_nothing() {
        let sum = AtomicUsize::new(0);
        let add = |i: usize| {
            sum.fetch_add(i, Ordering::Relaxed);
        };
        pool(2, || {
            gather(|| {
                for_each(100, add);
                std::thread::sleep(3 * PATIENCE);
                for_each(100, add);
                (0..100usize).into_par_iter().for_each(add);
            });
        });
        // more leaders than threads
        pool(2, || (0..16).into_par_iter().for_each(|_| gather(|| for_each(100, add))));
        assert_eq!(sum.into_inner(), 19 * 99 * 100 / 2);
    }

    #[test]
    fn a_panic_comes_out_and_the_team_goes_on() {
        pool(4, || {
            gather(|| {
                for round in 0..50 {
                    let loop_panics = || for_each(64, |i| assert!(i != round, "task {i}"));
                    assert!(catch_unwind(AssertUnwindSafe(loop_panics)).is_err());
                    for_each(64, |_| ());
                }
            });
        });
    }
}
