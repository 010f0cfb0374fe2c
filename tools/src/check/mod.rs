//! `replctl check`: everything that could keep this node from starting or its peers from meeting it, looked at before
//! anything is formatted. It leaves nothing behind: what it tries out it takes away again.

mod host;
mod peers;
mod places;
mod services;

use std::fmt;
use std::path::Path;

use nbd_server::config::{Config, Node, NodeRole};

use crate::Failure;
use crate::output::print;

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// As it has to be.
    Fine,
    /// It works, and could be better.
    Warning,
    /// It keeps the node from its work.
    Wrong,
}

/// One thing that was looked at.
#[derive(Clone, Debug)]
struct Finding {
    verdict: Verdict,
    what: &'static str,
    text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Fine => "ok",
            Verdict::Warning => "WARN",
            Verdict::Wrong => "FAIL",
        };
        write!(f, "{verdict:<5} {:<9} {}", self.what, self.text)
    }
}

fn fine(what: &'static str, text: impl Into<String>) -> Finding {
    Finding {
        verdict: Verdict::Fine,
        what,
        text: text.into(),
    }
}

fn warning(what: &'static str, text: impl Into<String>) -> Finding {
    Finding {
        verdict: Verdict::Warning,
        what,
        text: text.into(),
    }
}

fn wrong(what: &'static str, text: impl Into<String>) -> Finding {
    Finding {
        verdict: Verdict::Wrong,
        what,
        text: text.into(),
    }
}

/// Looks at everything, and prints a line about each; fails if something is wrong.
pub(crate) fn check(config: &Config, node: &Node) -> Result<(), Failure> {
    let running = is_running(&node.data_dir);
    let count = |number: usize, noun: &str| {
        format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
    };
    let mut findings = vec![fine(
        "config",
        format!(
            "{}: resource {}, {}, {}; this is {}",
            config.file.display(),
            config.resource,
            count(config.nodes.len(), "node"),
            count(config.volumes.len(), "volume"),
            node.name
        ),
    )];
    if config.tls.insecure && !node.address.ip().is_loopback() {
        let text = "insecure = true: whoever reaches the replication addresses can read and write everything";
        findings.push(warning("tls", text));
    }
    findings.extend(places::look(config, node, running));
    findings.extend(host::look(config, running));
    findings.extend(services::look(config));
    findings.extend(peers::look(config, node, running));

    let text: String = findings
        .iter()
        .map(|finding| format!("{finding}\n"))
        .collect();
    print(&text)?;
    let bad = findings.iter().filter(|f| f.verdict == Verdict::Wrong);
    match bad.clone().count() {
        0 => Ok(()),
        number => {
            let first = bad.map(|f| f.text.as_str()).next().unwrap_or_default();
            let more = match number {
                1 => String::new(),
                more => format!(" (and {} more)", more - 1),
            };
            Err(Failure::Failed(format!("{first}{more}")))
        }
    }
}

/// Whether the lock on the data directory is held: `repld` runs.
fn is_running(data_dir: &Path) -> bool {
    crate::dump::is_running(data_dir)
}

/// Whether a node keeps data.
fn keeps_data(node: &Node) -> bool {
    node.role == NodeRole::Data
}
