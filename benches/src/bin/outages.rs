//! `cargo outages`: how long clients wait when the Primary is lost and no cluster manager is there.
//!
//! Three nodes on loopback, time after time: the Primary is killed or frozen, somebody sees to it that another node is promoted, and the
//! clock stops when that one has answered a durable write. What can not be avoided is the lease.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use benches::error::{BenchError, io_error};
use benches::results::median;
use clap::Parser;
use nbd_server::nbd::client::{Client, Options as ClientOptions, Uri};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tools::cluster::{Cluster, Spec};
use tools::demo::{scratch_dir, watch_signals};

/// Whatever is not done by then is not going to be.
const BOUND: Duration = Duration::from_secs(60);

/// Times outages without a cluster manager: from the loss of the Primary to a durable write that another node has answered.
#[derive(Debug, Parser)]
#[command(name = "cargo outages --", version)]
struct Options {
    /// How often each way loses its Primary in each manner
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// The lease, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(200..=60_000))]
    lease_ms: u32,
}

/// Who sees to it that another node is promoted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Somebody who notices at once, with `repl-fence failover` on one of the nodes that are left.
    Fence,
    /// `replctl auto-failover` on each node.
    Auto,
}

/// How the Primary is lost.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Loss {
    Killed,
    Frozen,
}

impl Loss {
    const ALL: [Self; 2] = [Self::Killed, Self::Frozen];
}

/// A cluster of which one node is Primary, whatever happens.
struct Kept {
    cluster: Cluster,
    primary: usize,
    way: Way,
    keepers: Vec<Child>,
    repl_fence: PathBuf,
}

impl Kept {
    fn start(
        way: Way,
        lease_ms: u32,
        dir: &Path,
        interrupted: &Arc<AtomicBool>,
    ) -> Result<Self, BenchError> {
        let programs = integration::build_programs()?;
        let repl_fence = programs.repld.with_file_name("repl-fence");
        let service = dir.join("service");
        std::fs::write(&service, "#!/bin/sh\nexec sleep infinity\n")
            .and_then(|()| std::fs::set_permissions(&service, Permissions::from_mode(0o755)))
            .map_err(|source| io_error("write", &service, source))?;
        let spec = Spec {
            volumes: vec![("data".to_owned(), 16 << 20)],
            journal_bytes: 16 << 20,
            policy: format!("lease_ms = {lease_ms}\n"),
            more: format!("\n[failover]\ncommand = \"{}\"\n", service.display()),
            ..Spec::default()
        };
        let mut cluster = Cluster::new(dir, programs, spec, Arc::clone(interrupted))?;
        cluster.create_and_start()?;
        cluster.promote(0, BOUND)?;
        let mut kept = Self {
            cluster,
            primary: 0,
            way,
            keepers: Vec::new(),
            repl_fence,
        };
        if way == Way::Auto {
            for node in 0..kept.cluster.len() {
                let replctl = kept.cluster.programs().replctl.clone();
                let keeper = kept.command(replctl, node, "auto-failover")?;
                kept.keepers.push(keeper);
            }
        }
        Ok(kept)
    }

    fn command(&self, program: PathBuf, node: usize, verb: &str) -> Result<Child, BenchError> {
        let mut command = Command::new(program);
        command.arg("--config").arg(self.cluster.config());
        command.args(["--node", self.cluster.name(node)]);
        command.args(verb.split(' '));
        let quiet = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        quiet.spawn().map_err(|source| BenchError::Os {
            what: "start a program of ours",
            source,
        })
    }

    /// Loses the Primary; how long it was until another node answered.
    fn lose(&mut self, loss: Loss) -> Result<Duration, BenchError> {
        let lost = self.primary;
        let others: Vec<usize> = (0..self.cluster.len()).filter(|n| *n != lost).collect();
        let began = Instant::now();
        match loss {
            Loss::Killed => self.cluster.kill(lost)?,
            Loss::Frozen => self.cluster.freeze(lost)?,
        }
        let fence = match self.way {
            Way::Fence => Some(self.command(self.repl_fence.clone(), others[0], "failover")?),
            Way::Auto => None,
        };
        self.primary = self
            .cluster
            .wait("another node answers", BOUND, |cluster| {
                let answers = |node: &&usize| is_written(cluster, **node);
                Ok(others
                    .iter()
                    .find(answers)
                    .copied()
                    .ok_or_else(|| "none does".to_owned()))
            })?;
        let took = began.elapsed();
        if let Some(fence) = fence {
            ended_well("repl-fence failover", fence)?;
        }
        match loss {
            Loss::Killed => self.cluster.start(lost)?,
            Loss::Frozen => self.cluster.thaw(lost)?,
        }
        if self.way == Way::Fence {
            let verb = format!("unfence {}", self.cluster.name(lost));
            let unfence = self.command(self.repl_fence.clone(), self.primary, &verb)?;
            ended_well("repl-fence unfence", unfence)?;
        }
        self.cluster
            .wait_status(self.primary, "all are up to date", BOUND, |status| {
                status.peers.iter().all(|peer| {
                    peer.connection.as_deref() == Some("Connected")
                        && peer.disk_state.as_deref() == Some("UpToDate")
                })
            })?;
        Ok(took)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        for keeper in &mut self.keepers {
            // What it says then is of no interest, and the service ends with it.
            if let Ok(pid) = i32::try_from(keeper.id()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            }
            let _ = keeper.wait();
        }
    }
}

fn ended_well(program: &str, mut child: Child) -> Result<(), BenchError> {
    let ended = child.wait().map_err(|source| BenchError::Os {
        what: "wait for a program of ours",
        source,
    })?;
    if ended.success() {
        return Ok(());
    }
    Err(BenchError::Program {
        program: program.to_owned(),
        message: ended.to_string(),
    })
}

/// Whether a node answers a durable write. It is open to clients only as Primary.
fn is_written(cluster: &Cluster, node: usize) -> bool {
    let uri = Uri::unix("data", cluster.nbd_socket(node));
    let options = ClientOptions {
        idle_timeout: Some(BOUND),
        ..ClientOptions::default()
    };
    Client::connect_with(&uri, &options)
        .and_then(|mut client| client.write_at(0, &[1; 4096], true))
        .is_ok()
}

fn main() -> ExitCode {
    match measure(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("outages: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options) -> Result<(), BenchError> {
    let interrupted = watch_signals()?;
    println!(
        "| by | the Primary is | times | median | least to most | over the lease, in the median |"
    );
    println!("|---|---|--:|--:|--:|--:|");
    for (way, name) in [
        (Way::Fence, "`repl-fence failover`"),
        (Way::Auto, "`replctl auto-failover`"),
    ] {
        let dir = scratch_dir(None)?;
        let mut kept = Kept::start(way, options.lease_ms, dir.path(), &interrupted)?;
        let mut took = [Vec::new(), Vec::new()];
        for _ in 0..options.rounds {
            for (loss, took) in Loss::ALL.into_iter().zip(&mut took) {
                took.push(kept.lose(loss)?.as_secs_f64());
            }
        }
        for (loss, took) in ["killed", "frozen"].into_iter().zip(took) {
            let least = took.iter().copied().fold(f64::INFINITY, f64::min);
            let most = took.iter().copied().fold(0.0, f64::max);
            let middle = median(took).unwrap_or_default();
            let over = middle - f64::from(options.lease_ms) / 1000.0;
            println!(
                "| {name} | {loss} | {} | {middle:.2} s | {least:.2} to {most:.2} s | {over:.2} s |",
                options.rounds
            );
        }
    }
    Ok(())
}
