//! The command: seeds in parallel for a time or a count, or one seed with its story.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;

use crate::attack::ATTACKS;
use crate::lives::{Tally, live};

/// Every so many seeds one is run twice, and what it did is compared.
const TWICE: u64 = 16;

/// Runs whole clusters of the replication core in virtual time and attacks every promise. The last line is JSON.
#[derive(Parser, Debug)]
#[command(name = "cargo sim --", version)]
struct Args {
    /// Run seeds for so many seconds
    #[arg(long, value_name = "S", conflicts_with_all = ["seeds", "seed"])]
    seconds: Option<u64>,
    /// Run so many seeds
    #[arg(long, value_name = "N", conflicts_with = "seed")]
    seeds: Option<u64>,
    /// The first seed (else one that nobody has chosen)
    #[arg(long, value_name = "X")]
    from: Option<u64>,
    /// Run this seed, twice, and compare
    #[arg(long, value_name = "X")]
    seed: Option<u64>,
    /// Tell what happens in it
    #[arg(long, requires = "seed")]
    trace: bool,
    /// How many at the same time (else one per core)
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Plant each bug of the table in the core, or only these, and see that it is found
    #[cfg(feature = "planted")]
    #[arg(long, value_name = "BUG", num_args = 0.., conflicts_with_all = ["seconds", "seed"])]
    planted: Option<Vec<String>>,
    /// Plant those bugs that are found fast
    #[cfg(feature = "planted")]
    #[arg(long, conflicts_with_all = ["seconds", "seed", "planted"])]
    planted_sample: bool,
}

impl Args {
    fn threads(&self) -> usize {
        self.threads
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
    }
}

/// What all lives came to, and those that failed.
#[derive(Default)]
struct Totals {
    seeds: u64,
    sum: Tally,
    failures: Vec<String>,
}

#[derive(serde::Serialize)]
struct Summary {
    seeds: u64,
    operations: u64,
    faults: u64,
    failures: u64,
    promotions: u64,
    writes_acknowledged: u64,
    reads_checked: u64,
    seeds_per_second: f64,
    virtual_seconds: u64,
}

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    let args = Args::parse();
    let started = Instant::now();
    let totals = proof(&args).unwrap_or_else(|| match args.seed {
        Some(seed) => one(seed, args.trace),
        None => many(&args, started),
    });
    let seconds = started.elapsed().as_secs_f64();
    let sum = totals.sum;
    let summary = Summary {
        seeds: totals.seeds,
        operations: sum.operations,
        faults: sum.faults.iter().sum(),
        failures: totals.failures.len() as u64,
        promotions: sum.promotions,
        writes_acknowledged: sum.writes,
        reads_checked: sum.reads,
        seeds_per_second: (totals.seeds as f64 / seconds * 10.0).round() / 10.0,
        virtual_seconds: sum.time_ns / 1_000_000_000,
    };
    for failure in &totals.failures {
        println!("{failure}");
    }
    let kinds = ATTACKS.iter().zip(sum.faults).filter(|(_, n)| *n > 0);
    let kinds: Vec<_> = kinds.map(|(a, n)| format!("{} {n}", a.name)).collect();
    println!("faults: {}", kinds.join(", "));
    println!(
        "{} resyncs in {} lives, {} of them in place; lives that ended early: {} since more was lost than anything can keep, {} since a majority went on alone or was wiped",
        sum.resyncs, sum.resync_lives, sum.in_place, sum.beyond, sum.stuck
    );
    println!(
        "{} verifications came to their end, {} found everything in order",
        sum.verified, sum.clean
    );
    println!(
        "{} seeds in {seconds:.1} s ({:.1} a second): {} faults, {} promotions, {} operations of clients, {} writes acknowledged and checked, {} reads checked, {} failures",
        summary.seeds,
        summary.seeds_per_second,
        summary.faults,
        summary.promotions,
        summary.operations,
        summary.writes_acknowledged,
        summary.reads_checked,
        summary.failures,
    );
    println!("{}", serde_json::to_string(&summary).unwrap_or_default());
    if totals.failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn commit() -> String {
    let git = Command::new("git")
        .args(["describe", "--always", "--dirty"])
        .output();
    match git {
        Ok(out) if out.status.success() => String::from_utf8_lossy(&out.stdout).trim().to_owned(),
        _ => "unknown".into(),
    }
}

fn failure(seed: u64, why: &str) -> String {
    let commit = commit();
    format!(
        "seed {seed} failed: {why}\n  on commit {commit}; again, with its story: cargo sim -- --seed {seed} --trace"
    )
}

/// Runs a life; what it came to, or what went wrong.
fn attempt(seed: u64, trace: bool) -> Result<Tally, String> {
    catch_unwind(AssertUnwindSafe(|| live(seed, trace))).map_err(|panic| {
        panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
            .unwrap_or_else(|| "it panicked without a word".into())
    })
}

#[cfg(not(feature = "planted"))]
fn proof(_: &Args) -> Option<Totals> {
    None
}

/// The proof that planted bugs are found, if that is wanted.
#[cfg(feature = "planted")]
fn proof(args: &Args) -> Option<Totals> {
    use crate::proof::{Which, prove};
    let which = match &args.planted {
        Some(names) if names.is_empty() => Which::All,
        Some(names) => Which::Named(names),
        None if args.planted_sample => Which::Sample,
        None => return None,
    };
    std::panic::set_hook(Box::new(|_| {}));
    let proof = prove(which, args.from, args.seeds, args.threads(), attempt);
    Some(Totals {
        seeds: proof.seeds,
        sum: proof.sum,
        failures: proof.failures,
    })
}

fn twice(seed: u64, first: &Tally) -> Result<(), String> {
    let second = attempt(seed, false)?;
    if second == *first {
        Ok(())
    } else {
        Err(format!(
            "not the same when run twice: {first:?}, then {second:?}"
        ))
    }
}

fn one(seed: u64, trace: bool) -> Totals {
    let mut totals = Totals {
        seeds: 1,
        ..Totals::default()
    };
    match attempt(seed, trace).and_then(|tally| twice(seed, &tally).map(|()| tally)) {
        Ok(tally) => {
            println!("seed {seed}: {tally:?}");
            totals.sum = tally;
        }
        Err(why) => totals.failures.push(failure(seed, &why)),
    }
    totals
}

fn many(args: &Args, started: Instant) -> Totals {
    // What fails is told once, with its seed; it need not be told by every thread.
    std::panic::set_hook(Box::new(|_| {}));
    let from = args.from.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(0, |d| d.as_secs() * 1_000_000)
    });
    let count = args.seeds.unwrap_or(if args.seconds.is_some() {
        u64::MAX
    } else {
        1000
    });
    let limit = args.seconds.map(Duration::from_secs);
    let threads = args.threads();
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let totals = Mutex::new(Totals::default());
    println!("seeds from {from} on, {threads} at a time");
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count
                        || stop.load(Ordering::Relaxed)
                        || limit.is_some_and(|l| started.elapsed() >= l)
                    {
                        return;
                    }
                    let seed = from.wrapping_add(index);
                    let result = attempt(seed, false).and_then(|tally| {
                        if index.is_multiple_of(TWICE) {
                            twice(seed, &tally)?;
                        }
                        Ok(tally)
                    });
                    let mut totals = totals
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner);
                    totals.seeds += 1;
                    match result {
                        Ok(tally) => totals.sum += tally,
                        Err(why) => {
                            println!("seed {seed} failed");
                            totals.failures.push(failure(seed, &why));
                            if totals.failures.len() >= 100 {
                                stop.store(true, Ordering::Relaxed);
                            }
                        }
                    }
                }
            });
        }
    });
    totals
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
