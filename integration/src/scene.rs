//! A cluster, its volumes' model, and the steps that most tests are made of.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nbd_server::nbd::client::{Client, Options, Uri};
use tempfile::TempDir;
use tools::cluster::{Cluster, Spec, Status};
use tools::demo::verify::verify;
use tools::demo::workload::{End, Job, Pace, Running, Stream, Tally, Volume};
use tools::demo::{scratch_dir, stop_cleanly, stores};

use crate::programs;

/// For everything that takes a second or two on a good day: a test that needs it is wrong, not slow.
pub const BOUND: Duration = Duration::from_secs(60);

/// 2^20.
pub const MIB: u64 = 1 << 20;

/// Clusters share the machine's cores; one at a time keeps their timing meaningful.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Three nodes with small volumes and the smallest journal that is allowed, so that it wraps often.
#[must_use]
pub fn small() -> Spec {
    Spec {
        volumes: vec![("db".into(), 16 * MIB), ("recordings".into(), 32 * MIB)],
        journal_bytes: 16 * MIB,
        ..Spec::default()
    }
}

/// The same with a journal that reaches back over a node's short absence under load.
#[must_use]
pub fn roomy() -> Spec {
    Spec {
        journal_bytes: 256 * MIB,
        ..small()
    }
}

/// A cluster and what its volumes have to hold.
pub struct Scene {
    /// The nodes.
    pub cluster: Cluster,
    /// The models, in the order of the config.
    pub volumes: Vec<Arc<Volume>>,
    /// What was acknowledged and found.
    pub tally: Arc<Tally>,
    _dir: TempDir,
    _alone: MutexGuard<'static, ()>,
}

/// The streams of clients that a node drops, with their unanswered writes given up.
///
/// # Panics
/// If a stream ended in another way.
#[must_use]
pub fn dropped(load: Running) -> Vec<Stream> {
    let (streams, ends) = load.collect(BOUND);
    for end in ends {
        assert!(
            matches!(end, End::Lost { .. }),
            "a node may only drop its clients, but: {end:?}"
        );
    }
    streams
}

impl Scene {
    /// Lays a cluster out; formats and starts nothing.
    #[must_use]
    pub fn laid_out(spec: Spec) -> Self {
        let programs = programs().clone();
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = scratch_dir(None).unwrap_or_else(|error| panic!("{error}"));
        let volumes = spec
            .volumes
            .iter()
            .map(|(name, size)| Volume::new(name, *size))
            .collect();
        let never = Arc::new(AtomicBool::new(false));
        let cluster = Cluster::new(dir.path(), programs, spec, never);
        let cluster = cluster.unwrap_or_else(|error| panic!("{error}"));
        Self {
            cluster,
            volumes,
            tally: Arc::default(),
            _dir: dir,
            _alone: alone,
        }
    }

    /// A cluster of running Secondaries.
    #[must_use]
    pub fn started(spec: Spec) -> Self {
        let mut scene = Self::laid_out(spec);
        scene
            .cluster
            .create_and_start()
            .unwrap_or_else(|error| panic!("{error}"));
        scene
    }

    /// A running cluster whose first node is Primary.
    #[must_use]
    pub fn serving(spec: Spec) -> Self {
        let scene = Self::started(spec);
        scene.promote(0);
        scene
    }

    /// Promotes a node, however long the old Primary's lease takes.
    pub fn promote(&self, node: usize) {
        self.cluster
            .promote(node, BOUND)
            .unwrap_or_else(|error| panic!("{error}"));
    }

    /// A verb of `replctl` that reads a line from stdin, to be sure that it is meant; its exit code and what it complains of.
    pub fn confirmed(&self, node: usize, verb: &[&str], line: &str) -> (i32, String) {
        let mut child = Command::new(&self.cluster.programs().replctl)
            .arg("--config")
            .arg(self.cluster.config())
            .args(["--node", self.cluster.name(node)])
            .args(verb)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("replctl starts");
        let mut stdin = child.stdin.take().expect("it was asked for");
        // What is refused for another reason is not waited for.
        match stdin.write_all(line.as_bytes()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                panic!("replctl does not listen: {error}")
            }
            _ => drop(stdin),
        }
        let output = child.wait_with_output().expect("replctl ends");
        assert!(output.stdout.is_empty());
        let text = String::from_utf8(output.stderr).expect("text");
        (output.status.code().expect("an exit code"), text)
    }

    /// Opens a volume on a node; nothing may stand still for longer than the bound.
    #[must_use]
    pub fn open(&self, node: usize, volume: &str) -> Client {
        let uri = Uri::unix(volume, self.cluster.nbd_socket(node));
        let options = Options {
            idle_timeout: Some(BOUND),
            ..Options::default()
        };
        Client::connect_with(&uri, &options)
            .unwrap_or_else(|error| panic!("{volume} on {}: {error}", self.cluster.name(node)))
    }

    /// Commits, appends of both kinds and reads, as fast as they are answered.
    #[must_use]
    pub fn busy_streams(&self) -> Vec<Stream> {
        // Enough to fill any pipeline, and no more than a slow disk digests between two checks.
        self.streams(Duration::from_millis(10))
    }

    /// The same work at a pace at which a large journal reaches back for half a minute.
    #[must_use]
    pub fn calm_streams(&self) -> Vec<Stream> {
        self.streams(Duration::from_millis(60))
    }

    fn streams(&self, every: Duration) -> Vec<Stream> {
        let (db, recordings) = (&self.volumes[0], &self.volumes[1]);
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
        let read = Job::Read {
            least: 1,
            most: 20_000,
        };
        let brisk = |depth, burst| Pace {
            depth,
            burst,
            every,
        };
        vec![
            Stream::new(1, db, 0..16 * MIB, commit, brisk(8, 8)),
            Stream::new(2, db, 0..16 * MIB, commit, brisk(8, 8)),
            Stream::new(3, recordings, 0..14 * MIB, record, brisk(2, 1)),
            Stream::new(4, recordings, 14 * MIB..28 * MIB, record, brisk(2, 1)),
            Stream::new(5, recordings, 28 * MIB..32 * MIB, log, brisk(4, 4)),
            Stream::new(6, db, 0..16 * MIB, read, brisk(4, 4)),
        ]
    }

    /// Sets streams to work on a node.
    #[must_use]
    pub fn work(&self, node: usize, streams: Vec<Stream>) -> Running {
        Running::start(streams, &self.cluster.nbd_socket(node), &self.tally)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// Waits until this many more writes were acknowledged.
    pub fn await_writes(&mut self, load: &Running, more: u64) {
        let (tally, enough) = (Arc::clone(&self.tally), self.tally.writes() + more);
        let result = self.cluster.wait("the clients get on", BOUND, |_| {
            let writes = tally.writes();
            assert!(
                writes >= enough || !load.any_ended(),
                "a client was let down"
            );
            Ok(if writes >= enough {
                Ok(())
            } else {
                Err(format!("{writes} of {enough}"))
            })
        });
        result.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Lets streams finish what they have in flight; none may have been let down.
    pub fn finish(&self, load: Running) -> Vec<Stream> {
        let (streams, ends) = load.stop(BOUND);
        for end in ends {
            assert!(
                matches!(end, End::Stopped),
                "a client was let down: {end:?}"
            );
        }
        streams
    }

    /// SIGKILL under load; returns the streams when they noticed, with their unanswered writes given up.
    pub fn kill_under(&mut self, node: usize, load: Running) -> Vec<Stream> {
        self.cluster
            .kill(node)
            .unwrap_or_else(|error| panic!("{error}"));
        dropped(load)
    }

    /// Waits until streams are dropped that were served when `writes` were acknowledged: what was in flight then may still be
    /// answered (a reply can be late; `verify` demands those writes as well), and nothing that came after it.
    pub fn dropped_since(&self, writes: u64, load: Running) {
        let streams = dropped(load);
        let in_flight: usize = streams.iter().map(Stream::depth).sum();
        let more = self.tally.writes() - writes;
        assert!(
            more <= in_flight as u64,
            "{more} writes were answered, with {in_flight} requests in flight"
        );
    }

    /// Reads every byte through a node and compares it with the model.
    pub fn verify(&self, node: usize) {
        let result = verify(&self.cluster.nbd_socket(node), &self.volumes, &self.tally);
        result.unwrap_or_else(|error| panic!("{error}"));
        self.expect_no_loss();
    }

    /// Fails with the findings if there are any.
    pub fn expect_no_loss(&self) {
        let losses = self.tally.losses();
        let first: Vec<String> = losses
            .iter()
            .take(8)
            .map(|(volume, loss)| format!("{volume}: {loss}"))
            .collect();
        assert!(
            losses.is_empty(),
            "{} wrong ranges:\n{}",
            losses.len(),
            first.join("\n")
        );
    }

    /// Waits until the status of a node is as it should be.
    ///
    /// # Panics
    /// If that takes too long.
    #[track_caller]
    pub fn await_status(&mut self, node: usize, what: &str, condition: impl Fn(&Status) -> bool) {
        let result = self.cluster.wait_status(node, what, BOUND, condition);
        result.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Waits until the log of a node has that. It is written by a thread of its own, so what follows from an event
    /// may be seen before its line.
    ///
    /// # Panics
    /// If that takes too long.
    pub fn await_logged(&mut self, node: usize, text: &str) {
        let what = format!("the log of {} says {text:?}", self.cluster.name(node));
        let result = self.cluster.wait(&what, BOUND, |cluster| {
            let log = cluster.log(node);
            Ok(if log.contains(text) { Ok(()) } else { Err(log) })
        });
        result.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Waits until a Primary says of a peer how it counts: "member", "dropped", "out".
    ///
    /// # Panics
    /// If that takes too long.
    #[track_caller]
    pub fn await_membership(&mut self, primary: usize, peer: usize, how: &str) {
        let name = self.cluster.name(peer).to_owned();
        self.await_status(primary, &format!("{name} is {how}"), |status| {
            let peer = status.peer(&name);
            peer.is_some_and(|p| p.membership.as_deref() == Some(how))
        });
    }

    /// Waits until a node says that another one is gone.
    ///
    /// # Panics
    /// If that takes too long.
    #[track_caller]
    pub fn await_gone(&mut self, node: usize, peer: usize) {
        let name = self.cluster.name(peer).to_owned();
        self.await_status(node, &format!("{name} is gone"), |status| {
            let peer = status.peer(&name);
            peer.is_some_and(|p| p.connection.as_deref() == Some("Connecting"))
        });
    }

    /// Node 2 counts again, while node 0 is Primary: with it alone a write is acknowledged, and it can take over.
    ///
    /// # Panics
    /// If it does not.
    pub fn node_2_counts(mut self, load: Running) {
        self.cluster.kill(1).expect("killed");
        self.await_writes(&load, 100);
        drop(self.kill_under(0, load));
        self.cluster.start(1).expect("it starts again");
        self.ends_with(2);
    }

    /// The end of tests in which another node takes over at last: it has everything, whoever is gone comes back, and all are equal.
    ///
    /// # Panics
    /// If that is not so.
    pub fn ends_with(mut self, primary: usize) {
        self.promote(primary);
        self.verify(primary);
        let others = (0..self.cluster.len()).filter(|&n| n != primary);
        let others: Vec<usize> = others.collect();
        for &node in &others {
            if self.cluster.pid(node).is_none() {
                self.cluster.start(node).expect("it starts again");
            }
        }
        for &node in &others {
            self.await_caught_up(node, primary);
        }
        self.stop_and_compare(primary);
    }

    /// The end of tests of two nodes: one goes on without the other with these streams, and it counts again when it is back.
    ///
    /// # Panics
    /// If it does not.
    pub fn ends_with_both(mut self, primary: usize, lost: usize, streams: Vec<Stream>) {
        self.verify(primary);
        let load = self.work(primary, streams);
        self.await_writes(&load, 100);
        self.cluster.start(lost).expect("it starts again");
        self.await_membership(primary, lost, "member");
        self.await_writes(&load, 50);
        self.finish(load);
        self.await_caught_up(lost, primary);
        self.verify(primary);
        self.stop_and_compare(primary);
    }

    /// Waits until a node is connected to `seen_by`, UpToDate and not behind.
    pub fn await_caught_up(&mut self, node: usize, seen_by: usize) {
        let name = self.cluster.name(node).to_owned();
        self.await_status(seen_by, &format!("{name} has caught up"), |status| {
            let peer = status.peer(&name);
            peer.is_some_and(|peer| peer.up_to_date() && peer.behind_bytes == Some(0))
        });
    }

    /// The end of most tests: a clean stop of everything, then all stores are equal and as written.
    pub fn stop_and_compare(mut self, primary: usize) {
        stop_cleanly(&mut self.cluster, primary).unwrap_or_else(|error| panic!("{error}"));
        let findings = stores::compare(&self.cluster, &self.volumes, &self.tally);
        let findings = findings.unwrap_or_else(|error| panic!("{error}"));
        assert!(findings.is_empty(), "{}", findings.join("\n"));
        self.expect_no_loss();
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.cluster.logs());
        }
    }
}
