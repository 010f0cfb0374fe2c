//! What is wrong with the disks: which file or device failed at what, and which does not answer. For the log, for
//! status, and for the decision to leave a service to a node whose disks work.

use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use replicator::io::DiskError;
use replicator::types::Time;

use crate::handle::Trouble;

/// How often the disks are looked at, in nanoseconds; and when the oldest operation begins to be slow.
pub const WATCH_NANOS: u64 = 200_000_000;

/// An operation that takes longer is worth a line in the log, in nanoseconds; a shorter time-out of the disks is.
const SLOW_NANOS_MAX: u64 = 2_000_000_000;

/// A thread that did not look for so long did not run, in nanoseconds.
const STOOD_STILL_NANOS: u64 = 3 * WATCH_NANOS;

/// The same failure is logged again after this long, in nanoseconds.
const REPEAT_NANOS: u64 = 10_000_000_000;

/// What an operation does, for a sentence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Doing {
    /// Reads.
    Reading,
    /// Writes.
    Writing,
    /// Makes a range read as zeroes.
    Zeroing,
    /// Makes what was written durable.
    Flushing,
}

impl Doing {
    fn as_str(self) -> &'static str {
        match self {
            Self::Reading => "reading",
            Self::Writing => "writing",
            Self::Zeroing => "zeroing",
            Self::Flushing => "flushing",
        }
    }
}

/// An operation, as a person wants to read of it.
#[derive(Clone, Copy, Debug)]
pub struct Operation<'a> {
    /// The file or device.
    pub path: &'a Path,
    /// What is done to it.
    pub doing: Doing,
    /// From which byte on.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
    /// When it began.
    pub began: Time,
}

impl Operation<'_> {
    fn sentence(&self) -> String {
        let (path, doing) = (self.path.display(), self.doing.as_str());
        if self.doing == Doing::Flushing {
            format!("{path}: {doing} it")
        } else {
            format!(
                "{path}: {doing} {} bytes at byte {}",
                self.length, self.offset
            )
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Failure {
    path: Arc<Path>,
    doing: Doing,
    error: DiskError,
}

/// Keeps the books about the disks' failures and silences.
#[derive(Debug)]
pub struct Watch {
    trouble: Trouble,
    /// An operation that takes longer is silent.
    slow_nanos: u64,
    failure: Option<(Failure, Time)>,
    /// Nothing before this counts: the thread itself did not run.
    counts_from: Time,
    looked_at: Time,
    /// When the oldest operation in flight becomes slow.
    slow_at: Option<Time>,
    /// When the operation began whose silence was logged.
    silent_since: Option<Time>,
    silent_for_nanos: u64,
}

impl Watch {
    /// Nothing is wrong yet. What takes `timeout_nanos` is told by then.
    pub fn new(timeout_nanos: u64) -> Self {
        Self {
            trouble: Trouble::default(),
            slow_nanos: timeout_nanos.min(SLOW_NANOS_MAX),
            failure: None,
            counts_from: Time::default(),
            looked_at: Time::default(),
            slow_at: None,
            silent_since: None,
            silent_for_nanos: 0,
        }
    }

    /// What is wrong now.
    pub fn trouble(&self) -> &Trouble {
        &self.trouble
    }

    /// An operation failed.
    pub fn failed(&mut self, now: Time, operation: &Operation<'_>, error: DiskError) {
        let failure = Failure {
            path: operation.path.into(),
            doing: operation.doing,
            error,
        };
        let known = self
            .failure
            .as_ref()
            .is_some_and(|(last, at)| *last == failure && now.since(*at) < REPEAT_NANOS);
        if known {
            return;
        }
        let reason = match error {
            DiskError::Os(code) => std::io::Error::from_raw_os_error(code).to_string(),
            DiskError::Short | DiskError::Volume(_) => error.to_string(),
        };
        let text = format!("{} failed: {reason}", operation.sentence());
        let advice = match error {
            DiskError::Os(code)
                if [Errno::ENOSPC, Errno::EDQUOT].contains(&Errno::from_raw(code)) =>
            {
                "free space there"
            }
            _ => "mend or replace that device",
        };
        tracing::error!("{text}; {advice}, then restart repld");
        // What a read met does not hide a failed write, which is why a node steps aside.
        let was_read = operation.doing == Doing::Reading;
        let worse = self
            .failure
            .as_ref()
            .is_none_or(|(last, _)| last.doing == Doing::Reading || !was_read);
        if worse {
            self.trouble.failure = Some(text.into());
            self.trouble.advice = advice;
        }
        self.failure = Some((failure, now));
    }

    /// Whether it is time to look at the disks again.
    pub fn is_due(&self, now: Time) -> bool {
        now.since(self.looked_at) >= WATCH_NANOS || self.slow_at.is_some_and(|at| now >= at)
    }

    /// When an operation becomes slow unless it ends; `None` if nothing is to be feared before the next look.
    pub fn slow_at(&self) -> Option<Time> {
        self.slow_at
    }

    /// Looks at the oldest operation in flight.
    pub fn look(&mut self, now: Time, oldest: Option<Operation<'_>>) {
        // A machine or process that stood still saw no answers, also if there were some.
        if now.since(self.looked_at) > STOOD_STILL_NANOS {
            self.counts_from = now;
        }
        self.looked_at = now;
        let slow_at = oldest.map(|operation| operation.began.max(self.counts_from));
        let slow_at = slow_at.map(|began| began.after(self.slow_nanos));
        self.slow_at = slow_at.filter(|at| *at > now);
        let slow = oldest.filter(|operation| self.age(now, operation.began) >= self.slow_nanos);
        self.silent_for_nanos = slow.map_or(0, |operation| self.age(now, operation.began));
        match slow {
            Some(operation) if self.silent_since != Some(operation.began) => {
                // Not how long: a status that changes all the time is an event all the time.
                let text = format!("{} is not answered", operation.sentence());
                if self.silent_since.is_none() {
                    tracing::warn!(
                        "{text} for {} ms; look at that device",
                        self.silent_for_nanos / 1_000_000
                    );
                }
                self.silent_since = Some(operation.began);
                self.trouble.silence = Some(text.into());
            }
            Some(_) => {}
            None => {
                if self.silent_since.take().is_some() {
                    tracing::info!("the disks answer again");
                    self.trouble.silence = None;
                }
            }
        }
    }

    /// How long something has lasted, as far as this thread was there to see it.
    pub fn age(&self, now: Time, began: Time) -> u64 {
        now.since(began.max(self.counts_from))
    }

    /// How long the oldest operation has not been answered; 0 while that is no worry.
    pub fn silent_for_nanos(&self) -> u64 {
        self.silent_for_nanos
    }
}

#[cfg(test)]
mod tests;
