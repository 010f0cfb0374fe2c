//! Processes of other people's servers: started, watched, and ended by their id.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::{BenchError, io_error};

/// How long a server may take to answer, or to come to rest.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server's process. It ends with the value.
#[derive(Debug)]
pub struct Server {
    /// What it is called in the results.
    pub label: String,
    pid: u32,
    child: Option<Child>,
    log: PathBuf,
}

/// Where a server listens.
#[derive(Clone, Debug)]
pub enum Door {
    /// A Unix socket.
    Unix(PathBuf),
    /// A port on loopback.
    Tcp(u16),
}

impl Door {
    fn try_knock(&self) -> io::Result<()> {
        match self {
            Self::Unix(path) => UnixStream::connect(path).map(drop),
            Self::Tcp(port) => {
                TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, *port))).map(drop)
            }
        }
    }
}

impl Server {
    /// Starts a program that stays in the foreground; returns when its door opens.
    ///
    /// # Errors
    /// It does not start, ends, or does not answer; with what it said.
    pub fn start(
        label: &str,
        command: &mut Command,
        log: &Path,
        door: &Door,
        interrupted: &AtomicBool,
    ) -> Result<Self, BenchError> {
        let mut child = spawn(command, log)?;
        let pid = child.id();
        let result = wait_for(interrupted, || {
            if let Ok(Some(status)) = child.try_wait() {
                return Err(failed(command, &format!("{status}; {}", said(log))));
            }
            Ok(door.try_knock().is_ok())
        });
        let server = Self {
            label: label.to_owned(),
            pid,
            child: Some(child),
            log: log.to_owned(),
        };
        result?;
        Ok(server)
    }

    /// Starts a program that goes to the background and writes its id to `pid_file`; returns when its door opens.
    ///
    /// # Errors
    /// It does not start or does not answer; with what it said.
    pub fn start_daemon(
        label: &str,
        command: &mut Command,
        (log, pid_file): (&Path, &Path),
        door: &Door,
        interrupted: &AtomicBool,
    ) -> Result<Self, BenchError> {
        let status = spawn(command, log)?
            .wait()
            .map_err(|source| io_error("wait for", log, source))?;
        if !status.success() {
            return Err(failed(command, &format!("{status}; {}", said(log))));
        }
        let mut pid = None;
        wait_for(interrupted, || {
            let text = std::fs::read_to_string(pid_file).unwrap_or_default();
            pid = text.trim().parse().ok();
            Ok(pid.is_some())
        })?;
        let server = Self {
            label: label.to_owned(),
            pid: pid.unwrap_or_default(),
            child: None,
            log: log.to_owned(),
        };
        wait_for(interrupted, || Ok(door.try_knock().is_ok()))?;
        Ok(server)
    }

    /// Its id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until what it started for a connection has ended, so that its books are complete.
    pub fn wait_childless(&self, interrupted: &AtomicBool) -> Result<(), BenchError> {
        let path = format!("/proc/{0}/task/{0}/children", self.pid);
        wait_for(interrupted, || {
            // Kernels without this file have nothing to wait for.
            let children = std::fs::read_to_string(&path).unwrap_or_default();
            Ok(children.trim().is_empty())
        })
    }

    /// What it said.
    #[must_use]
    pub fn said(&self) -> String {
        said(&self.log)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        match &mut self.child {
            Some(child) => {
                // Nothing can be done about an error here.
                let _ = child.kill();
                let _ = child.wait();
            }
            None => {
                // Not our child: only if the id is still that of a process that was started with a file of ours.
                let line = std::fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
                let line = String::from_utf8_lossy(&line).into_owned();
                let ours = self.log.parent().is_some_and(|dir| {
                    let dir = dir.to_string_lossy();
                    line.contains(dir.as_ref())
                });
                if ours && let Ok(pid) = i32::try_from(self.pid) {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
                }
            }
        }
    }
}

fn spawn(command: &mut Command, log: &Path) -> Result<Child, BenchError> {
    let file = File::create(log).map_err(|source| io_error("make", log, source))?;
    let too = file
        .try_clone()
        .map_err(|source| io_error("open", log, source))?;
    command
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(too)
        // Ctrl-C at the terminal is for us; we stop the servers.
        .process_group(0)
        .spawn()
        .map_err(|error| failed(command, &error.to_string()))
}

fn failed(command: &Command, message: &str) -> BenchError {
    BenchError::Program {
        program: command.get_program().to_string_lossy().into_owned(),
        message: message.to_owned(),
    }
}

fn said(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.trim().replace('\n', "; ")
}

/// Asks again and again until the answer is yes.
pub(crate) fn wait_for(
    interrupted: &AtomicBool,
    mut condition: impl FnMut() -> Result<bool, BenchError>,
) -> Result<(), BenchError> {
    let begun = Instant::now();
    let mut pause = Duration::from_millis(1);
    while !condition()? {
        if interrupted.load(Ordering::Relaxed) {
            return Err(BenchError::Interrupted);
        }
        if begun.elapsed() > PATIENCE {
            let seconds = PATIENCE.as_secs();
            return Err(BenchError::NotReady(
                "a server",
                format!("not within {seconds} s"),
            ));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    Ok(())
}

/// Whether a program can be started.
#[must_use]
pub fn is_there(program: &str) -> bool {
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&dirs)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|dir| dir.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_ends_is_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let error = Server::start(
            "shell",
            Command::new("sh").args(["-c", "echo no such luck; exit 3"]),
            &dir.path().join("log"),
            &Door::Unix(dir.path().join("none")),
            &AtomicBool::new(false),
        );
        let text = error.expect_err("it has ended").to_string();
        assert!(
            text.contains("no such luck") && text.contains("exit status: 3"),
            "{text}"
        );
    }

    #[test]
    fn a_program_that_is_missing_is_noticed() {
        assert!(is_there("sh"));
        assert!(!is_there("a program that nobody has"));
    }
}
