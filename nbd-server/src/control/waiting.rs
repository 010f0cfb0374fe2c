//! Places for connections that have not said yet what they want. There are only so many; when all are taken, the one that has
//! waited longest makes room. So whoever connects and says nothing, however often, keeps nobody away who speaks.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// How often at most it is logged that somebody had to go.
const LOG_PAUSE: Duration = Duration::from_secs(10);

type Waiting = Rc<RefCell<VecDeque<Rc<Notify>>>>;

/// A bounded number of places.
#[derive(Debug)]
pub(super) struct WaitingRoom {
    waiting: Waiting,
    max: usize,
    /// Who waits here, for the log.
    who: &'static str,
    logged_at: Cell<Option<Instant>>,
}

/// One of the places, until it is dropped or lost.
#[derive(Debug)]
pub(super) struct Place {
    waiting: Waiting,
    lost: Rc<Notify>,
}

impl WaitingRoom {
    pub(super) fn new(max: u32, who: &'static str) -> Self {
        Self {
            waiting: Waiting::default(),
            max: usize::try_from(max).unwrap_or(usize::MAX),
            who,
            logged_at: Cell::new(None),
        }
    }

    pub(super) fn taken(&self) -> u32 {
        u32::try_from(self.waiting.borrow().len()).unwrap_or(u32::MAX)
    }

    /// A place at the end of the queue, if need be that of whoever is at its front.
    pub(super) fn enter(&self) -> Place {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.len() >= self.max
            && let Some(oldest) = waiting.pop_front()
        {
            oldest.notify_one();
            let quiet = |at: Instant| at.elapsed() < LOG_PAUSE;
            if !self.logged_at.get().is_some_and(quiet) {
                self.logged_at.set(Some(Instant::now()));
                tracing::warn!(
                    "{} {} connect and say nothing: those that have waited longest are turned away",
                    self.max,
                    self.who
                );
            }
        }
        let lost = Rc::new(Notify::new());
        waiting.push_back(Rc::clone(&lost));
        Place {
            waiting: Rc::clone(&self.waiting),
            lost,
        }
    }
}

impl Place {
    /// Comes back when the place went to somebody else.
    pub(super) async fn lost(&self) {
        self.lost.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waiting = self.waiting.borrow_mut();
        waiting.retain(|other| !Rc::ptr_eq(other, &self.lost));
    }
}
