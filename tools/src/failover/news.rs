//! What `repld` says, asked for on a thread of its own: one that hangs, or is frozen, holds nothing else up.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, sleep};
use std::time::Duration;

use nbd_server::admin::client::Client;
use nbd_server::admin::{Request, Response, Status};
use nbd_server::config::Node;

use super::{Moment, say};
use crate::Failure;

/// How often it is asked.
const EVERY: Duration = Duration::from_millis(50);
/// The pause before another connection.
const ABSENT: Duration = Duration::from_millis(100);
/// What was said longer ago is no news.
const FRESH: Duration = Duration::from_secs(1);

/// When the newest answer was asked for, and what it was; `None` once there is no connection.
type Newest = Arc<Mutex<Option<(Moment, Arc<Status>)>>>;

/// What `repld` said last.
pub(super) struct News {
    newest: Newest,
}

impl News {
    pub(super) fn start(node: &Node) -> Result<Self, Failure> {
        let newest = Newest::default();
        let (socket, shared) = (node.admin_socket(), Arc::clone(&newest));
        let put = move |news| *shared.lock().unwrap_or_else(PoisonError::into_inner) = news;
        let ask = move || {
            loop {
                if let Ok(mut client) = Client::connect(&socket) {
                    loop {
                        let at = Moment::now();
                        match client.call(&Request::Status) {
                            Ok(Response::Status(status)) => put(Some((at, Arc::from(status)))),
                            // It lives, and has no time for this: what it said before gets old.
                            Ok(_) => break,
                            Err(_) => {
                                put(None);
                                break;
                            }
                        }
                        sleep(EVERY);
                    }
                } else {
                    put(None);
                }
                sleep(ABSENT);
            }
        };
        let thread = std::thread::Builder::new().name("news".into());
        thread
            .spawn(ask)
            .map_err(|error| Failure::Failed(format!("there is no thread: {error}")))?;
        Ok(Self { newest })
    }

    /// What was said last, if that is fresh, and when it was asked for.
    pub(super) fn newest(&self, now: Moment) -> Option<(Moment, Arc<Status>)> {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        newest.clone().filter(|(at, _)| now < at.after(FRESH))
    }
}

/// A request that takes its time.
#[derive(Default)]
pub(super) struct Asked {
    open: Option<JoinHandle<Result<(), Failure>>>,
    /// When the last one was found to be answered.
    answered: Option<Moment>,
}

impl Asked {
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Sends a request, and comes back at once.
    pub(super) fn ask(&mut self, node: &Node, request: Request) {
        let socket = node.admin_socket();
        let work = move || match Client::connect(&socket)?.call(&request)? {
            Response::Error(error) => Err(error.into()),
            _ => Ok(()),
        };
        match std::thread::Builder::new().name("asked".into()).spawn(work) {
            Ok(thread) => self.open = Some(thread),
            Err(error) => say(&format!("there is no thread: {error}")),
        }
    }

    /// Takes note of an answer.
    pub(super) fn look(&mut self) {
        let Some(thread) = self.open.take_if(|thread| thread.is_finished()) else {
            return;
        };
        self.answered = Some(Moment::now());
        if let Ok(Err(failure)) = thread.join() {
            say(&failure.line());
        }
    }

    /// Whether what was asked for at that time shows what requests have done.
    pub(super) fn is_seen_at(&self, time: Moment) -> bool {
        !self.is_open() && self.answered.is_none_or(|answered| time >= answered)
    }
}
