//! The service: a program of which the process group is this process's to end, or a unit of systemd.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
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
    /// A unit was, since it was told to stop.
    killed: bool,
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
    /// What systemd was told or asked last, while `systemctl` waits for its answer, and when it is asked again.
    Unit(Option<(Word, Child)>, Moment),
}

/// What systemd is told, or asked. It may take its time, or hang: nothing here waits for it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Word {
    Start,
    /// Whether the unit is active.
    Ask,
    /// It answers once the unit has stopped. That of a target has before what it is made of.
    Stop,
    /// Which units are stopped with it.
    Parts,
    StopParts,
    Kill,
}

impl Word {
    fn args(self) -> &'static [&'static str] {
        match self {
            Self::Start => &["start"],
            Self::Ask => &["is-active", "--quiet"],
            Self::Stop | Self::StopParts => &["stop"],
            Self::Parts => &[
                "show",
                "--value",
                "--property=ConsistsOf,RequiredBy,BoundBy",
            ],
            Self::Kill => &["kill", "--signal=SIGKILL"],
        }
    }
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
            config::Service::Unit(unit) if runs(systemctl, unit) => {
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
            killed: false,
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
            config::Service::Unit(unit) => {
                let told = say(self.systemctl, Word::Start, &[unit])?;
                Running::Unit(Some(told), Moment::now().after(ASK))
            }
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
                // It waits for the unit to start, and need not any more.
                if let Some(former) = former {
                    leave(former);
                }
                let told = say(self.systemctl, Word::Stop, &[unit]).ok();
                Running::Unit(told, Moment::now().after(ASK))
            }
            (running, config::Service::Command(_)) => running,
        };
        self.state = State::Stops(running);
        self.killed = false;
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
            State::Runs(Running::Unit(word, ask_at)) => {
                let config::Service::Unit(unit) = &self.what else {
                    return None;
                };
                match answer(word) {
                    Answer::Waits => None,
                    Answer::Ended(Word::Start, status, _) if !status.success() => {
                        Some(format!("the unit can not be started: systemctl: {status}"))
                    }
                    Answer::Ended(Word::Ask, status, _) if !is_active(status) => {
                        Some(format!("{unit} is not active any more"))
                    }
                    _ => {
                        if now >= *ask_at {
                            *ask_at = now.after(ASK);
                            // Not to be able to ask is no reason to stop it.
                            *word = say(self.systemctl, Word::Ask, &[unit]).ok();
                        }
                        None
                    }
                }
            }
            State::Stops(Running::Unit(word, ask_at)) => {
                let config::Service::Unit(unit) = &self.what else {
                    return None;
                };
                match answer(word) {
                    Answer::Waits => {}
                    Answer::Ended(Word::Stop, status, _) if status.success() => {
                        *word = say(self.systemctl, Word::Parts, &[unit]).ok();
                    }
                    Answer::Ended(Word::Parts, status, parts) if status.success() => {
                        let parts: Vec<_> = parts.split_whitespace().collect();
                        if parts.is_empty() {
                            self.state = State::Stopped;
                        } else {
                            *word = say(self.systemctl, Word::StopParts, &parts).ok();
                        }
                    }
                    Answer::Ended(Word::StopParts, status, _) if status.success() => {
                        self.state = State::Stopped;
                    }
                    // As long as it is not known to be stopped, it is told to.
                    _ if now >= *ask_at => {
                        *ask_at = now.after(ASK);
                        *word = say(self.systemctl, Word::Stop, &[unit]).ok();
                    }
                    _ => {}
                }
                None
            }
        }
    }

    fn kill(&mut self) {
        match (&mut self.state, &self.what) {
            (State::Stops(Running::Program(child)), _) => signal(child, Signal::SIGKILL),
            (State::Stops(Running::Unit(word, ask_at)), config::Service::Unit(unit)) => {
                // Of a target there is nothing to kill: its units stop as fast as they do.
                if std::mem::replace(&mut self.killed, true) {
                    return;
                }
                if let Some(word) = word.take() {
                    leave(word);
                }
                *word = say(self.systemctl, Word::Kill, &[unit]).ok();
                *ask_at = Moment::now();
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

/// Tells systemd something about units, or asks it.
fn say(systemctl: &str, word: Word, units: &[impl AsRef<OsStr>]) -> Result<(Word, Child), String> {
    let child = Command::new(systemctl)
        .args(word.args())
        .args(units)
        .stdin(Stdio::null())
        .stdout(if word == Word::Parts {
            Stdio::piped()
        } else {
            Stdio::inherit()
        })
        .stderr(if word == Word::Kill {
            Stdio::null()
        } else {
            Stdio::inherit()
        })
        .spawn();
    let child = child.map_err(|error| cannot_run(Path::new(systemctl), &error))?;
    Ok((word, child))
}

/// Nobody waits for an answer any more. What systemd was told it does all the same.
fn leave((_, mut systemctl): (Word, Child)) {
    let _ = systemctl.kill();
    let _ = systemctl.wait();
}

/// What became of the last word.
enum Answer {
    /// There is none yet.
    Waits,
    /// There was no word.
    Nothing,
    /// With what it said, where that is wanted.
    Ended(Word, ExitStatus, String),
}

fn answer(word: &mut Option<(Word, Child)>) -> Answer {
    let Some((said, systemctl)) = word else {
        return Answer::Nothing;
    };
    let said = *said;
    match systemctl.try_wait() {
        Ok(None) => Answer::Waits,
        Ok(Some(status)) => {
            let mut text = String::new();
            let read = systemctl.stdout.take();
            // It has ended, and said all that it will. Without its words it is asked again.
            let read = read.map_or(Ok(0), |mut stdout| stdout.read_to_string(&mut text));
            *word = None;
            read.map_or(Answer::Nothing, |_| Answer::Ended(said, status, text))
        }
        Err(_) => {
            *word = None;
            Answer::Nothing
        }
    }
}

/// What `systemctl is-active` says. One that was killed says nothing, and that is no reason to stop the unit.
fn is_active(status: ExitStatus) -> bool {
    status.success() || status.code().is_none()
}

/// Whether a unit is active, before anything else depends on an answer.
fn runs(systemctl: &str, unit: &str) -> bool {
    let asked = say(systemctl, Word::Ask, &[unit]);
    asked.map_or(true, |(_, mut child)| child.wait().map_or(true, is_active))
}
