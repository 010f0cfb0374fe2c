//! The proof that the checkers can see: bugs are planted in the core one at a time, and random lives must find each of
//! them within its number of seeds. The same seeds are clean without the bug.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use replicator::{Bug, plant};

use crate::lives::Tally;

/// Where the seeds begin.
const FROM: u64 = 1;

/// Within how many seeds a bug is found: about five times what it takes on average.
fn seeds(bug: Bug) -> u64 {
    match bug {
        _ => 40,
    }
}

/// Whether a bug is in the sample: those that are found fast, of every promise.
fn in_sample(bug: Bug) -> bool {
    seeds(bug) <= 10
}

/// Which bugs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Which<'a> {
    All,
    Sample,
    One(&'a str),
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
            Which::One(name) => bug.name() == name,
        })
        .collect();
    let mut proof = Proof {
        seeds: 0,
        sum: Tally::default(),
        failures: Vec::new(),
    };
    if bugs.is_empty() {
        let names: Vec<_> = Bug::ALL.iter().map(|b| b.name()).collect();
        let text = format!("there is no such bug; there are {}", names.join(", "));
        proof.failures.push(text);
        return proof;
    }
    println!(
        "{:<24} {:>7} {:>6} {:>6} {:>6}  what the checker said",
        "bug", "promise", "seeds", "bound", "s"
    );
    let found = in_parallel(threads, &bugs, |&bug| {
        let begun = Instant::now();
        let bound = limit.unwrap_or_else(|| seeds(bug));
        plant(Some(bug));
        let by = (from..from + bound).find_map(|seed| Some((seed, attempt(seed, false).err()?)));
        plant(None);
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
    let finders: BTreeSet<u64> = found
        .iter()
        .filter_map(|f| Some(f.by.as_ref()?.0))
        .collect();
    let finders: Vec<u64> = finders.into_iter().collect();
    let clean = in_parallel(threads, &finders, |&seed| (seed, attempt(seed, false)));
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
        "{} of {} bugs found; the {} seeds that found them were run without a bug too",
        found.iter().filter(|f| f.by.is_some()).count(),
        found.len(),
        finders.len()
    );
    proof
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
                    let mut results = results
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner);
                    results.push(result);
                }
            });
        }
    });
    results
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
