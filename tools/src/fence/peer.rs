//! `repl-fence fence-peer`: the fence as a handler of DRBD's kind, for sites whose scripts call one. The peer comes in DRBD's
//! environment, the answer is one of DRBD's exit codes, 3 to 7.
//!
//! DRBD takes an exit code at its word. So each is given only for what was verified, also 5, which in DRBD is a guess: "not reached"
//! here means that a majority refuses the peer all the same, and that its lease is over. What is not verified is 1, which is no code
//! of such a handler: whoever called it stays suspended.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nbd_server::admin::{Connection, DiskState, PeerStatus, Role, Status};
use nbd_server::config::{Config, DEFAULT_FILE, Node};

use super::{fence, status};
use crate::Failure;

/// After three leases a connection that is silent is given up; one more to hear of it.
const SILENCE_LEASES: u32 = 4;
/// The pause between looks.
const PAUSE: Duration = Duration::from_millis(50);

/// What a handler of DRBD's kind answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Answer {
    /// Its data is no point in time: nobody can promote it.
    Inconsistent = 3,
    /// It is fenced, and knows it.
    Outdated = 4,
    /// It is fenced by a majority, and was not reached itself.
    NotReached = 5,
    /// It is Primary and lives: this node is the one to give way.
    IsPrimary = 6,
}

impl Answer {
    fn text(self) -> &'static str {
        match self {
            Self::Inconsistent => "its data is inconsistent: it can not be promoted",
            Self::Outdated => "it is fenced, and is not promoted before it is unfenced",
            Self::NotReached => {
                "it is fenced and commits nothing, though it was not reached itself"
            }
            Self::IsPrimary => "it is Primary and serves: this node is not to be promoted",
        }
    }
}

/// What DRBD's environment says of the peer: how it is called, or which number it has.
#[derive(Debug, PartialEq, Eq)]
enum PeerName {
    Is(String),
    Number(usize),
}

/// The environment of a handler.
struct Called<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Called<'_> {
    fn resource(&self) -> Option<String> {
        (self.0)("DRBD_RESOURCE").filter(|name| !name.is_empty())
    }

    /// By DRBD 9 the peer has a number, which has a name; before, only a name.
    fn peer(&self) -> Result<PeerName, Failure> {
        if let Some(number) = (self.0)("DRBD_PEER_NODE_ID") {
            if let Some(name) = (self.0)(&format!("DRBD_NODE_ID_{number}")) {
                return Ok(PeerName::Is(name));
            }
            if let Ok(number) = number.parse() {
                return Ok(PeerName::Number(number));
            }
        }
        let name = (self.0)("DRBD_PEER").or_else(|| (self.0)("DRBD_PEERS"));
        match name {
            Some(name) if !name.is_empty() && !name.contains(' ') => Ok(PeerName::Is(name)),
            _ => Err(Failure::Usage(
                "there is no DRBD_PEER_NODE_ID with DRBD_NODE_ID_n, and no DRBD_PEER, in the environment: this is a handler, to be \
                 called by who lost a peer"
                    .to_owned(),
            )),
        }
    }
}

/// The config file: that of the resource, unless another one was named.
fn config_file(named: &Path, called: &Called<'_>) -> PathBuf {
    let own = called
        .resource()
        .map(|resource| PathBuf::from(format!("/etc/replicator/{resource}.toml")));
    match own {
        Some(own) if named == Path::new(DEFAULT_FILE) && own.exists() => own,
        _ => named.to_owned(),
    }
}

/// Fences the peer that the environment names.
pub(super) fn run(
    config: &Path,
    node: Option<String>,
    timeout: u64,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Answer, Failure> {
    let called = Called(environment);
    let config = Config::load(&config_file(config, &called))?;
    if let Some(resource) = called.resource().filter(|name| *name != config.resource) {
        return Err(Failure::Usage(format!(
            "DRBD_RESOURCE is {resource}, and the config is that of {}: name the other one with --config",
            config.resource
        )));
    }
    let me = (environment("DRBD_MY_NODE_ID"))
        .and_then(|number| environment(&format!("DRBD_NODE_ID_{number}")));
    let name = match node.or(me) {
        Some(name) => name,
        None => crate::cli::host_name()?,
    };
    let (_, node) = config.node(&name)?;
    let target = match called.peer()? {
        PeerName::Is(name) => name,
        PeerName::Number(number) => match config.nodes.get(number) {
            Some(node) => node.name.clone(),
            None => {
                return Err(Failure::Usage(format!(
                    "DRBD_PEER_NODE_ID is {number}, and there are {} nodes",
                    config.nodes.len()
                )));
            }
        },
    };
    let answer = make_sure(&config, node, &target, timeout)?;
    eprintln!("repl-fence: {target}: {}", answer.text());
    Ok(answer)
}

fn peer<'a>(status: &'a Status, name: &str) -> Option<&'a PeerStatus> {
    status.peers.iter().find(|peer| peer.name == name)
}

fn make_sure(config: &Config, node: &Node, target: &str, timeout: u64) -> Result<Answer, Failure> {
    // What hangs stays connected for a while: only who is still connected after that lives.
    let began = Instant::now();
    loop {
        let status = status(node)?;
        let Some(answer) = peer(&status, target).and_then(without_fence) else {
            break;
        };
        let lease = Duration::from_millis(status.limits.lease_ms.into());
        if began.elapsed() >= SILENCE_LEASES * lease {
            return Ok(answer);
        }
        sleep(PAUSE);
    }
    fence(config, node, target, timeout)?;
    let after = status(node)?;
    let reached = peer(&after, target).is_some_and(|p| p.connection == Connection::Connected);
    Ok(if reached {
        Answer::Outdated
    } else {
        Answer::NotReached
    })
}

/// What a peer is that answers, and need not or must not be fenced.
fn without_fence(peer: &PeerStatus) -> Option<Answer> {
    if peer.connection != Connection::Connected {
        return None;
    }
    match (peer.role, peer.disk_state) {
        (Role::Primary, _) => Some(Answer::IsPrimary),
        (_, DiskState::Inconsistent) => Some(Answer::Inconsistent),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer_by(lines: &[(&str, &str)]) -> Result<PeerName, String> {
        let environment = |key: &str| {
            let found = lines.iter().find(|(k, _)| *k == key);
            found.map(|(_, value)| (*value).to_owned())
        };
        Called(&environment)
            .peer()
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_peer_is_found_as_each_drbd_names_it() {
        let name = |name: &str| Ok(PeerName::Is(name.to_owned()));
        let nine = [
            ("DRBD_PEER_NODE_ID", "2"),
            ("DRBD_NODE_ID_1", "pbx-b"),
            ("DRBD_NODE_ID_2", "pbx-c"),
        ];
        assert_eq!(peer_by(&nine), name("pbx-c"));
        assert_eq!(
            peer_by(&[("DRBD_PEER_NODE_ID", "1")]),
            Ok(PeerName::Number(1))
        );
        assert_eq!(peer_by(&[("DRBD_PEER", "pbx-b")]), name("pbx-b"));
        assert_eq!(peer_by(&[("DRBD_PEERS", "pbx-b")]), name("pbx-b"));
        for nobody in [
            &[][..],
            &[("DRBD_PEERS", "pbx-b pbx-c")],
            &[("DRBD_PEER", "")],
            &[("DRBD_PEER_NODE_ID", "x")],
        ] {
            assert!(peer_by(nobody).is_err(), "{nobody:?}");
        }
    }
}
