//! A small cluster of real processes on loopback: configuration, `replctl create`, one `repld` per node,
//! and what a test does to it: kill, freeze, thaw, ask, promote, wait for a condition.
//!
//! It signals only processes that it started, by their id, and stops them all when it is dropped
//! (unless [`Cluster::leave_running`] was called). Nothing in here sleeps and hopes: every wait is for a
//! condition and has a bound.

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

pub use super::error::{ClusterError, exit};
pub use super::place::Port;
pub use super::process::Finished;
use super::process::finish;
use super::spec::Place;
pub use super::spec::{Host, Programs, Spec};
pub use super::status::{Peer, Status};

/// How long a daemon may take to answer on its admin socket, or to stop, on a slow machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// One node.
#[derive(Debug)]
struct Node {
    name: String,
    port: Port,
    data_dir: PathBuf,
    run_dir: PathBuf,
    child: Option<Child>,
}

/// A cluster of processes. Nodes are named by their index in [`Spec::nodes`].
#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
    config: PathBuf,
    programs: Programs,
    spec: Spec,
    nodes: Vec<Node>,
    interrupted: Arc<AtomicBool>,
    keep_running: bool,
    /// Where the sockets are if `dir` is too long for a socket's path.
    _short_dir: Option<TempDir>,
}

impl Cluster {
    /// Lays out directories and the config file in `dir`; starts nothing. `interrupted` ends every wait.
    pub fn new(
        dir: &Path,
        programs: Programs,
        spec: Spec,
        interrupted: Arc<AtomicBool>,
    ) -> Result<Self, ClusterError> {
        // sockaddr_un holds 107 bytes; the longest tail is "/NAME/run/admin.sock".
        let longest = spec.nodes.iter().map(String::len).max().unwrap_or(0);
        let short_dir = if dir.as_os_str().len() + longest + 20 > 107 {
            let made = tempfile::Builder::new().prefix("repl-").tempdir_in("/tmp");
            Some(made.map_err(|source| io_error("make a directory in", Path::new("/tmp"), source))?)
        } else {
            None
        };
        let run_root = short_dir.as_ref().map_or(dir, TempDir::path);
        let mut nodes = Vec::new();
        for name in &spec.nodes {
            nodes.push(Node {
                name: name.clone(),
                port: Port::reserve()?,
                data_dir: dir.join(name).join("data"),
                run_dir: run_root.join(name).join("run"),
                child: None,
            });
        }
        let cluster = Self {
            dir: dir.to_owned(),
            config: dir.join("pbx.toml"),
            programs,
            spec,
            nodes,
            interrupted,
            keep_running: false,
            _short_dir: short_dir,
        };
        let hosts = cluster.spec.hosts.iter().map(|host| host.address);
        let hosts = hosts.chain(std::iter::repeat(Ipv4Addr::LOCALHOST));
        let places = cluster.nodes.iter().zip(hosts).map(|(node, host)| Place {
            name: &node.name,
            address: SocketAddr::from((host, node.port.number())),
            data_dir: &node.data_dir,
            run_dir: &node.run_dir,
        });
        std::fs::write(&cluster.config, cluster.spec.config_text(places))
            .map_err(|source| io_error("write", &cluster.config, source))?;
        Ok(cluster)
    }

    /// Formats every node and starts it; returns when all admin sockets answer.
    pub fn create_and_start(&mut self) -> Result<(), ClusterError> {
        for node in 0..self.len() {
            self.create(node)?;
        }
        self.start_all()
    }

    /// Whether a node is a witness, which has no stores.
    #[must_use]
    pub fn is_witness(&self, node: usize) -> bool {
        self.spec.witnesses.contains(&self.nodes[node].name)
    }

    /// `replctl create`.
    pub fn create(&self, node: usize) -> Result<(), ClusterError> {
        self.expect_done(node, &["create"]).map(drop)
    }

    /// Starts every node that is not running; returns when all admin sockets answer.
    pub fn start_all(&mut self) -> Result<(), ClusterError> {
        let down: Vec<usize> = (0..self.len()).filter(|n| self.pid(*n).is_none()).collect();
        for node in &down {
            self.spawn(*node)?;
        }
        down.into_iter()
            .try_for_each(|node| self.wait_answering(node))
    }

    /// Starts a node; returns when its admin socket answers.
    pub fn start(&mut self, node: usize) -> Result<(), ClusterError> {
        self.spawn(node)?;
        self.wait_answering(node)
    }

    /// Starts a node and returns at once.
    pub fn spawn(&mut self, node: usize) -> Result<(), ClusterError> {
        let log_path = self.log_path(node);
        let log = File::options()
            .create(true)
            .append(true)
            .open(&log_path)
            .map_err(|source| io_error("open", &log_path, source))?;
        let log_too = log
            .try_clone()
            .map_err(|source| io_error("open", &log_path, source))?;
        let enter = self
            .spec
            .hosts
            .get(node)
            .map_or(&[][..], |host| &host.enter);
        let mut command = match enter {
            [] => Command::new(&self.programs.repld),
            [first, rest @ ..] => {
                let mut command = Command::new(first);
                command.args(rest).arg(&self.programs.repld);
                command
            }
        };
        let child = command
            .arg("--config")
            .arg(&self.config)
            .args(["--node", &self.nodes[node].name])
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(log_too)
            // Ctrl-C at the terminal is for us; we stop the nodes.
            .process_group(0)
            .spawn()
            .map_err(|source| io_error("start", &self.programs.repld, source))?;
        self.nodes[node].child = Some(child);
        Ok(())
    }

    fn wait_answering(&mut self, node: usize) -> Result<(), ClusterError> {
        let what = format!("the admin socket of {} answers", self.name(node));
        self.wait(&what, PATIENCE, |cluster| {
            cluster.ensure_running(node)?;
            let answer = cluster.ctl(node, &["status", "--json"], Duration::from_secs(5))?;
            Ok(if answer.code == exit::DONE {
                Ok(())
            } else {
                Err(answer.message())
            })
        })
    }

    /// An error if a node that was started has ended by itself.
    pub fn ensure_running(&mut self, node: usize) -> Result<(), ClusterError> {
        let log_path = self.log_path(node);
        let node = &mut self.nodes[node];
        let Some(child) = &mut node.child else {
            return Err(ClusterError::NotRunning {
                node: node.name.clone(),
            });
        };
        match child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => {
                node.child = None;
                Err(ClusterError::Ended {
                    node: node.name.clone(),
                    status,
                    log: tail(&log_path),
                })
            }
            Err(source) => Err(io_error("wait for", &self.programs.repld, source)),
        }
    }

    /// SIGKILL; returns when the process is gone.
    pub fn kill(&mut self, node: usize) -> Result<(), ClusterError> {
        let name = self.nodes[node].name.clone();
        let Some(mut child) = self.nodes[node].child.take() else {
            return Err(ClusterError::NotRunning { node: name });
        };
        let result = child.kill().and_then(|()| child.wait());
        result
            .map(drop)
            .map_err(|source| io_error("kill", &self.programs.repld, source))
    }

    /// SIGTERM; returns how the process ended. It is killed if it does not end in time.
    pub fn terminate(&mut self, node: usize) -> Result<ExitStatus, ClusterError> {
        self.signal(node, Signal::SIGTERM)?;
        self.wait_stopped(node)
    }

    fn wait_stopped(&mut self, node: usize) -> Result<ExitStatus, ClusterError> {
        let what = format!("{} stops after SIGTERM", self.name(node));
        let result = self.wait(&what, PATIENCE, |cluster| {
            let Some(child) = &mut cluster.nodes[node].child else {
                return Err(ClusterError::NotRunning {
                    node: cluster.name(node).into(),
                });
            };
            match child.try_wait() {
                Ok(Some(status)) => Ok(Ok(status)),
                Ok(None) => Ok(Err("still running".into())),
                Err(source) => Err(io_error("wait for", &cluster.programs.repld, source)),
            }
        });
        if result.is_ok() {
            self.nodes[node].child = None;
        } else if self.nodes[node].child.is_some() {
            self.kill(node)?;
        }
        result
    }

    /// SIGTERM to all that run, at once; then waits for each. An error if one did not end with exit 0.
    pub fn terminate_all(&mut self) -> Result<(), ClusterError> {
        let running: Vec<usize> = (0..self.len()).filter(|n| self.pid(*n).is_some()).collect();
        for node in &running {
            self.signal(*node, Signal::SIGTERM)?;
        }
        for node in running {
            let status = self.wait_stopped(node)?;
            if !status.success() {
                let log = tail(&self.log_path(node));
                return Err(ClusterError::Ended {
                    node: self.name(node).into(),
                    status,
                    log,
                });
            }
        }
        Ok(())
    }

    /// SIGSTOP; returns when the process has stopped.
    pub fn freeze(&mut self, node: usize) -> Result<(), ClusterError> {
        self.signal(node, Signal::SIGSTOP)?;
        let what = format!("{} is frozen", self.name(node));
        self.wait(&what, PATIENCE, |cluster| {
            let state = cluster.process_state(node);
            Ok(if state == Some('T') {
                Ok(())
            } else {
                Err(format!("state {state:?}"))
            })
        })
    }

    /// SIGCONT.
    pub fn thaw(&mut self, node: usize) -> Result<(), ClusterError> {
        self.signal(node, Signal::SIGCONT)
    }

    fn signal(&mut self, node: usize, signal: Signal) -> Result<(), ClusterError> {
        let Some(pid) = self.pid(node) else {
            return Err(ClusterError::NotRunning {
                node: self.name(node).into(),
            });
        };
        // The child has not been waited for, so the id is still its own.
        kill(Pid::from_raw(pid as i32), signal)
            .map_err(|errno| io_error("signal", &self.programs.repld, errno.into()))
    }

    fn process_state(&self, node: usize) -> Option<char> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid(node)?)).ok()?;
        stat.rsplit(") ").next()?.chars().next()
    }

    /// Runs `replctl VERB...` for a node and waits for its end; kills it after `bound`.
    pub fn ctl(
        &self,
        node: usize,
        verb: &[&str],
        bound: Duration,
    ) -> Result<Finished, ClusterError> {
        let mut command = Command::new(&self.programs.replctl);
        command
            .arg("--config")
            .arg(&self.config)
            .args(["--node", self.name(node)])
            .args(verb);
        let finished = finish(&mut command, bound, &self.interrupted)
            .map_err(|source| io_error("run", &self.programs.replctl, source))?;
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(ClusterError::Interrupted);
        }
        Ok(finished)
    }

    /// Runs `replctl VERB...`; anything but exit 0 is an error.
    pub fn expect_done(&self, node: usize, verb: &[&str]) -> Result<Finished, ClusterError> {
        let finished = self.ctl(node, verb, PATIENCE * 4)?;
        if finished.code == exit::DONE {
            return Ok(finished);
        }
        Err(self.command_error(node, verb, &finished))
    }

    fn command_error(&self, node: usize, verb: &[&str], finished: &Finished) -> ClusterError {
        ClusterError::Command {
            verb: verb.join(" "),
            node: self.name(node).into(),
            code: finished.code,
            message: finished.message(),
        }
    }

    /// The node's own view.
    pub fn status(&self, node: usize) -> Result<Status, ClusterError> {
        let verb = ["status", "--json"];
        let finished = self.ctl(node, &verb, PATIENCE)?;
        if finished.code != exit::DONE {
            return Err(self.command_error(node, &verb, &finished));
        }
        serde_json::from_str(&finished.stdout).map_err(|source| ClusterError::Status {
            node: self.name(node).into(),
            source,
            text: finished.stdout.clone(),
        })
    }

    /// Promotes a node; tries again as long as the reason may pass (no quorum yet, the old Primary's
    /// lease, data not fetched yet) and the bound has not.
    pub fn promote(&self, node: usize, bound: Duration) -> Result<(), ClusterError> {
        let deadline = Instant::now() + bound;
        loop {
            let left = deadline
                .saturating_duration_since(Instant::now())
                .as_secs()
                .clamp(1, 30);
            let seconds = left.to_string();
            let verb = ["promote", "--timeout", &seconds];
            let finished = self.ctl(node, &verb, bound + PATIENCE)?;
            match finished.code {
                exit::DONE => return Ok(()),
                exit::NO_QUORUM | exit::OTHER_PRIMARY | exit::NO_DATA | exit::UNREACHABLE
                    if Instant::now() < deadline =>
                {
                    std::thread::sleep(Duration::from_millis(20));
                }
                _ => return Err(self.command_error(node, &verb, &finished)),
            }
        }
    }

    /// Asks again and again until the answer is Ok; an inner Err says what was seen instead.
    pub fn wait<T>(
        &mut self,
        what: &str,
        bound: Duration,
        mut condition: impl FnMut(&mut Self) -> Result<Result<T, String>, ClusterError>,
    ) -> Result<T, ClusterError> {
        let start = Instant::now();
        let mut pause = Duration::from_millis(2);
        loop {
            let last = match condition(self)? {
                Ok(value) => return Ok(value),
                Err(seen) => seen,
            };
            if self.interrupted.load(Ordering::Relaxed) {
                return Err(ClusterError::Interrupted);
            }
            if start.elapsed() > bound {
                return Err(ClusterError::TooLate {
                    what: what.into(),
                    bound,
                    last,
                });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// Waits until a node's status satisfies the condition.
    pub fn wait_status(
        &mut self,
        node: usize,
        what: &str,
        bound: Duration,
        condition: impl Fn(&Status) -> bool,
    ) -> Result<Status, ClusterError> {
        self.wait(what, bound, |cluster| {
            let status = cluster.status(node)?;
            Ok(if condition(&status) {
                Ok(status)
            } else {
                Err(format!("{status:?}"))
            })
        })
    }

    /// The number of nodes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is no node.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The directory that everything is in.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The config file.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// The programs in use.
    #[must_use]
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// The volumes: name and bytes.
    #[must_use]
    pub fn volumes(&self) -> &[(String, u64)] {
        &self.spec.volumes
    }

    /// A node's name.
    #[must_use]
    pub fn name(&self, node: usize) -> &str {
        &self.nodes[node].name
    }

    /// A running node's process id.
    #[must_use]
    pub fn pid(&self, node: usize) -> Option<u32> {
        self.nodes[node].child.as_ref().map(Child::id)
    }

    /// A node's NBD socket.
    #[must_use]
    pub fn nbd_socket(&self, node: usize) -> PathBuf {
        self.nodes[node].run_dir.join("nbd.sock")
    }

    /// A node's journal, metadata and stores.
    #[must_use]
    pub fn data_dir(&self, node: usize) -> &Path {
        &self.nodes[node].data_dir
    }

    /// The file that holds a volume on a node.
    #[must_use]
    pub fn store(&self, node: usize, volume: &str) -> PathBuf {
        self.nodes[node].data_dir.join(format!("{volume}.img"))
    }

    /// What a node's daemon printed.
    #[must_use]
    pub fn log_path(&self, node: usize) -> PathBuf {
        self.dir.join(format!("{}.log", self.nodes[node].name))
    }

    /// Everything that a node's daemon printed.
    #[must_use]
    pub fn log(&self, node: usize) -> String {
        let bytes = std::fs::read(self.log_path(node)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The end of every node's log, for a failure report.
    #[must_use]
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for node in 0..self.len() {
            let _ = writeln!(
                text,
                "--- {}\n{}",
                self.name(node),
                tail(&self.log_path(node))
            );
        }
        text
    }

    /// The nodes go on when this value is dropped.
    pub fn leave_running(&mut self) {
        self.keep_running = true;
        if let Some(dir) = &mut self._short_dir {
            dir.disable_cleanup(true);
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.keep_running {
            return;
        }
        for node in &mut self.nodes {
            if let Some(mut child) = node.child.take() {
                // SIGKILL also ends a frozen process. Nothing can be done about an error here.
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

fn io_error(what: &'static str, path: &Path, source: io::Error) -> ClusterError {
    ClusterError::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

/// The last lines of a file.
fn tail(path: &Path) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text[text.len().saturating_sub(4096)..]).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
