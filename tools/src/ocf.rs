//! What the resource agent `ocf:replicator:volume` asks: one call for each action. It does the work, and answers with the exit code that OCF
//! wants; on stdout come the promotion score, the reason, and that the node is fenced, which the shell around it hands to Pacemaker.
//!
//! The resource is a node's part in the replication as Pacemaker sees it, not the daemon: `repld` runs by itself, so that it votes and
//! follows also while Pacemaker does not want it. So it is the agent that knows whether the resource was started.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use nbd_server::admin::client::{Client, ClientError};
use nbd_server::admin::{Connection, DiskState, ExitCode, Request, Response, Role, Status};
use nbd_server::config::{Config, Node};

use crate::Failure;
use crate::cli::host_name;
use crate::output::print;

/// The exit codes of resource agents that are used here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Code {
    Success = 0,
    Generic = 1,
    /// What is asked for can not be done with the arguments on this node.
    Arguments = 2,
    /// Something that the agent needs is not on this node.
    NotInstalled = 5,
    NotRunning = 7,
    RunningPromoted = 8,
    FailedPromoted = 9,
}

/// What is published about how fit this node is for promotion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Score {
    /// Nothing is known that would change it.
    Keep,
    /// It must not be promoted.
    None,
    Is(u32),
}

impl Score {
    /// Serves: whatever the others have, it stays.
    const SERVES: Self = Self::Is(10_100);
    /// Is Primary and serves nobody, since it reaches no majority: any other that may be promoted is better.
    const SERVES_NOBODY: Self = Self::Is(5);
    /// Has the newest data, and knows of all the others.
    const BEST: Self = Self::Is(10_000);
    /// Has the newest data, as far as a majority knows.
    const GOOD: Self = Self::Is(1_000);
}

/// What an action came to.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Outcome {
    code: Code,
    score: Score,
    reason: Option<String>,
    /// The node was fenced, and follows: the cluster is to give it its rights back.
    fenced: bool,
}

impl Outcome {
    fn new(code: Code, score: Score) -> Self {
        Self {
            code,
            score,
            reason: None,
            fenced: false,
        }
    }

    fn because(code: Code, score: Score, reason: impl Into<String>) -> Self {
        let mut outcome = Self::new(code, score);
        outcome.reason = Some(reason.into());
        outcome
    }

    fn text(&self) -> String {
        let score = match self.score {
            Score::Keep => "keep".to_owned(),
            Score::None => "none".to_owned(),
            Score::Is(score) => score.to_string(),
        };
        let mut text = format!("score {score}\n");
        if let Some(reason) = &self.reason {
            let words: Vec<_> = reason.split_whitespace().collect();
            text += &format!("reason {}\n", words.join(" "));
        }
        if self.fenced {
            text += "fenced yes\n";
        }
        text
    }
}

/// The actions that need to know something of `repld`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Action {
    Start,
    Stop,
    Monitor,
    Promote,
    Demote,
    Notify,
    ValidateAll,
    ReloadAgent,
}

/// One action of the resource agent ocf:replicator:volume.
#[derive(Debug, Args)]
pub(crate) struct OcfArgs {
    /// What to do
    action: Action,
    /// How long it may take
    #[arg(long, value_name = "MS", default_value_t = 20_000)]
    timeout_ms: u64,
    /// The resource was started
    #[arg(long)]
    started: bool,
    /// It was promoted
    #[arg(long)]
    promoted: bool,
}

/// What an action leaves for the agent itself and the operating system.
const MARGIN: Duration = Duration::from_millis(500);

/// The pause between attempts.
const PAUSE: Duration = Duration::from_millis(200);

/// A promotion that can not succeed does not fail sooner, so that the cluster does not spin.
const FAIL_PROMOTION_AFTER: Duration = Duration::from_secs(15);

/// How long an answer may take that only looks.
const LOOK: Duration = Duration::from_secs(5);

/// Runs an action; what to exit with.
pub(crate) fn run(config: &Path, node: Option<String>, args: &OcfArgs) -> u8 {
    let outcome = match (configured(config, node), args.action) {
        // What has no config here does not run here either, and stopping it is done.
        (Err(_), Action::Stop) => Outcome::new(Code::Success, Score::None),
        (Err(_), Action::Notify) => Outcome::new(Code::Success, Score::Keep),
        (Err(_), Action::Monitor) if !args.started => Outcome::new(Code::NotRunning, Score::None),
        (Err((code, reason)), _) => Outcome::because(code, Score::Keep, reason),
        (Ok(node), _) => Call::new(node, args).act(args.action),
    };
    // Who does not read the answer still gets the code.
    print(&outcome.text()).ok();
    outcome.code as u8
}

/// The node that is meant, or what to answer if there is none.
fn configured(path: &Path, node: Option<String>) -> Result<Node, (Code, String)> {
    if !path.exists() {
        let text = format!("there is no config file {} on this node", path.display());
        return Err((Code::NotInstalled, text));
    }
    let wrong = |error: Failure| (Code::Arguments, error.line());
    let config = Config::load(path).map_err(|error| wrong(error.into()))?;
    let name = node.map_or_else(host_name, Ok).map_err(wrong)?;
    let node = config.node(&name).map_err(|error| wrong(error.into()))?.1;
    Ok(node.clone())
}

/// Why `repld` gives no status.
enum Silent {
    /// It does not run.
    Dead,
    /// It does not answer in time.
    Hangs(String),
}

struct Call {
    node: Node,
    deadline: Instant,
    began: Instant,
    started: bool,
    promoted: bool,
}

impl Call {
    fn new(node: Node, args: &OcfArgs) -> Self {
        let began = Instant::now();
        let timeout = Duration::from_millis(args.timeout_ms).saturating_sub(MARGIN);
        Self {
            node,
            deadline: began + timeout.max(MARGIN),
            began,
            started: args.started,
            promoted: args.promoted,
        }
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    fn ask(&self, request: &Request, within: Duration) -> Result<Response, ClientError> {
        let mut client = Client::connect(&self.node.admin_socket())?;
        client.send(request)?;
        client.next(Some(within.min(self.left()).max(PAUSE)))
    }

    fn status(&self) -> Result<Box<Status>, Silent> {
        match self.ask(&Request::Status, LOOK) {
            Ok(Response::Status(status)) => Ok(status),
            Err(ClientError::Absent { .. } | ClientError::Closed) => Err(Silent::Dead),
            Ok(_) => Err(Silent::Hangs("repld answers something else".into())),
            Err(error) => Err(Silent::Hangs(error.to_string())),
        }
    }

    fn act(&self, action: Action) -> Outcome {
        match action {
            Action::Start => self.start(),
            Action::Stop => self.stop(),
            Action::Monitor => self.monitor(),
            Action::Promote => self.promote(),
            Action::Demote => self.demote(),
            // What it says of the state is for the score only.
            Action::Notify => Outcome::new(Code::Success, self.monitor().score),
            Action::ValidateAll => Outcome::new(Code::Success, Score::Keep),
            Action::ReloadAgent => match self.monitor() {
                outcome if outcome.code == Code::RunningPromoted => {
                    Outcome::new(Code::Success, outcome.score)
                }
                outcome => outcome,
            },
        }
    }

    fn monitor(&self) -> Outcome {
        match self.status() {
            Ok(status) => judge(&status, self.started),
            Err(Silent::Dead) => Outcome::new(Code::NotRunning, Score::Keep),
            // It may be Primary still, and serve nobody.
            Err(Silent::Hangs(why)) if self.promoted => {
                Outcome::because(Code::FailedPromoted, Score::Keep, why)
            }
            Err(Silent::Hangs(why)) => Outcome::because(Code::Generic, Score::Keep, why),
        }
    }

    /// Waits for `repld`, which begins as a Secondary. One that was promoted by hand is demoted.
    fn start(&self) -> Outcome {
        loop {
            let why = match self.status() {
                Ok(status) if status.role == Role::Primary => match self.demoted() {
                    Ok(()) => continue,
                    Err(why) => why,
                },
                Ok(status) => {
                    let outcome = judge(&status, true);
                    if outcome.code == Code::Success {
                        return outcome;
                    }
                    outcome.reason.unwrap_or_default()
                }
                Err(Silent::Dead) => "repld does not run on this node: start repld@RESOURCE".into(),
                Err(Silent::Hangs(why)) => why,
            };
            if self.left().is_zero() {
                return Outcome::because(Code::Generic, Score::Keep, why);
            }
            sleep(PAUSE.min(self.left()));
        }
    }

    /// Whatever is attached is dropped: what depends on it was stopped before.
    fn demoted(&self) -> Result<(), String> {
        match self.ask(&Request::Demote { force: true }, self.left()) {
            Ok(Response::Error(error)) => Err(error.message),
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Ends a reign; `repld` itself goes on voting and following. Always succeeds: one that does not run, or hangs, commits
    /// nothing once another is promoted, and begins as a Secondary.
    fn stop(&self) -> Outcome {
        let reason = match self.status() {
            Ok(status) if status.role == Role::Primary => self.demoted().err(),
            Ok(_) | Err(Silent::Dead) => None,
            Err(Silent::Hangs(why)) => Some(why),
        };
        let mut outcome = Outcome::new(Code::Success, Score::None);
        outcome.reason = reason;
        outcome
    }

    fn demote(&self) -> Outcome {
        match self.status() {
            Ok(status) if status.role == Role::Primary => match self.demoted() {
                Ok(()) => match self.status() {
                    Ok(status) => Outcome::new(Code::Success, judge(&status, true).score),
                    Err(_) => Outcome::new(Code::Success, Score::Keep),
                },
                Err(why) => Outcome::because(Code::Generic, Score::Keep, why),
            },
            Ok(status) => judge(&status, self.started),
            Err(Silent::Dead) => Outcome::new(Code::NotRunning, Score::Keep),
            Err(Silent::Hangs(why)) => Outcome::because(Code::Generic, Score::Keep, why),
        }
    }

    /// Tries as long as there is time: a dead Primary's lease has to be over, a live one may be about to be demoted.
    fn promote(&self) -> Outcome {
        let fail_at = self.deadline.min(self.began + FAIL_PROMOTION_AFTER);
        let why = loop {
            match self.status() {
                Ok(status) if judge(&status, true).code == Code::RunningPromoted => {
                    return judge(&status, true);
                }
                Ok(_) => {}
                Err(Silent::Dead) => return Outcome::new(Code::NotRunning, Score::Keep),
                Err(Silent::Hangs(why)) => {
                    return Outcome::because(Code::Generic, Score::Keep, why);
                }
            }
            // An attempt ends in time for the next look.
            let left = self.left().saturating_sub(2 * MARGIN);
            let timeout_ms = u64::try_from(left.as_millis()).unwrap_or(0);
            let request = Request::Promote {
                timeout_ms,
                force: false,
            };
            let (code, why) = match self.ask(&request, self.left()) {
                Ok(Response::Error(error)) => (Some(error.code), error.message),
                Ok(_) => continue,
                Err(error) => (None, error.to_string()),
            };
            if self.left() <= 2 * MARGIN || code == Some(ExitCode::Failed) {
                break why;
            }
            sleep(PAUSE);
        };
        sleep(fail_at.saturating_duration_since(Instant::now()));
        Outcome::because(Code::Generic, Score::Keep, why)
    }
}

/// What a status says of the resource.
fn judge(status: &Status, started: bool) -> Outcome {
    let failed = status
        .volumes
        .iter()
        .any(|volume| volume.disk_state == DiskState::Failed);
    if failed {
        let code = match status.role {
            Role::Primary => Code::FailedPromoted,
            _ if started => Code::Generic,
            _ => Code::NotRunning,
        };
        return Outcome::because(code, Score::None, status.health_reason.clone());
    }
    match status.role {
        Role::Primary => Outcome::new(Code::RunningPromoted, score(status)),
        _ if started => {
            let mut outcome = Outcome::new(Code::Success, score(status));
            outcome.fenced = status.fenced == Some(true);
            outcome
        }
        _ => Outcome::new(Code::NotRunning, Score::None),
    }
}

/// How fit a node is for promotion, by its data.
fn score(status: &Status) -> Score {
    if status.fenced == Some(true) {
        return Score::None;
    }
    let quorum = status.quorum == Some(true);
    if status.role == Role::Primary {
        return if quorum {
            Score::SERVES
        } else {
            Score::SERVES_NOBODY
        };
    }
    let up_to_date = |state: DiskState| state == DiskState::UpToDate;
    let whole =
        !status.volumes.is_empty() && status.volumes.iter().all(|v| up_to_date(v.disk_state));
    if !whole || !quorum {
        return Score::None;
    }
    let known = |connection: Connection| connection == Connection::Connected;
    if status.peers.iter().all(|peer| known(peer.connection)) {
        Score::BEST
    } else {
        Score::GOOD
    }
}

#[cfg(test)]
mod tests;
