//! The other nodes: whether something answers at their addresses, and whether it is them.
//!
//! This asks with a hello that refuses: a node answers it with who it is and what its config comes to, and takes it for no
//! connection, so that one that stands is not disturbed.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use nbd_server::admin::Connection;
use nbd_server::admin::client::status;
use nbd_server::config::{Config, Node};
use replicator::meta::config::Name;
use replicator::wire::hello::{HELLO_BYTES, Hello, WIRE_VERSION};

use super::{Finding, fine, warning, wrong};

/// How long a peer may take to be reached, and to answer.
const TIMEOUT: Duration = Duration::from_secs(3);

pub(super) fn look(config: &Config, node: &Node, running: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !running {
        let addresses = [
            Some(("address", node.address)),
            node.nbd_listen.map(|a| ("nbd_listen", a)),
        ];
        findings.extend(addresses.into_iter().flatten().map(|(key, a)| own(key, a)));
    }
    let stands = if running {
        connections(node)
    } else {
        Vec::new()
    };
    std::thread::scope(|scope| {
        let others = config.nodes.iter().filter(|other| other.name != node.name);
        let asked: Vec<_> = others
            .map(|other| (other, scope.spawn(move || ask(config, node, other))))
            .collect();
        for (other, answer) in asked {
            let about = |text: String| format!("{} ({}): {text}", other.name, other.address);
            let connected = stands.contains(&other.name);
            findings.push(
                match answer
                    .join()
                    .unwrap_or_else(|_| Err("asking failed".into()))
                {
                    Ok(()) if running && !connected => {
                        let text =
                            "answers, and this node is not connected to it; see replctl status";
                        warning("peer", about(text.into()))
                    }
                    Ok(()) => fine("peer", about("answers, with the same config".into())),
                    Err(text) => wrong("peer", about(text)),
                },
            );
        }
    });
    findings
}

/// An address of this node: it must be this host's, and free.
fn own(key: &'static str, address: SocketAddr) -> Finding {
    match TcpListener::bind(address) {
        Ok(_) => fine(
            "address",
            format!("{key} {address} is this host's, and free"),
        ),
        Err(error) => {
            let text = match error.kind() {
                io::ErrorKind::AddrInUse => {
                    "another program listens on it; stop it, or use another port".into()
                }
                io::ErrorKind::AddrNotAvailable => {
                    "this host does not have it; correct it, or --node".into()
                }
                _ => error.to_string(),
            };
            wrong("address", format!("{key} {address}: {text}"))
        }
    }
}

/// The peers that this node's `repld` is connected to.
fn connections(node: &Node) -> Vec<String> {
    let Ok(status) = status(&node.admin_socket()) else {
        return Vec::new();
    };
    let connected = status
        .peers
        .into_iter()
        .filter(|p| p.connection == Connection::Connected);
    connected.map(|peer| peer.name).collect()
}

fn ask(config: &Config, node: &Node, other: &Node) -> Result<(), String> {
    let hello = |from: &str, to: &str| {
        let name = |text: &str| Name::from(text).unwrap_or_default();
        Hello {
            version: WIRE_VERSION,
            digest: config.digest(),
            resource: name(&config.resource),
            from: name(from),
            to: name(to),
            refusal: None,
        }
    };
    let question = hello(&node.name, &other.name).refuse("replctl check only looks");
    let mut answer = [0; HELLO_BYTES];
    exchange(other.address, &question.encode(), &mut answer).map_err(|error| {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => {
                "nobody listens there: repld does not run there yet, or a firewall refuses"
                    .to_owned()
            }
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => format!(
                "no answer within {} s; look at the host, the network and its firewall",
                TIMEOUT.as_secs()
            ),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                "it hung up before its hello; another program may have this address".to_owned()
            }
            _ => error.to_string(),
        }
    })?;
    let answer = Hello::decode(&answer).map_err(|error| error.to_string())?;
    let answer = Hello {
        to: question.from,
        refusal: None,
        ..answer
    };
    answer
        .check(&hello(&other.name, &node.name))
        .map_err(|error| error.to_string())
}

fn exchange(address: SocketAddr, question: &[u8], answer: &mut [u8]) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.write_all(question)?;
    stream.read_exact(answer)
}
