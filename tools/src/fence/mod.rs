//! `repl-fence`: makes sure that a node commits nothing more, and lets it go again.
//!
//! It decides nothing: `repld` of the node that it talks to does, with a majority of the voters (protocol F1). It says yes when
//! that did, and else what could not be verified. Under the name `fence_repl` it speaks the FenceAgentAPI, for Pacemaker.

mod agent;
mod peer;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{CommandFactory, Parser, Subcommand};
use nbd_server::admin::client::Client;
use nbd_server::admin::{Connection, PeerStatus, Request, Response, Role, Status};
use nbd_server::config::{Config, DEFAULT_FILE, Node};

use crate::cli::{host_name, usage_text};
use crate::output::print;
use crate::{Failure, output};

/// Verified.
const VERIFIED: u8 = 0;
/// Not verified; the message says what.
const NOT_VERIFIED: u8 = 1;
/// The command line or the config makes no sense.
const USAGE: u8 = 2;

/// How long the new Primary's name may take to be known here, once it serves.
const NEWS_TIMEOUT: Duration = Duration::from_secs(3);

/// Fences nodes of a replicated disk: what is fenced commits nothing, and is not promoted
#[derive(Debug, Parser)]
#[command(name = "repl-fence", version, about, after_help = EXIT_CODES)]
pub struct Cli {
    /// The config file, the same on every node
    #[arg(long, global = true, value_name = "FILE", default_value = DEFAULT_FILE)]
    config: PathBuf,
    /// The node whose repld is asked to do it [default: this host's name]
    #[arg(long, global = true, value_name = "NAME")]
    node: Option<String>,
    #[command(subcommand)]
    verb: Verb,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done, and verified
  1  not verified; the message says what
  2  usage or config error
fence-peer has codes of its own, see repl-fence fence-peer --help.

Under the name fence_repl it is a fence agent for Pacemaker, which takes its options from stdin.";

#[derive(Debug, Subcommand)]
enum Verb {
    /// Makes sure that NODE commits nothing more, whether it is dead, frozen, cut off, or alive and busy
    ///
    /// A majority of the voters durably refuses it, and its lease is over when this answers. If it can still be reached, it stops
    /// serving at once. It remains a Secondary and is given the data, but is not promoted before it is unfenced. What it does not
    /// stop is what runs on that host besides.
    Fence {
        /// The node's name
        #[arg(value_name = "NODE")]
        target: String,
        /// NODE is off, for certain: where two data nodes are all there is, that stands for its vote
        ///
        /// Only for who has cut its power, and knows that it is cut. If NODE still runs, what its clients write is lost.
        #[arg(long)]
        confirmed_off: bool,
        /// How long to try
        #[arg(long, value_name = "SECS", default_value_t = 30,
              value_parser = clap::value_parser!(u64).range(1..=86_400))]
        timeout: u64,
    },
    /// Lets NODE be promoted again
    Unfence {
        /// The node's name
        #[arg(value_name = "NODE")]
        target: String,
        /// How long to try
        #[arg(long, value_name = "SECS", default_value_t = 30,
              value_parser = clap::value_parser!(u64).range(1..=86_400))]
        timeout: u64,
    },
    /// Shows who is fenced; 1 if this node reaches no majority, since what it knows may be old then
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// As a fence-peer handler of DRBD's kind: fences the peer that the environment names
    ///
    /// The peer is DRBD_NODE_ID_n with n from DRBD_PEER_NODE_ID, or DRBD_PEER; the config is that of DRBD_RESOURCE in /etc/replicator
    /// unless it is named. Exit codes: 3 its data is inconsistent, 4 it is fenced and knows it, 5 it is fenced by a majority and was
    /// not reached itself, 6 it is Primary and lives, 1 it could not be verified, 2 usage or config error. What is fenced is let go
    /// with repl-fence unfence.
    FencePeer {
        /// How long to try
        #[arg(long, value_name = "SECS", default_value_t = 30,
              value_parser = clap::value_parser!(u64).range(1..=86_400))]
        timeout: u64,
    },
    /// Fences the present Primary, promotes the node with the best data, and says which that is
    Failover {
        /// How long to try
        #[arg(long, value_name = "SECS", default_value_t = 30,
              value_parser = clap::value_parser!(u64).range(1..=86_400))]
        timeout: u64,
    },
}

/// Runs a command line, and says what to exit with.
pub fn main(args: impl IntoIterator<Item = OsString>) -> u8 {
    let args: Vec<OsString> = args.into_iter().collect();
    let name = args
        .first()
        .and_then(|arg| Path::new(arg).file_name()?.to_str());
    if name == Some(agent::NAME) {
        return agent::main(&args[1..]);
    }
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            let hint = "no verb is given; write repl-fence VERB, for example repl-fence status";
            let text = usage_text(&error, hint);
            eprintln!("repl-fence: {text}; see repl-fence --help");
            return USAGE;
        }
        Err(help) => {
            return match print(&help.render().to_string()) {
                Ok(_) => VERIFIED,
                Err(_) => NOT_VERIFIED,
            };
        }
    };
    if let Verb::FencePeer { timeout } = cli.verb {
        let environment = |key: &str| std::env::var(key).ok();
        return match peer::run(&cli.config, cli.node, timeout, &environment) {
            Ok(answer) => answer as u8,
            Err(failure) => {
                eprintln!("repl-fence: {}", failure.line());
                exit_code(&failure)
            }
        };
    }
    match run(cli) {
        Ok(()) => VERIFIED,
        Err(failure) => {
            eprintln!("repl-fence: {}", failure.line());
            exit_code(&failure)
        }
    }
}

/// The whole command line, for completions and man pages.
pub fn command() -> clap::Command {
    Cli::command()
}

fn exit_code(failure: &Failure) -> u8 {
    match failure {
        Failure::Usage(_) | Failure::Config(_) | Failure::NoSuchPeer { .. } => USAGE,
        _ => NOT_VERIFIED,
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let config = Config::load(&cli.config)?;
    let name = cli.node.map_or_else(host_name, Ok)?;
    let (_, node) = config.node(&name)?;
    match cli.verb {
        Verb::Fence {
            target,
            confirmed_off,
            timeout,
        } => {
            if confirmed_off {
                let peer = peer_of(&config, node, &target)?;
                send(node, &Request::ConfirmStopped { peer })?;
            }
            fence(&config, node, &target, timeout)?;
            say(&format!(
                "{target} is fenced: it commits nothing, and is not promoted before repl-fence unfence {target}\n"
            ))
        }
        Verb::Unfence { target, timeout } => {
            unfence(&config, node, &target, timeout)?;
            say(&format!(
                "{target} is not fenced: it may be promoted again\n"
            ))
        }
        Verb::Status { json } => show_status(node, json),
        Verb::Failover { timeout } => failover(node, timeout),
        // Its answers are codes of its own.
        Verb::FencePeer { .. } => Ok(()),
    }
}

fn say(text: &str) -> Result<(), Failure> {
    print(text).map(drop)
}

fn named<'a>(config: &'a Config, node: &Node, name: &str) -> Result<&'a Node, Failure> {
    let found = config.nodes.iter().find(|other| other.name == name);
    found.ok_or_else(|| {
        let known: Vec<_> = config.nodes.iter().map(|n| n.name.as_str()).collect();
        Failure::NoSuchPeer {
            name: name.to_owned(),
            node: node.name.clone(),
            known: known.join(", "),
        }
    })
}

/// Another node than the one that is asked.
fn peer_of(config: &Config, node: &Node, target: &str) -> Result<String, Failure> {
    let peer = named(config, node, target)?.name.clone();
    if peer == node.name {
        return Err(Failure::Failed(format!(
            "{peer} can not fence itself: run repl-fence on another node, or with --node for another one's repld here"
        )));
    }
    Ok(peer)
}

fn fence(config: &Config, node: &Node, target: &str, timeout: u64) -> Result<(), Failure> {
    let peer = peer_of(config, node, target)?;
    let timeout_ms = timeout * 1000;
    send(node, &Request::Fence { peer, timeout_ms })
}

fn unfence(config: &Config, node: &Node, target: &str, timeout: u64) -> Result<(), Failure> {
    let peer = named(config, node, target)?.name.clone();
    let timeout_ms = timeout * 1000;
    send(node, &Request::Unfence { peer, timeout_ms })
}

fn send(node: &Node, request: &Request) -> Result<(), Failure> {
    match Client::connect(&node.admin_socket())?.call(request)? {
        Response::Done { .. } => Ok(()),
        Response::Error(error) => Err(error.into()),
        Response::Status(_) | Response::Event(_) => Err(Failure::UnexpectedAnswer),
    }
}

/// What a node's `repld` knows.
fn status(node: &Node) -> Result<Box<Status>, Failure> {
    match Client::connect(&node.admin_socket())?.call(&Request::Status)? {
        Response::Status(status) => Ok(status),
        Response::Error(error) => Err(error.into()),
        _ => Err(Failure::UnexpectedAnswer),
    }
}

/// Who is fenced: this node first, then its peers.
fn fenced(status: &Status) -> impl Iterator<Item = (&str, Option<bool>)> {
    let own = std::iter::once((status.node.as_str(), status.fenced));
    own.chain(status.peers.iter().map(|p| (p.name.as_str(), p.fenced)))
}

fn show_status(node: &Node, json: bool) -> Result<(), Failure> {
    let status = status(node)?;
    let sure = status.quorum == Some(true);
    if json {
        let nodes: serde_json::Map<_, _> = fenced(&status)
            .map(|(name, fenced)| (name.to_owned(), fenced.into()))
            .collect();
        let value = serde_json::json!({
            "node": status.node, "primary": status.primary, "epoch": status.epoch,
            "quorum": status.quorum, "fenced": nodes,
        });
        say(&(output::to_json(&value, true)? + "\n"))?;
    } else {
        let width = fenced(&status).map(|(name, _)| name.len()).max();
        let width = width.unwrap_or(0).max(4);
        let mut text = format!(
            "{:width$}  {:10}  {:8}  CONNECTION\n",
            "NODE", "ROLE", "FENCED"
        );
        let own = (
            status.node.as_str(),
            status.role,
            status.fenced,
            "this node",
        );
        let peer = |p: &PeerStatus| {
            let connection = match p.connection {
                Connection::Connected => "Connected",
                other => other.as_str(),
            };
            (p.name.clone(), p.role, p.fenced, connection.to_owned())
        };
        let peers: Vec<_> = status.peers.iter().map(peer).collect();
        let rows = std::iter::once((own.0, own.1, own.2, own.3)).chain(
            peers
                .iter()
                .map(|(n, r, f, c)| (n.as_str(), *r, *f, c.as_str())),
        );
        for (name, role, fenced, connection) in rows {
            let role = match (role, status.primary.as_deref()) {
                (Role::Secondary, Some(primary)) if primary == name => Role::Primary,
                (role, _) => role,
            };
            let fenced = match fenced {
                Some(true) => "FENCED",
                Some(false) => "no",
                None => "unknown",
            };
            text += &format!("{name:width$}  {role:10}  {fenced:8}  {connection}\n");
        }
        say(&text)?;
    }
    if sure {
        return Ok(());
    }
    Err(Failure::Failed(format!(
        "{} reaches no majority: who is fenced may have changed since it did",
        status.node
    )))
}

fn failover(node: &Node, timeout: u64) -> Result<(), Failure> {
    let before = status(node)?;
    let timeout_ms = timeout * 1000;
    send(node, &Request::Failover { timeout_ms })?;
    // It serves; the name of it comes with its next word.
    let deadline = Instant::now() + NEWS_TIMEOUT;
    let after = loop {
        let after = status(node)?;
        let news = after.primary.is_some() && after.epoch > before.epoch;
        if news || Instant::now() >= deadline {
            break after;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let anew = fenced(&after).filter(|(name, now)| {
        let was = fenced(&before).find(|(n, _)| n == name);
        *now == Some(true) && was.is_none_or(|(_, was)| was != Some(true))
    });
    let mut said: Vec<String> = anew.map(|(name, _)| format!("{name} is fenced")).collect();
    said.push(match &after.primary {
        Some(primary) => format!("{primary} is Primary of epoch {}", after.epoch),
        None => "another node was promoted, and is not heard of here any more".to_owned(),
    });
    let done = after.primary.is_some();
    say(&(said.join("; ") + "\n"))?;
    if done {
        return Ok(());
    }
    Err(Failure::Failed("the new Primary is gone again".to_owned()))
}

#[cfg(test)]
mod tests;
