//! The command line of `replctl`, and what each verb does.

mod ask;
mod confirm;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand};
use nbd_server::admin::{ExitCode, Request};
use nbd_server::config::{Config, DEFAULT_FILE, Node};

use crate::attach::{self, AttachArgs, DetachArgs};
use crate::bar::{Waiting, Watcher};
use crate::demo::DemoArgs;
use crate::ocf::{self, OcfArgs};
use crate::output::print;
use crate::{Failure, check, create, demo, dump, failover, verify};

use ask::{invalidate, send, send_under, show_events, show_status};

/// Operates a node of a replicated disk.
#[derive(Debug, Parser)]
#[command(name = "replctl", version, about, after_help = EXIT_CODES)]
pub struct Cli {
    /// The config file, the same on every node
    #[arg(long, global = true, value_name = "FILE", default_value = DEFAULT_FILE)]
    config: PathBuf,
    /// The node whose repld is meant [default: this host's name]
    #[arg(long, global = true, value_name = "NAME")]
    node: Option<String>,
    #[command(subcommand)]
    verb: Verb,
}

const EXIT_CODES: &str = "\
Exit codes:
  0   done
  1   failed; the message says why
  2   usage or config error
  3   repld of this node can not be reached
  10  no quorum: a majority of voters can not be reached, or did not promise
  11  another node is Primary
  12  in use: an NBD client is attached
  17  no access to up-to-date data";

#[derive(Debug, Subcommand)]
enum Verb {
    /// Looks at config, directories, O_DIRECT, io_uring, limits and peers: what is fine, what is not, what to do
    ///
    /// Before anything is formatted; later too, also while repld runs. Changes nothing. Warnings are no failure. Limits are
    /// those of the shell that it runs in, not those of a systemd unit.
    Check,
    /// Formats this node's journal, metadata and stores, which all read as zeroes afterwards
    ///
    /// Refuses to touch an existing one, or a device that is not blank, unless --wipe is given. Makes the directories.
    /// repld need not run, and never may while this runs.
    Create {
        /// Destroy what is there: an existing node's data, or what is on the devices
        #[arg(long)]
        wipe: bool,
        /// Keep the stores that are there: an image carried by hand, of which only what differs has to come
        ///
        /// For a node that joins a resource that exists, not for the first promotion of one. The files or devices of the volumes are
        /// read once, and extended where they are too short. The node is Inconsistent until replctl replace on the Primary has
        /// admitted it and its resync has ended.
        #[arg(long)]
        seed: bool,
    },
    /// Shows this node's view of the resource, the volumes, the peers
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
        /// Again at every change, until interrupted; with --json a line each
        #[arg(long)]
        watch: bool,
    },
    /// Makes this node Primary; answers when the exports serve I/O
    Promote(PromoteArgs),
    /// Stops serving; refuses while a client is attached
    Demote {
        /// Also while a client is attached
        #[arg(long)]
        force: bool,
    },
    /// Holds writes and brings the stores up to date, so that they can be copied; reads go on
    ///
    /// Answers when this node's stores, and those of every peer that keeps up, are the raw images of what was acknowledged;
    /// they stay so until resume-io. Only the Primary can. Where writes stand still for a snapshot, keep it short.
    SuspendIo {
        /// How long to try; then writes go on
        #[arg(long, value_name = "SECS", default_value_t = 10,
              value_parser = clap::value_parser!(u64).range(0..=86_400))]
        timeout: u64,
    },
    /// Lets writes go on after suspend-io
    ///
    /// Fails if they were not held all the time, since this node ceased to be Primary: what was copied is no snapshot then.
    ResumeIo,
    /// Reads all blocks of all data nodes and compares them by their checksums, while I/O goes on
    ///
    /// Answers 0 if all copies are sound and equal, or were made so; 1 if something is left, or a node was away. On any data node; one
    /// at a time. It goes on when this command is interrupted: --stop ends it.
    Verify {
        /// Mend what is found
        #[arg(long)]
        repair: bool,
        /// How fast at most, for example 50MiB a second; else as fast as clients leave room for
        #[arg(long, value_name = "SIZE", value_parser = rate)]
        rate: Option<u64>,
        /// The result as JSON
        #[arg(long)]
        json: bool,
        /// Only on the Primary; elsewhere do nothing and answer 0, for timers that run on all nodes
        #[arg(long)]
        if_primary: bool,
        /// End the one that this node runs
        #[arg(long, conflicts_with_all = ["repair", "rate", "json", "if_primary"])]
        stop: bool,
    },
    /// Restores replication with a peer
    Connect {
        /// The peer's name
        peer: String,
    },
    /// Ends replication with a peer; says so when it costs the quorum, and does it
    Disconnect {
        /// The peer's name
        peer: String,
    },
    /// Takes a node out of the members and the voters until it is returned; says what redundancy is left
    ///
    /// Only the Primary can. Refused where the nodes that are left would be no majority.
    Drop {
        /// The node's name
        peer: String,
        /// How long to try
        #[arg(long, value_name = "SECS", default_value_t = 30,
              value_parser = clap::value_parser!(u64).range(0..=86_400))]
        timeout: u64,
    },
    /// Takes a node that was dropped back, with the disks that it had; answers when it counts
    ///
    /// Only the Primary can. If the node has to catch up for longer, that goes on and it is admitted by itself.
    Return {
        /// The node's name
        peer: String,
        /// How long to wait
        #[arg(long, value_name = "SECS", default_value_t = 30,
              value_parser = clap::value_parser!(u64).range(0..=86_400))]
        timeout: u64,
    },
    /// Admits a node that was created anew, or is new, in place of whatever counted under its name; answers when it counts
    ///
    /// Only the Primary can. What the node had on its former disks counts for nothing from then on. Reads the node's name as one
    /// line from stdin, to confirm it. If the node has to catch up for longer, that goes on and it is admitted by itself.
    Replace {
        /// The node's name
        peer: String,
        /// How long to wait
        #[arg(long, value_name = "SECS", default_value_t = 30,
              value_parser = clap::value_parser!(u64).range(0..=86_400))]
        timeout: u64,
    },
    /// Discards this node's data and fetches it anew; answers when it is UpToDate again
    ///
    /// On a Secondary. The Primary first does without this node, for good: refused (10) where the others need its copy. Then it comes
    /// back as a new incarnation, by itself, and is given what differs from what its stores have. Where no Primary is connected it is
    /// refused (17), unless forced; then, and where the Primary changes meanwhile, replctl replace on the Primary admits it. This is
    /// also how a node gives up the data of a history that others left by a forced promotion. Reads the resource's name as one line
    /// from stdin, to confirm it. If the resync takes longer, it goes on by itself.
    Invalidate {
        /// Also where no Primary is connected, and nobody is known to have this data
        #[arg(long)]
        force: bool,
        /// How long to wait
        #[arg(long, value_name = "SECS", default_value_t = 30,
              value_parser = clap::value_parser!(u64).range(0..=86_400))]
        timeout: u64,
    },
    /// Takes your word for it that a node is off, so that it is not waited for
    ///
    /// For two data nodes alone, which stop when one is lost: on the Primary, it goes on without the other; on the other one, it can
    /// be promoted after the Primary died, if it has all data. The node must be off for certain, and stay off until this one went on:
    /// pull its plug. The word is void as soon as the node is heard of, and when repld restarts. Reads the node's name as one line
    /// from stdin, to confirm it.
    ConfirmStopped {
        /// The name of the node that is off
        peer: String,
    },
    /// Gives a volume another size, on all data nodes or on none; answers when clients can have it
    ///
    /// Only the Primary can, and only while all data nodes that count are connected. What a volume gets reads as zeroes. Clients
    /// that are attached can use it at once, if they learn of it; see the README for what the kernel's client needs. A smaller size
    /// needs --force, nothing attached to the volume, and the volume's name as one line on stdin: what is behind the new end is lost.
    /// Write the new size to the config file on every node afterwards.
    Resize {
        /// The volume's name
        volume: String,
        /// The size: bytes, or a number with KiB, MiB, GiB or TiB
        size: String,
        /// Also smaller than it is
        #[arg(long)]
        force: bool,
        /// How long to try
        #[arg(long, value_name = "SECS", default_value_t = 30,
              value_parser = clap::value_parser!(u64).range(0..=86_400))]
        timeout: u64,
    },
    /// Adds a volume to the running resource, on all data nodes or on none; answers when it can be attached
    ///
    /// Only the Primary can, and only while all data nodes that count are connected. Write the volume to the config file of every
    /// node first, with the same size: each reads its own file again for it. Its store must be blank, or not be there.
    AddVolume {
        /// The volume's name
        volume: String,
        /// How long to try
        #[arg(long, value_name = "SECS", default_value_t = 30,
              value_parser = clap::value_parser!(u64).range(0..=86_400))]
        timeout: u64,
    },
    /// Removes a volume from the running resource, on all data nodes or on none
    ///
    /// Only the Primary can, and only with nothing attached to the volume. Reads its name as one line from stdin, to confirm it. A
    /// store that is a file is kept beside its former place, under a name that ends in .removed; a device is left as it is. Remove the
    /// volume from the config file on every node afterwards.
    RemoveVolume {
        /// The volume's name
        volume: String,
        /// How long to try
        #[arg(long, value_name = "SECS", default_value_t = 30,
              value_parser = clap::value_parser!(u64).range(0..=86_400))]
        timeout: u64,
    },
    /// Shows the present state, then every change, a line each
    Events {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Attaches a volume's export as a block device; answers when the device is usable
    ///
    /// With the kernel's client for /dev/nbdN; else nbdfuse makes a file of the export, a loop device is laid over it, and DEVICE is a
    /// link to that. On the Primary, as root. If it is attached already, that is fine.
    Attach(AttachArgs),
    /// Takes a device that was attached away, also when the server is gone
    ///
    /// Refused while a file system on it is mounted, unless forced. If nothing is attached, that is fine.
    Detach(DetachArgs),
    /// Shows what is on this node's disks, without repld, for the day when it does not start
    ///
    /// Reads only. Each batch of the journal is a line: the byte where it begins, its records as EPOCH.FIRST..LAST, and what
    /// they do to which bytes of which volume. Damage is named with file and byte; then the exit code is 1. Of the checksums there is
    /// a line for each volume; --sums --verify also reads the stores, all of them, and names the blocks that are not as recorded.
    Dump {
        /// Only the journal
        #[arg(long, conflicts_with_all = ["meta", "sums"])]
        journal: bool,
        /// Only the metadata
        #[arg(long, conflicts_with = "sums")]
        meta: bool,
        /// Only the checksums
        #[arg(long)]
        sums: bool,
        /// Compares the stores with their checksums
        #[arg(long, requires = "sums")]
        verify: bool,
        /// As JSON, an object a line
        #[arg(long)]
        json: bool,
    },
    /// Keeps the service of [failover] running where the resource is Primary, and promotes a node when none is
    ///
    /// For sites without a cluster manager; one of these runs on every data node (replicator-failover@.service). When the lease of a
    /// lost Primary is over, the node with the newest data is promoted and starts the service. It is stopped before the lease of
    /// its node ends, so that it runs on one node at a time. SIGTERM stops the service and demotes the node, which leaves it to
    /// another one. The first promotion of a resource is not its work, and it does nothing without a majority.
    AutoFailover,
    /// An action of the resource agent ocf:replicator:volume, for its shell
    #[command(hide = true)]
    Ocf(OcfArgs),
    /// Shows the main job with three nodes on loopback: kills the Primary, promotes, checks every acknowledged write
    Demo(DemoArgs),
}

#[derive(Debug, Args)]
struct PromoteArgs {
    /// How long to try
    #[arg(long, value_name = "SECS", default_value_t = 30,
          value_parser = clap::value_parser!(u64).range(0..=86_400))]
    timeout: u64,
    /// Only for disasters: alone, with whatever data this node has, in a history of its own
    ///
    /// For the day on which the other nodes are gone for good, or for too long. They must be stopped, and what they hold beyond this
    /// node's data is not in it. They never exchange data with this node again, until theirs is given up. Reads the resource's name
    /// as one line from stdin, to confirm it.
    #[arg(long)]
    force: bool,
}

/// Runs a command line, prints what went wrong, and says what to exit with.
pub fn main(args: impl IntoIterator<Item = OsString>) -> u8 {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            let hint = "no verb is given; write replctl VERB, for example replctl status";
            let failure = Failure::Usage(usage_text(&error, hint));
            eprintln!("replctl: {}", failure.line());
            return failure.exit_code().into();
        }
        Err(help) => {
            return match print(&help.render().to_string()) {
                Ok(_) => ExitCode::Done.into(),
                Err(failure) => failure.exit_code().into(),
            };
        }
    };
    if let Verb::Ocf(args) = &cli.verb {
        return ocf::run(&cli.config, cli.node, args);
    }
    match run(cli) {
        Ok(()) => ExitCode::Done.into(),
        Err(failure) => {
            eprintln!("replctl: {}", failure.line());
            failure.exit_code().into()
        }
    }
}

/// The whole command line, for completions and man pages.
pub fn command() -> clap::Command {
    Cli::command()
}

/// What clap says, without its usage and in one line; the hint is for a line without a verb.
pub(crate) fn usage_text(error: &clap::Error, hint: &str) -> String {
    if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return hint.to_owned();
    }
    let text = error.render().to_string();
    let lines = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:"));
    let lines: Vec<_> = lines.filter(|line| !line.is_empty()).collect();
    lines.join(" ").trim_start_matches("error: ").to_owned()
}

fn run(cli: Cli) -> Result<(), Failure> {
    match cli.verb {
        Verb::Demo(args) => return demo::run(args),
        Verb::Attach(args) => return attach::attach(&cli.config, cli.node, &args),
        Verb::Detach(args) => return attach::detach(&args),
        _ => {}
    }
    let config = Config::load(&cli.config)?;
    let name = cli.node.map_or_else(host_name, Ok)?;
    let (_, node) = config.node(&name)?;
    match cli.verb {
        Verb::Check => return check::check(&config, node),
        Verb::AutoFailover => return failover::run(&config, node),
        Verb::Create { wipe, seed } => create::create(&config, node, wipe, seed)?,
        Verb::Invalidate { force, timeout } => {
            confirm::invalidate(&config.resource, &node.name)?;
            return invalidate(node, force, timeout * 1000);
        }
        Verb::Status { json, watch } => return show_status(node, json, watch),
        Verb::Promote(PromoteArgs { timeout, force }) => {
            if force {
                confirm::force(&config.resource, &node.name)?;
            }
            let bar = Waiting::start("promote", timeout * 1000);
            return send_under(
                bar,
                node,
                &Request::Promote {
                    timeout_ms: timeout * 1000,
                    force,
                },
            );
        }
        Verb::Demote { force } => return send(node, &Request::Demote { force }),
        Verb::SuspendIo { timeout } => {
            let timeout_ms = timeout * 1000;
            let bar = Waiting::start("suspend-io", timeout_ms);
            return send_under(bar, node, &Request::SuspendIo { timeout_ms });
        }
        Verb::ResumeIo => return send(node, &Request::ResumeIo),
        Verb::Verify { stop: true, .. } => return send(node, &Request::StopVerify),
        Verb::Verify {
            repair,
            rate,
            json,
            if_primary,
            ..
        } => {
            let wanted = verify::Wanted {
                repair,
                bytes_per_second: rate.unwrap_or(0),
                json,
                if_primary,
            };
            return verify::verify(node, &wanted);
        }
        Verb::Connect { peer } => {
            let peer = known_peer(&config, node, peer)?;
            return send(node, &Request::Connect { peer });
        }
        Verb::Disconnect { peer } => {
            let peer = known_peer(&config, node, peer)?;
            return send(node, &Request::Disconnect { peer });
        }
        Verb::Drop { peer, timeout } => {
            let peer = known_peer(&config, node, peer)?;
            let timeout_ms = timeout * 1000;
            let bar = Waiting::start("drop", timeout_ms);
            return send_under(bar, node, &Request::Drop { peer, timeout_ms });
        }
        Verb::Return { peer, timeout } => {
            let peer = known_peer(&config, node, peer)?;
            let timeout_ms = timeout * 1000;
            let bar = Watcher::start(node, &peer);
            return send_under(bar, node, &Request::Return { peer, timeout_ms });
        }
        Verb::Replace { peer, timeout } => {
            let peer = known_peer(&config, node, peer)?;
            confirm::replace(&peer)?;
            let timeout_ms = timeout * 1000;
            let bar = Watcher::start(node, &peer);
            return send_under(bar, node, &Request::Replace { peer, timeout_ms });
        }
        Verb::ConfirmStopped { peer } => {
            let peer = known_peer(&config, node, peer)?;
            confirm::stopped(&peer)?;
            return send(node, &Request::ConfirmStopped { peer });
        }
        Verb::Resize {
            volume,
            size,
            force,
            timeout,
        } => {
            let size = size_of(&size)?;
            if force {
                confirm::volume(&volume, "loses what is behind its new end, on all nodes")?;
            }
            let bar = Waiting::start("resize", timeout * 1000);
            return send_under(
                bar,
                node,
                &Request::Resize {
                    volume,
                    size,
                    force,
                    timeout_ms: timeout * 1000,
                },
            );
        }
        Verb::AddVolume { volume, timeout } => {
            let timeout_ms = timeout * 1000;
            let bar = Waiting::start("add-volume", timeout_ms);
            return send_under(bar, node, &Request::AddVolume { volume, timeout_ms });
        }
        Verb::RemoveVolume { volume, timeout } => {
            confirm::volume(&volume, "is removed from all nodes")?;
            let timeout_ms = timeout * 1000;
            let bar = Waiting::start("remove-volume", timeout_ms);
            return send_under(bar, node, &Request::RemoveVolume { volume, timeout_ms });
        }
        Verb::Dump {
            journal,
            meta,
            sums,
            verify,
            json,
        } => {
            let wanted = dump::Wanted {
                meta: !journal && !sums,
                journal: !meta && !sums,
                sums: !meta && !journal,
                verify,
                json,
            };
            return dump::dump(&config, node, wanted);
        }
        Verb::Events { json } => return show_events(node, json),
        Verb::Demo(_) | Verb::Attach(_) | Verb::Detach(_) | Verb::Ocf(_) => {}
    }
    Ok(())
}

/// The name that a node has if nothing else is said.
pub(crate) fn host_name() -> Result<String, Failure> {
    let name = nix::unistd::gethostname()
        .map_err(|errno| Failure::Usage(format!("no host name ({errno}): write --node NAME")))?;
    Ok(name.to_string_lossy().into_owned())
}

/// A speed, in bytes a second.
fn rate(text: &str) -> Result<u64, String> {
    nbd_server::config::size::parse(text).map_err(|error| error.to_string())
}

/// A size as in the config file.
fn size_of(text: &str) -> Result<u64, Failure> {
    nbd_server::config::size::parse(text).map_err(|why| Failure::Usage(why.to_string()))
}

fn known_peer(config: &Config, node: &Node, name: String) -> Result<String, Failure> {
    let peers = || config.nodes.iter().filter(|other| other.name != node.name);
    if peers().any(|peer| peer.name == name) {
        return Ok(name);
    }
    let known: Vec<_> = peers().map(|peer| peer.name.as_str()).collect();
    let known = if known.is_empty() {
        "none".to_owned()
    } else {
        known.join(", ")
    };
    Err(Failure::NoSuchPeer {
        name,
        node: node.name.clone(),
        known,
    })
}
