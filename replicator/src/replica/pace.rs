//! How fast a source gives blocks to a peer in resync: as fast as its clients do not feel it.
//!
//! What can be seen from here is how long requests take, and how much waits on the links to the peers. One request at a time is
//! timed. Its smoothed time is compared with the best that there was lately; that best one is forgotten slowly, so a load that
//! changes for good is soon the new measure. Ten times a second the rate is judged: where requests take twice as long, or a link is full,
//! it falls by a quarter, else it rises by an eighth and something. It never falls below [`FLOOR`], so a resync arrives whatever
//! the clients do; and where nobody is served there is no limit. (DRBD's `c-min-rate` and its controller are the same thought;
//! it looks at the data under way to the peer, and not at what the clients get.)

use crate::types::*;

/// The least that a resync is given, in bytes a second.
pub(super) const FLOOR: u64 = 4 << 20;

/// The most while clients are served.
const CEILING: u64 = 4 << 30;

/// Where it begins.
const FIRST: u64 = 64 << 20;

/// How often the rate is judged.
const JUDGED_NS: u64 = 100_000_000;

/// A difference below that is nobody's concern.
const FELT_NS: u64 = 200_000;

/// Batches that wait on the link to a peer: more is full.
const LINK_MAX: u32 = 16;

/// A request that has not ended for so long is timed no more: its client may be gone.
const STALE_NS: u64 = 30_000_000_000;

#[derive(Debug)]
pub(super) struct Pace {
    timed: Option<(ReqId, Time)>,
    /// Smoothed.
    takes_ns: u64,
    /// The best of that, lately.
    best_ns: u64,
    rate: u64,
    judged_at: Time,
    /// Requests ended since.
    served: bool,
    /// Nothing is to be given before.
    ready_at: Time,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self {
            timed: None,
            takes_ns: 0,
            best_ns: 0,
            rate: FIRST,
            judged_at: Time(0),
            served: false,
            ready_at: Time(0),
        }
    }

    /// A client's request comes.
    pub(super) fn begins(&mut self, req: ReqId, now: Time) {
        if self.timed.is_none_or(|(_, at)| now.since(at) > STALE_NS) {
            self.timed = Some((req, now));
        }
    }

    /// It is answered.
    pub(super) fn ends(&mut self, req: ReqId, now: Time) {
        self.served = true;
        let Some((_, at)) = self.timed.filter(|(timed, _)| *timed == req) else {
            return;
        };
        self.timed = None;
        self.takes(now.since(at));
    }

    fn takes(&mut self, ns: u64) {
        self.takes_ns = if self.takes_ns == 0 {
            ns
        } else {
            (7 * self.takes_ns + ns) / 8
        };
        if self.best_ns == 0 || self.takes_ns < self.best_ns {
            self.best_ns = self.takes_ns;
        }
    }

    /// When more may be given. `waiting`: requests being worked on; `queued`: batches that wait on the fullest link.
    pub(super) fn ready(&mut self, waiting: u32, queued: u32, now: Time) -> Option<Time> {
        if now.since(self.judged_at) >= JUDGED_NS {
            self.judged_at = now;
            let served = std::mem::take(&mut self.served) || waiting > 0;
            // One that still waits counts as what it has taken so far.
            let late = self.timed.map_or(0, |(_, at)| now.since(at));
            let felt = self.takes_ns.max(late) > 2 * self.best_ns + FELT_NS;
            self.rate = if !served {
                self.ready_at = now;
                FIRST
            } else if felt || queued > LINK_MAX {
                (self.rate - self.rate / 4).max(FLOOR)
            } else {
                (self.rate + self.rate / 8 + (1 << 20)).min(CEILING)
            };
            self.best_ns += self.best_ns / 64;
        }
        (waiting > 0 && now < self.ready_at).then_some(self.ready_at)
    }

    /// So much was given.
    pub(super) fn gave(&mut self, bytes: u64, now: Time) {
        let ns = u128::from(bytes) * 1_000_000_000 / u128::from(self.rate);
        let ns = u64::try_from(ns).unwrap_or(u64::MAX);
        // What was not used is not saved up.
        self.ready_at = Time(self.ready_at.0.max(now.0).saturating_add(ns));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Lets `seconds` pass in which a request takes what `takes` says of the rate, and blocks are given as fast as is allowed.
    /// Returns how many bytes a second were given.
    fn live(pace: &mut Pace, from: &mut u64, seconds: u64, takes: impl Fn(u64) -> u64) -> u64 {
        let mut given = 0;
        for _ in 0..seconds * 1000 {
            *from += MS;
            let now = Time(*from);
            pace.begins(ReqId(*from), now);
            let ns = takes(pace.rate);
            pace.timed = None;
            pace.served = true;
            pace.takes(ns);
            while pace.ready(1, 0, now).is_none() {
                pace.gave(1 << 20, now);
                given += 1 << 20;
            }
        }
        given / seconds
    }

    #[test]
    fn it_gives_way_when_clients_feel_it_and_comes_back() {
        let mut pace = Pace::new();
        let mut at = 0;
        // Nobody feels anything.
        let free = live(&mut pace, &mut at, 5, |_| MS);
        assert!(free > 100 << 20, "{free}");
        // More than 50 MiB a second makes requests three times as slow.
        let felt = |rate: u64| if rate > 50 << 20 { 3 * MS } else { MS };
        live(&mut pace, &mut at, 5, felt);
        let held = live(&mut pace, &mut at, 5, felt);
        assert!((20 << 20..80 << 20).contains(&held), "{held}");
        let free = live(&mut pace, &mut at, 5, |_| MS);
        assert!(free > 100 << 20, "{free}");
    }

    #[test]
    fn however_slow_requests_are_there_is_a_floor() {
        let mut pace = Pace::new();
        let mut at = 0;
        live(&mut pace, &mut at, 2, |_| MS);
        let worse = std::cell::Cell::new(2 * MS);
        let given = live(&mut pace, &mut at, 5, |_| {
            // Ever slower, so that no measure fits.
            worse.set(worse.get() + MS);
            worse.get()
        });
        assert!(given >= FLOOR / 2, "{given}");
        let given = live(&mut pace, &mut at, 5, |_| 900 * MS);
        assert!(given >= FLOOR / 2, "{given}");
    }

    #[test]
    fn a_load_that_is_slower_for_good_becomes_the_measure() {
        let mut pace = Pace::new();
        let mut at = 0;
        live(&mut pace, &mut at, 2, |_| MS);
        live(&mut pace, &mut at, 30, |_| 10 * MS);
        assert!(pace.rate > 100 << 20);
    }

    #[test]
    fn without_clients_there_is_no_limit() {
        let mut pace = Pace::new();
        let now = Time(5 * MS);
        for _ in 0..1000 {
            assert_eq!(pace.ready(0, 0, now), None);
            pace.gave(1 << 20, now);
        }
        assert!(pace.ready(1, 0, now).is_some());
        assert_eq!(pace.ready(0, 0, now), None);
    }
}
