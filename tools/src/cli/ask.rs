//! What verbs ask of this node's `repld`, and what they print of its answers.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use nbd_server::admin::client::Client;
use nbd_server::admin::{DiskState, Request, Response};
use nbd_server::config::Node;

use crate::bar::{Waiting, Watcher};
use crate::output::{Reader, print, to_json};
use crate::{Failure, status};

/// Sends a command; what it has to say besides goes to stderr.
pub(super) fn send(node: &Node, request: &Request) -> Result<(), Failure> {
    send_under((), node, request)
}

/// Sends a command that may take its time, under a bar that shows so until there is an answer.
pub(super) fn send_under<B>(bar: B, node: &Node, request: &Request) -> Result<(), Failure> {
    let answer = Client::connect(&node.admin_socket())
        .map_err(Failure::from)
        .and_then(|mut client| Ok(client.call(request)?));
    drop(bar);
    match answer? {
        Response::Done { notice } => {
            if let Some(notice) = notice {
                eprintln!("replctl: {notice}");
            }
            Ok(())
        }
        Response::Error(error) => Err(error.into()),
        Response::Status(_) | Response::Event(_) => Err(Failure::UnexpectedAnswer),
    }
}

/// How often it is looked whether a node is UpToDate.
const LOOK: Duration = Duration::from_millis(200);

/// Gives a node's data up, and waits until it has all of it again.
pub(super) fn invalidate(node: &Node, force: bool, timeout_ms: u64) -> Result<(), Failure> {
    let began = Instant::now();
    let bar = Waiting::start("invalidate", timeout_ms);
    send_under(bar, node, &Request::Invalidate { timeout_ms, force })?;
    if force {
        eprintln!(
            "replctl: {} has given its data up; on the Primary, replctl replace {} lets it join",
            node.name, node.name
        );
        return Ok(());
    }
    let _bar = Watcher::start(node, &node.name);
    let mut client = Client::connect(&node.admin_socket())?;
    loop {
        let status = match client.call(&Request::Status)? {
            Response::Status(status) => status,
            Response::Error(error) => return Err(error.into()),
            _ => return Err(Failure::UnexpectedAnswer),
        };
        if status
            .volumes
            .iter()
            .all(|v| v.disk_state == DiskState::UpToDate)
        {
            return Ok(());
        }
        if began.elapsed() >= Duration::from_millis(timeout_ms) {
            return Err(Failure::Failed(format!(
                "{} has given its data up and is not UpToDate yet: that goes on by itself, replctl status shows how far it is; if it \
                 does not begin, run replctl replace {} on the Primary",
                node.name, node.name
            )));
        }
        std::thread::sleep(LOOK);
    }
}

/// Prints the status, or every new one.
pub(super) fn show_status(node: &Node, json: bool, watch: bool) -> Result<(), Failure> {
    let terminal = std::io::stdout().is_terminal();
    let colour = terminal && std::env::var_os("NO_COLOR").is_none();
    let mut client = Client::connect(&node.admin_socket())?;
    if !watch {
        return match client.call(&Request::Status)? {
            Response::Status(status) if json => print(&(to_json(&status, true)? + "\n")).map(drop),
            Response::Status(status) => print(&status::table(&status, colour)).map(drop),
            Response::Error(error) => Err(error.into()),
            _ => Err(Failure::UnexpectedAnswer),
        };
    }
    client.send(&Request::Watch)?;
    let mut last = None;
    loop {
        let status = match client.next(None)? {
            Response::Status(status) => status,
            Response::Error(error) => return Err(error.into()),
            _ => return Err(Failure::UnexpectedAnswer),
        };
        let mut shown = status.clone();
        // That the data thread moves is no change; that it stands still is.
        shown.last_progress_ms = shown.last_progress_ms.map(|ms| ms / 1000);
        // Nor is it one that time passes.
        shown.lease_left_ms = None;
        if last.as_ref() == Some(&shown) {
            continue;
        }
        last = Some(shown);
        let text = if json {
            to_json(&status, false)? + "\n"
        } else if terminal {
            format!("\x1b[H\x1b[2J{}", status::table(&status, colour))
        } else {
            status::table(&status, false) + "\n"
        };
        if print(&text)? == Reader::Gone {
            return Ok(());
        }
    }
}

/// Prints the present state, then every change.
pub(super) fn show_events(node: &Node, json: bool) -> Result<(), Failure> {
    let mut client = Client::connect(&node.admin_socket())?;
    client.send(&Request::Events)?;
    loop {
        let event = match client.next(None)? {
            Response::Event(event) => event,
            Response::Error(error) => return Err(error.into()),
            _ => return Err(Failure::UnexpectedAnswer),
        };
        let line = if json {
            to_json(&event, false)?
        } else {
            event.to_string()
        };
        if print(&(line + "\n"))? == Reader::Gone {
            return Ok(());
        }
    }
}
