//! The service: a program of which the process group is this process's to end, or a unit of systemd.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nbd_server::config;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use super::Moment;

/// How often systemd is asked about a unit.
const ASK: Duration = Duration::from_secs(1);

/// What is started and stopped.
pub(super) struct Service {
    /// The program that speaks with systemd.
    systemctl: &'static str,
    what: config::Service,
    environment: Vec<(&'static str, String)>,
    state: State,
    /// When whatever is left of it is killed.
    kill_at: Option<Moment>,
}

enum State {
    Stopped,
    Runs(Running),
    /// It was told to stop.
    Stops(Running),
}

enum Running {
    /// The program.
    Program(Child),
    /// `systemctl start` or `stop`, while that runs, and when the unit is looked at next.
    Unit(Option<Child>, Moment),
}

impl Service {
    pub(super) fn new(what: &config::Service, environment: &[(&'static str, String)]) -> Self {
        Self::with("systemctl", what, environment)
    }

    pub(super) fn with(
        systemctl: &'static str,
        what: &config::Service,
        environment: &[(&'static str, String)],
    ) -> Self {
        // A unit outlives whoever started it.
        let state = match what {
            config::Service::Unit(unit) if is_active(systemctl, unit) => {
                State::Runs(Running::Unit(None, Moment::now()))
            }
            _ => State::Stopped,
        };
        Self {
            systemctl,
            what: what.clone(),
            environment: environment.to_vec(),
            state,
            kill_at: None,
        }
    }

    /// It was started, and not told to stop.
    pub(super) fn is_wanted(&self) -> bool {
        matches!(self.state, State::Runs(_))
    }

    pub(super) fn is_stopped(&self) -> bool {
        matches!(self.state, State::Stopped)
    }

    pub(super) fn start(&mut self) -> Result<(), String> {
        let running = match &self.what {
            config::Service::Command(program) => {
                let child = Command::new(program)
                    .envs(self.environment.iter().map(|(k, v)| (k, v)))
                    .stdin(Stdio::null())
                    .process_group(0)
                    .spawn();
                Running::Program(child.map_err(|error| cannot_run(program, &error))?)
            }
            config::Service::Unit(unit) => Running::Unit(
                Some(run(self.systemctl, "start", unit)?),
                Moment::now().after(ASK),
            ),
        };
        self.kill_at = None;
        self.state = State::Runs(running);
        Ok(())
    }

    /// Tells it to stop; it is killed at a time if it has not by then.
    pub(super) fn stop(&mut self, kill_at: Moment) {
        let running = match std::mem::replace(&mut self.state, State::Stopped) {
            State::Stopped => return,
            State::Runs(running) | State::Stops(running) => running,
        };
        let running = match (running, &self.what) {
            (Running::Program(child), _) => {
                signal(&child, Signal::SIGTERM);
                Running::Program(child)
            }
            (Running::Unit(former, _), config::Service::Unit(unit)) => {
                if let Some(mut former) = former {
                    // It waits for the unit to start, and need not any more.
                    let _ = former.kill();
                    let _ = former.wait();
                }
                Running::Unit(
                    run(self.systemctl, "stop", unit).ok(),
                    Moment::now().after(ASK),
                )
            }
            (running, config::Service::Command(_)) => running,
        };
        self.state = State::Stops(running);
        self.kill_at(kill_at);
    }

    /// What was told to stop is killed at this time at the latest.
    pub(super) fn kill_at(&mut self, at: Moment) {
        if matches!(self.state, State::Stops(_)) {
            self.kill_at = Some(self.kill_at.map_or(at, |before| before.min(at)));
        }
    }

    /// Looks how it is; `Some` with what there is to say if it has ended without being told to.
    pub(super) fn look(&mut self, now: Moment) -> Option<String> {
        if self.kill_at.is_some_and(|at| now >= at) {
            self.kill();
        }
        match &mut self.state {
            State::Stopped => None,
            State::Runs(Running::Program(child)) => {
                let how = ended(child)?;
                self.state = State::Stopped;
                Some(format!("the service ended by itself: {how}"))
            }
            State::Stops(Running::Program(child)) => {
                if ended(child).is_some() {
                    self.state = State::Stopped;
                }
                None
            }
            State::Runs(Running::Unit(starting, ask_at)) => {
                if let Some(child) = starting {
                    let Ok(Some(status)) = child.try_wait() else {
                        return None;
                    };
                    *starting = None;
                    if !status.success() {
                        return Some(format!("the unit can not be started: systemctl: {status}"));
                    }
                }
                if now < *ask_at {
                    return None;
                }
                *ask_at = now.after(ASK);
                let config::Service::Unit(unit) = &self.what else {
                    return None;
                };
                (!is_active(self.systemctl, unit)).then(|| format!("{unit} is not active any more"))
            }
            State::Stops(Running::Unit(stopping, ask_at)) => {
                let config::Service::Unit(unit) = &self.what else {
                    return None;
                };
                let done = match stopping {
                    Some(child) => match child.try_wait() {
                        Ok(Some(status)) => Some(status.success()),
                        _ => None,
                    },
                    None => Some(false),
                };
                match done {
                    Some(true) => self.state = State::Stopped,
                    // As long as it is not known to be stopped, it is told to.
                    Some(false) if now >= *ask_at => {
                        *ask_at = now.after(ASK);
                        *stopping = run(self.systemctl, "stop", unit).ok();
                    }
                    _ => {}
                }
                None
            }
        }
    }

    fn kill(&mut self) {
        match (&self.state, &self.what) {
            (State::Stops(Running::Program(child)), _) => signal(child, Signal::SIGKILL),
            (State::Stops(Running::Unit(..)), config::Service::Unit(unit)) => {
                // Of a target there is nothing to kill: its units stop as fast as they do.
                let killed = Command::new(self.systemctl)
                    .args(["kill", "--signal=SIGKILL", unit])
                    .stdin(Stdio::null())
                    .stderr(Stdio::null())
                    .status();
                drop(killed);
                self.kill_at = None;
            }
            _ => self.kill_at = None,
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let State::Runs(Running::Program(child)) | State::Stops(Running::Program(child)) =
            &self.state
        {
            signal(child, Signal::SIGKILL);
        }
    }
}

fn cannot_run(program: &Path, error: &std::io::Error) -> String {
    format!("{} can not be run: {error}", program.display())
}

/// Signals a program and what it has started. It was not waited for, so the numbers are still its own.
fn signal(child: &Child, signal: Signal) {
    if let Ok(group) = i32::try_from(child.id()) {
        // If there is nobody left, that is what was wanted.
        let _ = killpg(Pid::from_raw(group), signal);
    }
}

/// How a program has ended, if it has. What it leaves running is killed before its number can become another's.
fn ended(child: &mut Child) -> Option<String> {
    let pid = Pid::from_raw(i32::try_from(child.id()).ok()?);
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    match waitid(Id::Pid(pid), flags) {
        Ok(WaitStatus::StillAlive) => None,
        Ok(_) => {
            signal(child, Signal::SIGKILL);
            let status = child.wait();
            Some(status.map_or_else(|error| error.to_string(), |status| status.to_string()))
        }
        Err(error) => Some(error.to_string()),
    }
}

fn run(systemctl: &str, verb: &str, unit: &str) -> Result<Child, String> {
    Command::new(systemctl)
        .args([verb, unit])
        .stdin(Stdio::null())
        .spawn()
        .map_err(|error| cannot_run(Path::new(systemctl), &error))
}

fn is_active(systemctl: &str, unit: &str) -> bool {
    let status = Command::new(systemctl)
        .args(["is-active", "--quiet", unit])
        .stdin(Stdio::null())
        .status();
    // Not to be able to ask is no reason to stop it.
    status.map_or(true, |status| status.success() || status.code().is_none())
}
