//! `fence_repl`: the same as a fence agent for Pacemaker (FenceAgentAPI). Options come as `key=value` lines on stdin, so that no
//! argument is needed, not even for the metadata; people may give them on the command line.
//!
//! It is a fabric agent, like `fence_scsi`: *off* takes from a node what it could do to the data, *on* gives it back. It does not
//! stop the node, so there is no *reboot*; a node that only hangs may keep a virtual IP until Pacemaker takes it away.

use std::ffi::OsString;
use std::io::{IsTerminal, Read};

use nbd_server::admin::Status;
use nbd_server::config::{Config, DEFAULT_FILE, Node};

use super::{fence, fenced, named, say, status, unfence};
use crate::Failure;
use crate::cli::host_name;

/// What it is called by.
pub(super) const NAME: &str = "fence_repl";

const DONE: u8 = 0;
const FAILED: u8 = 1;
/// The answer of *status* for a node that is fenced.
const OFF: u8 = 2;

/// How long *off* and *on* try where nothing is said, in seconds.
const TIMEOUT_S_DEFAULT: u64 = 30;

/// More than any options are long.
const STDIN_BYTES_MAX: u64 = 64 << 10;

/// What was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Options {
    pub(super) action: String,
    pub(super) port: Option<String>,
    pub(super) nodename: Option<String>,
    pub(super) config: String,
    pub(super) local_node: Option<String>,
    pub(super) timeout: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            action: "off".into(),
            port: None,
            nodename: None,
            config: DEFAULT_FILE.into(),
            local_node: None,
            timeout: TIMEOUT_S_DEFAULT,
        }
    }
}

impl Options {
    /// Takes one of them; whatever is not known is for others.
    pub(super) fn set(&mut self, key: &str, value: &str) -> Result<(), Failure> {
        let text = || Some(value.to_owned()).filter(|v| !v.is_empty());
        match key {
            "action" | "option" => self.action = value.to_owned(),
            "port" | "plug" => self.port = text(),
            "nodename" => self.nodename = text(),
            "config" => self.config = text().unwrap_or_else(|| DEFAULT_FILE.into()),
            "local_node" => self.local_node = text(),
            "power_timeout" => {
                let number = value.parse().ok().filter(|n| (1..=86_400).contains(n));
                self.timeout = number.ok_or_else(|| {
                    Failure::Usage(format!("power_timeout={value} is no number of seconds"))
                })?;
            }
            _ => {}
        }
        Ok(())
    }

    /// The lines that Pacemaker writes.
    pub(super) fn read(&mut self, text: &str) -> Result<(), Failure> {
        for line in text.lines().map(str::trim) {
            if let Some((key, value)) = line.split_once('=').filter(|_| !line.starts_with('#')) {
                self.set(key.trim(), value.trim())?;
            }
        }
        Ok(())
    }

    /// The command line of people: `-o off -n pbx-a`, `--action=off --plug pbx-a`.
    pub(super) fn parse(&mut self, args: &[String]) -> Result<(), Failure> {
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let (key, value) = match arg.split_once('=') {
                Some((key, value)) => (key, Some(value.to_owned())),
                None => (arg.as_str(), None),
            };
            let key = match key {
                "-o" | "--action" => "action",
                "-n" | "--plug" => "port",
                "--config" => "config",
                "--local-node" => "local_node",
                "--power-timeout" => "power_timeout",
                "-h" | "--help" => {
                    self.action = "help".into();
                    continue;
                }
                // What all agents are given, and this one has no use for.
                _ => continue,
            };
            let value = value.or_else(|| args.next().cloned()).unwrap_or_default();
            self.set(key, &value)?;
        }
        Ok(())
    }
}

pub(super) fn main(args: &[OsString]) -> u8 {
    let args: Vec<String> = args
        .iter()
        .map(|arg| arg.to_string_lossy().into_owned())
        .collect();
    match run(&args) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("{NAME}: {}", failure.line());
            FAILED
        }
    }
}

fn run(args: &[String]) -> Result<u8, Failure> {
    let mut options = Options::default();
    options.parse(args)?;
    if args.is_empty() && !std::io::stdin().is_terminal() {
        let mut text = Vec::new();
        std::io::stdin()
            .take(STDIN_BYTES_MAX)
            .read_to_end(&mut text)
            .map_err(|error| Failure::Failed(format!("can not read from stdin: {error}")))?;
        options.read(&String::from_utf8_lossy(&text))?;
    }
    act(&options)
}

fn act(options: &Options) -> Result<u8, Failure> {
    match options.action.as_str() {
        "metadata" | "meta-data" => return say(METADATA).map(|()| DONE),
        "help" => return say(HELP).map(|()| DONE),
        _ => {}
    }
    let config = Config::load(options.config.as_ref())?;
    let local = options.local_node.clone().map_or_else(host_name, Ok)?;
    let (_, node) = config.node(&local)?;
    match options.action.as_str() {
        "validate-all" => return Ok(DONE),
        // A device that can not be asked is not there.
        "monitor" => return status(node).map(|_| DONE),
        "list" | "list-status" => {
            return list(&config, node, options.action == "list-status").map(|()| DONE);
        }
        _ => {}
    }
    let target = options.port.as_ref().or(options.nodename.as_ref());
    let target = target.ok_or_else(|| Failure::Usage("no node is given: port=NAME".into()))?;
    named(&config, node, target)?;
    match options.action.as_str() {
        "off" => fence(&config, node, target, options.timeout).map(|()| DONE),
        "on" => unfence(&config, node, target, options.timeout).map(|()| DONE),
        "status" => {
            let off = is_off(status(node)?.as_ref(), target)?;
            Ok(if off { OFF } else { DONE })
        }
        other => Err(Failure::Usage(format!(
            "there is no action {other:?}: off, on, status, monitor, list, list-status, validate-all, metadata"
        ))),
    }
}

/// Whether a node is fenced, as far as that is certain.
fn is_off(status: &Status, target: &str) -> Result<bool, Failure> {
    if status.quorum != Some(true) {
        return Err(Failure::Failed(format!(
            "{} reaches no majority: it can not tell",
            status.node
        )));
    }
    let known = fenced(status).find(|(name, _)| *name == target);
    known
        .and_then(|(_, fenced)| fenced)
        .ok_or_else(|| Failure::Failed(format!("nothing is known of {target}")))
}

fn list(config: &Config, node: &Node, with_status: bool) -> Result<(), Failure> {
    let known = if with_status {
        Some(status(node)?)
    } else {
        None
    };
    let mut text = String::new();
    for other in &config.nodes {
        let name = &other.name;
        let state = known.as_ref().map(|s| match is_off(s, name) {
            Ok(true) => ",off",
            Ok(false) => ",on",
            Err(_) => ",unknown",
        });
        text += &format!("{name},{}\n", state.unwrap_or_default());
    }
    say(&text)
}

const HELP: &str = "\
fence_repl: repl-fence as a fence agent for Pacemaker

Options come as key=value lines on stdin, or as arguments:
  -o, --action=ACTION     off, on, status, monitor, list, list-status, validate-all, metadata
  -n, --plug=NODE         the node to act on (port)
  --config=FILE           the config file, the same on every node
  --local-node=NODE       the node whose repld is asked [default: this host's name]
  --power-timeout=SECS    how long off and on try
";

/// What Pacemaker and its shells need to know.
const METADATA: &str = include_str!("agent.xml");
