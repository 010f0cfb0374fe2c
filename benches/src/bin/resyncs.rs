//! `cargo resyncs`: what a resync costs the clients, and what the clients leave of it.
//!
//! Three nodes on loopback. The third one is away while much more is written than the journals hold, and comes back: first with nobody
//! else there, then beside clients that commit as fast as they can. Their latencies in the seconds before are compared with those of the
//! time that the resync takes, in the same run.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use benches::error::BenchError;
use benches::results::median;
use clap::Parser;
use nbd_server::nbd::client::{Client, ClientError, Options as ClientOptions, Uri};
use tools::cluster::{Cluster, Spec};
use tools::demo::{scratch_dir, watch_signals};

/// Whatever is not done by then is not going to be.
const BOUND: Duration = Duration::from_secs(300);
/// The node that is away.
const AWAY: usize = 2;
const MIB: u64 = 1 << 20;
/// What clients commit.
const COMMIT_BYTES: u64 = 4096;

/// Measures what a resync costs the clients, and what the clients leave of it.
#[derive(Debug, Parser)]
#[command(name = "cargo resyncs --", version)]
struct Options {
    /// How often the node is away
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// How much is written meanwhile, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = clap::value_parser!(u64).range(64..=65_536))]
    mib: u64,
    /// How many clients there are
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    clients: u32,
    /// How long clients are looked at before, in seconds
    #[arg(long, value_name = "SECS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
}

/// A durable write: when it was answered, and how long that took.
type Commit = (Instant, Duration);

/// What clients saw in a stretch of time.
#[derive(Clone, Copy)]
struct Seen {
    per_second: f64,
    median_ms: f64,
    p99_ms: f64,
}

impl Seen {
    fn between(from: Instant, to: Instant, commits: &[Commit]) -> Self {
        let within = commits.iter().filter(|(at, _)| *at >= from && *at < to);
        let mut took: Vec<f64> = within.map(|(_, t)| t.as_secs_f64() * 1000.0).collect();
        took.sort_by(f64::total_cmp);
        let quantile = |q: f64| {
            let at = (took.len() as f64 * q) as usize;
            took.get(at.min(took.len().saturating_sub(1)))
        };
        Self {
            per_second: took.len() as f64 / (to - from).as_secs_f64(),
            median_ms: quantile(0.5).copied().unwrap_or(f64::NAN),
            p99_ms: quantile(0.99).copied().unwrap_or(f64::NAN),
        }
    }
}

/// One stay away, without clients and with.
struct Round {
    alone_per_second: f64,
    beside_per_second: f64,
    before: Seen,
    meanwhile: Seen,
}

fn connect(socket: PathBuf) -> Result<Client, ClientError> {
    let options = ClientOptions {
        idle_timeout: Some(BOUND),
        ..ClientOptions::default()
    };
    Client::connect_with(&Uri::unix("data", socket), &options)
}

fn client_error(error: &ClientError) -> BenchError {
    BenchError::NotReady("repld", error.to_string())
}

/// Clients that commit one write after the other, at places all over the volume, until they are told to end.
struct Clients {
    ends: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<Vec<Commit>, ClientError>>>,
}

impl Clients {
    fn start(count: u32, socket: &std::path::Path, bytes: u64) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let threads = (0..u64::from(count)).map(|n| {
            let (ends, socket) = (Arc::clone(&ends), socket.to_owned());
            std::thread::spawn(move || {
                let mut client = connect(socket)?;
                let mut commits = Vec::new();
                let data = [n as u8; COMMIT_BYTES as usize];
                // Weyl's sequence: it visits all places, and none twice for long.
                let mut at = n;
                while !ends.load(Ordering::Relaxed) {
                    at = at.wrapping_add(0x9e37_79b9_7f4a_7c15);
                    let offset = (at >> 20) % (bytes / COMMIT_BYTES) * COMMIT_BYTES;
                    let began = Instant::now();
                    client.write_at(offset, &data, true)?;
                    let ended = Instant::now();
                    commits.push((ended, ended - began));
                }
                client.disconnect()?;
                Ok(commits)
            })
        });
        Self {
            threads: threads.collect(),
            ends,
        }
    }

    fn end(self) -> Result<Vec<Commit>, BenchError> {
        self.ends.store(true, Ordering::Relaxed);
        let mut commits = Vec::new();
        for thread in self.threads {
            let ended = thread.join().map_err(|_| BenchError::Interrupted)?;
            commits.extend(ended.map_err(|error| client_error(&error))?);
        }
        Ok(commits)
    }
}

/// The node is killed, and so much is written without it.
fn leave(cluster: &mut Cluster, mib: u64, fill: u8) -> Result<(), BenchError> {
    cluster.kill(AWAY)?;
    let write = || {
        let mut client = connect(cluster.nbd_socket(0))?;
        let data = vec![fill; MIB as usize];
        for n in 0..mib {
            client.write_at(n * MIB, &data, false)?;
        }
        client.flush()?;
        client.disconnect()
    };
    write().map(drop).map_err(|error| client_error(&error))
}

/// The node is started; how long until it has everything.
fn come_back(cluster: &mut Cluster) -> Result<Duration, BenchError> {
    let began = Instant::now();
    cluster.start(AWAY)?;
    let name = cluster.name(AWAY).to_owned();
    cluster.wait_status(0, "the node has everything", BOUND, |status| {
        status.peer(&name).is_some_and(|p| p.up_to_date())
    })?;
    Ok(began.elapsed())
}

fn round(cluster: &mut Cluster, options: &Options, number: u32) -> Result<Round, BenchError> {
    let fill = |n: u32| ((number * 2 + n) % 255 + 1) as u8;
    let mib = options.mib as f64;
    leave(cluster, options.mib, fill(0))?;
    let alone = come_back(cluster)?;
    leave(cluster, options.mib, fill(1))?;
    let socket = cluster.nbd_socket(0);
    let clients = Clients::start(options.clients, &socket, options.mib * MIB);
    let began = Instant::now();
    std::thread::sleep(Duration::from_secs(options.seconds));
    let back = Instant::now();
    let beside = come_back(cluster);
    let whole = Instant::now();
    let commits = clients.end()?;
    Ok(Round {
        alone_per_second: mib / alone.as_secs_f64(),
        beside_per_second: mib / beside?.as_secs_f64(),
        before: Seen::between(began, back, &commits),
        meanwhile: Seen::between(back, whole, &commits),
    })
}

fn main() -> ExitCode {
    match measure(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("resyncs: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options) -> Result<(), BenchError> {
    let interrupted = watch_signals()?;
    let programs = integration::build_programs()?;
    let dir = scratch_dir(None)?;
    let spec = Spec {
        volumes: vec![("data".to_owned(), options.mib * MIB)],
        // Past it at once, whatever is written.
        journal_bytes: 32 * MIB,
        ..Spec::default()
    };
    let mut cluster = Cluster::new(dir.path(), programs, spec, interrupted)?;
    cluster.create_and_start()?;
    cluster.promote(0, BOUND)?;
    let rounds: Result<Vec<_>, _> = (0..options.rounds)
        .map(|n| round(&mut cluster, options, n))
        .collect();
    let rounds = rounds?;
    let middle =
        |of: &dyn Fn(&Round) -> f64| median(rounds.iter().map(of).collect()).unwrap_or(f64::NAN);
    let (alone, beside) = (
        middle(&|r| r.alone_per_second),
        middle(&|r| r.beside_per_second),
    );
    println!("| {} MiB, {} times | MiB/s |", options.mib, options.rounds);
    println!("|---|--:|");
    println!("| nobody else there | {alone:.0} |");
    println!(
        "| beside {} clients that commit | {beside:.0} |",
        options.clients
    );
    println!();
    println!("| the clients | before | meanwhile | ratio, in the median |");
    println!("|---|--:|--:|--:|");
    let row = |what: &str, of: fn(&Seen) -> f64| {
        let before = middle(&|r| of(&r.before));
        let meanwhile = middle(&|r| of(&r.meanwhile));
        let ratio = middle(&|r| of(&r.meanwhile) / of(&r.before));
        println!("| {what} | {before:.2} | {meanwhile:.2} | {ratio:.2} |");
    };
    row("commits per second", |s| s.per_second);
    row("median, ms", |s| s.median_ms);
    row("99th percentile, ms", |s| s.p99_ms);
    Ok(())
}
