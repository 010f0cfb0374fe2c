//! The proof that the checkers can see: bugs are planted in the core one at a time, and random lives must find each of
//! them within its number of seeds. The same seeds are clean without the bug.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use replicator::{Bug, plant};

use crate::lives::Tally;

/// Where the seeds begin.
const FROM: u64 = 1;

/// Within how many seeds a bug is found: about five times what it took on average when this was measured, over several
/// places to begin.
fn seeds(bug: Bug) -> u64 {
    match bug {
        Bug::CountOwnBeforeDurable
        | Bug::AckOnReceipt
        | Bug::CommitByCounting
        | Bug::CommitWithOneLess
        | Bug::ApplyUncommitted
        | Bug::FloorBeforeFlush
        | Bug::ZeroesFirst
        | Bug::GrantBeforeDurable
        | Bug::UncommittedRead
        | Bug::CommitWaitsForAll
        | Bug::ReadsWaitForAll
        | Bug::MapForgetsUnapplied
        | Bug::UnboundedApply
        | Bug::FloorNotKept
        | Bug::VerifyTrustsTable
        | Bug::TrimIsAHint => 20,
        Bug::OverlayBackwards
        | Bug::StaleEpochHeard
        | Bug::NoLeaseWait
        | Bug::SkipFetch
        | Bug::ConfigAckOnReceipt
        | Bug::WitnessToldEarly
        | Bug::AnswerPastLease
        | Bug::ScanTrustsPayload
        | Bug::BodyUnchecked
        | Bug::DrainBeforeApplied
        | Bug::HoldBeforeApplied
        | Bug::FeedsInStep
        | Bug::SumsUnchecked
        | Bug::SumsAfterFloor
        | Bug::DrainWithoutFlush => SAMPLE_SEEDS_MAX,
        Bug::TwoGrants
        | Bug::HoldForgetsParked
        | Bug::LargeWriteOvertakes
        | Bug::SameNumberSameRecord
        | Bug::UnverifiedFloor
        | Bug::LeakedRead
        | Bug::WindowIgnored
        | Bug::LaterEpochTaken
        | Bug::NumbersUnchecked
        | Bug::DroppedToldEarly
        | Bug::LeaseOfNewAlone
        | Bug::ForkServesEarly
        | Bug::TableForgotten
        | Bug::RoomAsItIs
        | Bug::InconsistentFed
        | Bug::SameIncarnation => 200,
        // These need a rare fault, or two at a time.
        Bug::ForkKeepsHistory
        | Bug::CutAcknowledged
        | Bug::AppliedBeforeKnown
        | Bug::RecycledTooEarly
        | Bug::LeaseFromReceipt
        | Bug::LoneSuperblock
        | Bug::PeerBatchTrusted
        | Bug::LoadTrusted
        | Bug::CapacityForgetsMemory
        | Bug::AckUnchecked
        | Bug::WindowFromJournal
        | Bug::RepairTrusted
        | Bug::GroupMissed
        | Bug::VerifyUnaligned
        | Bug::FencedIsPromised => 400,
        Bug::ResyncUncommitted => 700,
        Bug::RecordsUnchecked
        | Bug::ForgottenPromise
        | Bug::BlankGrantCounts
        | Bug::OldVotersForgotten
        | Bug::NewRuleTooEarly => 1200,
    }
}

/// A bug that needs more is in no sample.
const SAMPLE_SEEDS_MAX: u64 = 60;

/// Whether a bug is in the sample: those that are found fast, of every promise.
fn in_sample(bug: Bug) -> bool {
    seeds(bug) <= SAMPLE_SEEDS_MAX
}

/// Which bugs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Which<'a> {
    All,
    Sample,
    Named(&'a [String]),
}

/// How the search for a bug ended.
struct Found {
    bug: Bug,
    /// The seed, and what the checker said.
    by: Option<(u64, String)>,
    took: Duration,
}

/// What a proof came to.
pub(crate) struct Proof {
    pub(crate) seeds: u64,
    pub(crate) sum: Tally,
    /// Seeds that fail without a bug, and bugs that were not found.
    pub(crate) failures: Vec<String>,
}

/// Plants bugs and looks for them with `attempt`, which runs the life of a seed.
pub(crate) fn prove(
    which: Which<'_>,
    from: Option<u64>,
    limit: Option<u64>,
    threads: usize,
    attempt: fn(u64, bool) -> Result<Tally, String>,
) -> Proof {
    let from = from.unwrap_or(FROM);
    let bugs: Vec<Bug> = Bug::ALL
        .iter()
        .copied()
        .filter(|&bug| match which {
            Which::All => true,
            Which::Sample => in_sample(bug),
            Which::Named(names) => names.iter().any(|n| n == bug.name()),
        })
        .collect();
    let mut proof = Proof {
        seeds: 0,
        sum: Tally::default(),
        failures: Vec::new(),
    };
    let known = |name: &String| Bug::ALL.iter().any(|b| b.name() == name);
    if let Which::Named(names) = which
        && let Some(name) = names.iter().find(|n| !known(n))
    {
        let all: Vec<_> = Bug::ALL.iter().map(|b| b.name()).collect();
        let text = format!("there is no bug {name}; there are {}", all.join(", "));
        proof.failures.push(text);
        return proof;
    }
    println!(
        "{:<24} {:>7} {:>6} {:>6} {:>6}  what the checker said",
        "bug", "promise", "seeds", "bound", "s"
    );
    let clean = Mutex::new(BTreeMap::new());
    let is_clean = |seed| {
        let known = lock(&clean).get(&seed).map(Result::is_ok);
        known.unwrap_or_else(|| {
            let result = attempt(seed, false);
            let passes = result.is_ok();
            lock(&clean).insert(seed, result);
            passes
        })
    };
    let found = in_parallel(threads, &bugs, |&bug| {
        let begun = Instant::now();
        let bound = limit.unwrap_or_else(|| seeds(bug));
        let by = (from..from + bound).find_map(|seed| {
            plant(Some(bug));
            let result = attempt(seed, false);
            plant(None);
            // It is the bug that was found if the seed is clean without it.
            Some((seed, result.err().filter(|_| is_clean(seed))?))
        });
        let found = Found {
            bug,
            by,
            took: begun.elapsed(),
        };
        tell(&found, from, bound);
        found
    });
    for found in &found {
        let bound = limit.unwrap_or_else(|| seeds(found.bug));
        match &found.by {
            Some((seed, _)) => proof.seeds += seed - from + 1,
            None => {
                proof.seeds += bound;
                let name = found.bug.name();
                let text = format!("{name} was not found by the {bound} seeds from {from} on");
                proof.failures.push(text);
            }
        }
    }
    let clean = clean.into_inner().unwrap_or_else(PoisonError::into_inner);
    let lives = clean.len();
    for (seed, result) in clean {
        proof.seeds += 1;
        match result {
            Ok(tally) => proof.sum += tally,
            Err(why) => {
                let text = format!("seed {seed} fails without a bug: {why}");
                proof.failures.push(text);
            }
        }
    }
    println!(
        "{} of {} bugs found; the {lives} seeds that fail with one were run without it too",
        found.iter().filter(|f| f.by.is_some()).count(),
        found.len(),
    );
    proof
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn tell(found: &Found, from: u64, bound: u64) {
    let (after, said) = match &found.by {
        Some((seed, why)) => ((seed - from + 1).to_string(), why.as_str()),
        None => ("-".into(), "NOT FOUND"),
    };
    let said: String = said
        .lines()
        .next()
        .unwrap_or("")
        .chars()
        .take(110)
        .collect();
    println!(
        "{:<24} {:>7} {after:>6} {bound:>6} {:>6.1}  {said}",
        found.bug.name(),
        format!("P{}", found.bug.promise()),
        found.took.as_secs_f64(),
    );
}

/// Does something with each of several things, on some threads.
fn in_parallel<T: Sync, R: Send>(
    threads: usize,
    things: &[T],
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(thing) = things.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = work(thing);
                    lock(&results).push(result);
                }
            });
        }
    });
    results.into_inner().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_promise_has_two_bugs_and_one_in_the_sample() {
        for promise in 1..=10 {
            let of = || Bug::ALL.iter().filter(move |b| b.promise() == promise);
            assert!(of().count() >= 2, "P{promise}");
            assert!(of().any(|&b| in_sample(b)), "P{promise}");
        }
    }
}
