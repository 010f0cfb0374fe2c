//! `replctl demo`: the main job, shown in a minute on one machine.
//!
//! Three nodes on loopback serve a small PBX: database commits, recordings, a log, prompts. The Primary is
//! killed in mid-load, another node takes over, and every byte that was acknowledged is read there and
//! compared. Then the killed node comes back and catches up, and at the end the stores of all three are
//! compared byte for byte. The modules are the toolbox of the tests with real processes as well.
//!
//! | module | what it knows |
//! |---|---|
//! | [`cluster`] | real nodes: create, start, kill, freeze, ask, promote |
//! | [`workload`] | streams of requests like a PBX's |
//! | [`oracle`] | which bytes are legal where |
//! | [`verify`] | comparing what is read through a node |
//! | [`stores`] | comparing the nodes' stores |
//! | [`report`] | what is printed |

pub mod cluster;
pub mod connection;
mod error;
pub mod oracle;
mod place;
mod process;
pub mod report;
mod spec;
mod status;
pub mod stores;
pub mod verify;
pub mod workload;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::Failure;
use cluster::{Cluster, ClusterError, Programs, Spec};
use nbd_server::nbd::client::ClientError;
pub use place::{probe_direct_io, scratch_dir};
pub use process::{Finished, finish};
use report::{Kept, Progress, Report};
use verify::{VerifyError, verify};
use workload::{End, Job, Pace, Running, Stream, Tally, Volume};

/// The options of `replctl demo`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct DemoArgs {
    /// Work in a new directory below this one; it has to support O_DIRECT
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Leave the cluster running at the end and say how to use it
    #[arg(long)]
    pub keep: bool,
    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Why the demo could not be finished.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DemoError {
    /// The cluster did not do what it was told.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// An export could not be used.
    #[error(transparent)]
    Connection(#[from] ClientError),
    /// Data could not be read back.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// A stream of requests ended while the Primary was well.
    #[error("while {phase}, a client was let down: {end:?}")]
    LetDown {
        /// What was going on.
        phase: &'static str,
        /// How the stream ended.
        end: End,
    },
    /// Signals can not be handled.
    #[error("can not handle signals: {0}")]
    Signals(std::io::Error),
    /// The path of this program is unknown, so its neighbours are too.
    #[error("can not tell where this program is: {0}")]
    Whereabouts(std::io::Error),
}

/// The load before the kill; the kill comes at a random moment of its last second.
const LOAD_BEFORE_KILL: Duration = Duration::from_secs(3);
/// The load on the new Primary before the killed node is started again, and after it caught up.
const LOAD_AFTER_FAILOVER: Duration = Duration::from_secs(1);
/// For everything that takes a second or two on a good day.
const BOUND: Duration = Duration::from_secs(60);

const MIB: u64 = 1 << 20;

/// Runs the demo and prints what it saw. It fails unless nothing was lost and all stores are equal.
pub fn run(args: DemoArgs) -> Result<(), Failure> {
    let report = try_run(&args).map_err(|error| Failure::Failed(error.to_string()))?;
    if args.json {
        let text = serde_json::to_string(&report);
        println!(
            "{}",
            text.map_err(|error| Failure::Failed(error.to_string()))?
        );
    } else {
        println!("\n{report}");
    }
    if report.ok {
        return Ok(());
    }
    Err(Failure::Failed(
        "the demo found what must not be; its findings are above".into(),
    ))
}

fn try_run(args: &DemoArgs) -> Result<Report, DemoError> {
    let progress = Progress::start();
    let interrupted = watch_signals()?;
    let exe = std::env::current_exe().map_err(DemoError::Whereabouts)?;
    let programs = Programs::in_dir(exe.parent().unwrap_or(Path::new(".")))?;
    let mut dir = scratch_dir(args.dir.as_deref())?;
    if args.keep {
        dir.disable_cleanup(true);
    }
    progress.say(format_args!("three nodes in {}", dir.path().display()));
    let mut cluster = Cluster::new(dir.path(), programs, Spec::default(), interrupted)?;
    let mut demo = Demo::new(&cluster, progress);
    let result = demo.show(&mut cluster).and_then(|()| {
        if args.keep {
            demo.report.kept = Some(demo.keep(&mut cluster)?);
        }
        Ok(())
    });
    demo.report.conclude(progress.seconds());
    if args.keep && cluster.pid(0).is_some() {
        cluster.leave_running();
    } else if result.is_err() || !demo.report.ok {
        eprintln!("{}", cluster.logs());
    }
    result.map(|()| demo.report)
}

/// Turns Ctrl-C, SIGTERM and SIGHUP into a flag that every wait looks at.
///
/// # Errors
/// The signals can not be handled.
pub fn watch_signals() -> Result<Arc<AtomicBool>, DemoError> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))
            .map_err(DemoError::Signals)?;
    }
    Ok(interrupted)
}

/// The run and what it found so far.
struct Demo {
    progress: Progress,
    report: Report,
    tally: Arc<Tally>,
    volumes: Vec<Arc<Volume>>,
}

impl Demo {
    fn new(cluster: &Cluster, progress: Progress) -> Self {
        let volumes = cluster
            .volumes()
            .iter()
            .map(|(name, size)| Volume::new(name, *size));
        Self {
            progress,
            report: Report::default(),
            tally: Arc::default(),
            volumes: volumes.collect(),
        }
    }

    fn show(&mut self, cluster: &mut Cluster) -> Result<(), DemoError> {
        let (first, second) = (0, 1);
        cluster.create_and_start()?;
        self.say("all nodes answer");
        cluster.promote(first, BOUND)?;
        self.say(format_args!("{} is Primary", cluster.name(first)));

        let mut streams = pbx(&self.volumes);
        let mut prompts = prompts(&self.volumes[1]);
        prompts.fill(&cluster.nbd_socket(first), &self.tally)?;
        streams.push(prompts);
        self.say("prompts are loaded; the PBX works: commits, recordings, a log, prompts");
        let load = Running::start(streams, &cluster.nbd_socket(first), &self.tally)?;
        let random = getrandom::u32().map_err(|_| ClusterError::NoRandomness)?;
        let until_kill = LOAD_BEFORE_KILL + Duration::from_millis(u64::from(random % 1000));
        let load = self.watch(cluster, load, until_kill)?;

        let (mut streams, killed_at) = self.kill(cluster, first, load)?;
        self.take_over(cluster, second, &mut streams[0], killed_at)?;

        let wrong = verify(&cluster.nbd_socket(second), &self.volumes, &self.tally)?;
        self.say(format_args!(
            "every acknowledged byte was read through {}: {wrong} wrong ranges",
            cluster.name(second)
        ));

        let load = Running::start(streams, &cluster.nbd_socket(second), &self.tally)?;
        let load = self.watch(cluster, load, LOAD_AFTER_FAILOVER)?;
        self.bring_back(cluster, first, second)?;
        let load = self.watch(cluster, load, LOAD_AFTER_FAILOVER)?;
        let (_, ends) = load.stop(BOUND);
        expect_stopped("the load was stopped", ends)?;

        self.stop_and_compare(cluster, second)
    }

    /// Lets the load run for a while; says once a second how it goes.
    fn watch(
        &self,
        cluster: &mut Cluster,
        load: Running,
        time: Duration,
    ) -> Result<Running, DemoError> {
        let end = Instant::now() + time;
        let mut said = Instant::now();
        cluster.wait("the load runs", time + BOUND, |_| {
            if said.elapsed() > Duration::from_secs(1) {
                said = Instant::now();
                self.say(format_args!(
                    "{} writes acknowledged, {} MiB; {} reads",
                    self.tally.writes(),
                    self.tally.write_bytes() / MIB,
                    self.tally.reads()
                ));
            }
            let over = Instant::now() >= end || load.any_ended();
            Ok(if over {
                Ok(())
            } else {
                Err("the time is not over".into())
            })
        })?;
        if load.any_ended() {
            let (_, ends) = load.stop(BOUND);
            expect_stopped("the Primary was up", ends)?;
            return Err(connection::lost("a client stopped by itself").into());
        }
        Ok(load)
    }

    fn kill(
        &mut self,
        cluster: &mut Cluster,
        node: usize,
        load: Running,
    ) -> Result<(Vec<Stream>, Instant), DemoError> {
        let killed_at = Instant::now();
        cluster.kill(node)?;
        let (streams, ends) = load.collect(BOUND);
        for end in ends {
            match end {
                End::Lost { unanswered, .. } => self.report.unanswered_at_kill += unanswered as u64,
                End::Stopped => {}
                end => {
                    return Err(DemoError::LetDown {
                        phase: "the Primary was killed",
                        end,
                    });
                }
            }
        }
        self.report.killed = cluster.name(node).into();
        self.report.acknowledged_before_kill = self.tally.writes();
        self.say(format_args!(
            "kill -9 of {}: {} writes acknowledged so far, {} requests unanswered",
            self.report.killed,
            self.report.acknowledged_before_kill,
            self.report.unanswered_at_kill
        ));
        Ok((streams, killed_at))
    }

    fn take_over(
        &mut self,
        cluster: &Cluster,
        node: usize,
        writer: &mut Stream,
        killed_at: Instant,
    ) -> Result<(), DemoError> {
        cluster.promote(node, BOUND)?;
        writer.write_once(&cluster.nbd_socket(node), &self.tally)?;
        let (mut reader, _) = connection::open(&cluster.nbd_socket(node), &self.volumes[0].name)?;
        let mut data = vec![0; 4096];
        reader.read_at(0, &mut data)?;
        self.report.failover_ms = killed_at.elapsed().as_secs_f64() * 1e3;
        reader.disconnect()?;
        let losses = self.volumes[0].oracle().settle(0, &data);
        self.tally
            .note_checked(&self.volumes[0].name, data.len() as u64, losses);
        self.report.promoted = cluster.name(node).into();
        self.say(format_args!(
            "{} serves, {:.0} ms after the kill",
            self.report.promoted, self.report.failover_ms
        ));
        Ok(())
    }

    /// Starts the killed node; waits until it has what had been committed before, and is UpToDate.
    fn bring_back(
        &mut self,
        cluster: &mut Cluster,
        node: usize,
        primary: usize,
    ) -> Result<(), DemoError> {
        let committed = cluster.status(primary)?.seq.committed;
        let started_at = Instant::now();
        cluster.spawn(node)?;
        let name = cluster.name(node).to_owned();
        cluster.wait("the killed node catches up", BOUND, |cluster| {
            cluster.ensure_running(node)?;
            let status = cluster.status(primary)?;
            let caught_up = status
                .peer(&name)
                .is_some_and(|peer| peer.up_to_date() && peer.durable_seq >= committed);
            Ok(if caught_up {
                Ok(())
            } else {
                Err(format!("{:?}", status.peer(&name)))
            })
        })?;
        self.report.catch_up_ms = started_at.elapsed().as_secs_f64() * 1e3;
        self.say(format_args!(
            "{name} is back and UpToDate, {:.0} ms after its start",
            self.report.catch_up_ms
        ));
        Ok(())
    }

    fn stop_and_compare(&mut self, cluster: &mut Cluster, primary: usize) -> Result<(), DemoError> {
        stop_cleanly(cluster, primary)?;
        self.say("all nodes stopped; comparing their stores");
        let findings = stores::compare(cluster, &self.volumes, &self.tally)?;
        self.report.stores_identical = findings.is_empty();
        for finding in findings {
            self.report.note(finding);
        }
        self.report.note_losses(&self.tally.losses());
        self.report.acknowledged_writes = self.tally.writes();
        self.report.acknowledged_bytes = self.tally.write_bytes();
        self.report.verified_bytes = self.tally.read_bytes();
        Ok(())
    }

    /// Starts everything again, for the user to play with.
    fn keep(&self, cluster: &mut Cluster) -> Result<Kept, DemoError> {
        cluster.start_all()?;
        cluster.promote(0, BOUND)?;
        let status = cluster.status(0)?;
        Ok(Kept {
            config: cluster.config().display().to_string(),
            replctl: cluster.programs().replctl.display().to_string(),
            primary: cluster.name(0).into(),
            secondaries: (1..cluster.len())
                .map(|node| cluster.name(node).into())
                .collect(),
            uris: status
                .volumes
                .into_iter()
                .filter_map(|volume| volume.uri)
                .collect(),
            pids: (0..cluster.len())
                .filter_map(|node| cluster.pid(node))
                .collect(),
            dir: cluster.dir().display().to_string(),
        })
    }

    fn say(&self, line: impl std::fmt::Display) {
        self.progress.say(line);
    }
}

/// Demotes the Primary, waits until every node has everything, and stops all nodes.
pub fn stop_cleanly(cluster: &mut Cluster, primary: usize) -> Result<(), ClusterError> {
    let all = cluster.len();
    cluster.wait(
        "no client is attached and no peer is behind",
        BOUND,
        |cluster| {
            let status = cluster.status(primary)?;
            let quiet = status
                .volumes
                .iter()
                .all(|volume| volume.nbd_clients == Some(0))
                && status
                    .peers
                    .iter()
                    .filter(|peer| peer.role.as_deref() != Some("Witness"))
                    .all(|peer| peer.up_to_date() && peer.behind_bytes == Some(0));
            Ok(if quiet {
                Ok(())
            } else {
                Err(format!("{status:?}"))
            })
        },
    )?;
    cluster.expect_done(primary, &["demote"])?;
    let committed = cluster.status(primary)?.seq.committed;
    for node in (0..all)
        .filter(|n| !cluster.is_witness(*n))
        .collect::<Vec<_>>()
    {
        cluster.wait_status(
            node,
            "every node knows what is committed",
            BOUND,
            |status| status.seq.committed >= committed,
        )?;
    }
    cluster.terminate_all()
}

/// The streams of a small PBX, without its prompts.
fn pbx(volumes: &[Arc<Volume>]) -> Vec<Stream> {
    let (db, recordings) = (&volumes[0], &volumes[1]);
    let paced = |depth, burst, ms| Pace {
        depth,
        burst,
        every: Duration::from_millis(ms),
    };
    let commit = Job::Commit { page: 8192 };
    let record = Job::Append {
        least: 64 << 10,
        most: 256 << 10,
        flush_every: 8,
    };
    let log = Job::Append {
        least: 100,
        most: 300,
        flush_every: 64,
    };
    let mut streams = vec![
        Stream::new(1, db, 0..64 * MIB, commit, paced(8, 8, 10)),
        Stream::new(2, db, 0..64 * MIB, commit, paced(8, 8, 10)),
        Stream::new(3, recordings, 240 * MIB..256 * MIB, log, paced(4, 4, 10)),
    ];
    for call in 0..4 {
        let start = (16 + u64::from(call) * 56) * MIB;
        let region = start..start + 56 * MIB;
        streams.push(Stream::new(
            10 + call,
            recordings,
            region,
            record,
            paced(2, 2, 100),
        ));
    }
    streams
}

fn prompts(recordings: &Arc<Volume>) -> Stream {
    let read = Job::Read {
        least: 512,
        most: 64 << 10,
    };
    let pace = Pace {
        depth: 4,
        burst: 4,
        every: Duration::from_millis(10),
    };
    Stream::new(4, recordings, 0..8 * MIB, read, pace)
}

fn expect_stopped(phase: &'static str, ends: Vec<End>) -> Result<(), DemoError> {
    match ends.into_iter().find(|end| !matches!(end, End::Stopped)) {
        None => Ok(()),
        Some(end) => Err(DemoError::LetDown { phase, end }),
    }
}
