//! Words on stdin that confirm what can not be undone: the name of what it is about, as one line.

use std::io::{BufRead, IsTerminal, Read};

use crate::Failure;

/// More than any resource's name.
const LINE_BYTES_MAX: u64 = 256;

/// Reads the resource's name from stdin; anything else is no confirmation.
pub(super) fn force(resource: &str, node: &str) -> Result<(), Failure> {
    let what = format!(
        "{node} goes on alone, with the data that it has. What the other nodes hold beyond that is lost to it, and they must be \
         stopped.\nType the name of the resource to go on: "
    );
    if confirmed(&what, resource)? {
        return Ok(());
    }
    Err(Failure::Usage(format!(
        "not forced: to confirm that the other nodes are stopped, give the resource's name, {resource}, as one line on stdin"
    )))
}

/// Reads the resource's name from stdin; anything else is no confirmation.
pub(super) fn invalidate(resource: &str, node: &str) -> Result<(), Failure> {
    let what = format!(
        "What {node} holds is discarded, and fetched anew from the Primary.\nType the name of the resource to go on: "
    );
    if confirmed(&what, resource)? {
        return Ok(());
    }
    Err(Failure::Usage(format!(
        "not discarded: to confirm that the data of {node} is given up, give the resource's name, {resource}, as one line on stdin"
    )))
}

/// Reads a node's name from stdin; anything else is no confirmation.
pub(super) fn replace(peer: &str) -> Result<(), Failure> {
    let what = format!(
        "What {peer} had on its former disks counts for nothing from now on; it is given everything anew.\n\
         Type the name of the node to go on: "
    );
    if confirmed(&what, peer)? {
        return Ok(());
    }
    Err(Failure::Usage(format!(
        "not replaced: to confirm that the former disks of {peer} are given up, give its name, {peer}, as one line on stdin"
    )))
}

/// Reads a node's name from stdin; anything else is no confirmation.
pub(super) fn stopped(peer: &str) -> Result<(), Failure> {
    let what = format!(
        "{peer} must be off, for certain. If it still runs, what clients write to it is lost.\n\
         Type the name of the node to go on: "
    );
    if confirmed(&what, peer)? {
        return Ok(());
    }
    Err(Failure::Usage(format!(
        "nothing was done: to confirm that {peer} is off, give its name, {peer}, as one line on stdin"
    )))
}

/// Reads a volume's name from stdin; anything else is no confirmation.
pub(super) fn volume(volume: &str, what: &str) -> Result<(), Failure> {
    let question = format!("{volume} {what}.\nType the name of the volume to go on: ");
    if confirmed(&question, volume)? {
        return Ok(());
    }
    Err(Failure::Usage(format!(
        "nothing is changed: to confirm that {volume} {what}, give its name, {volume}, as one line on stdin"
    )))
}

/// Whether the next line on stdin is this name.
fn confirmed(what: &str, name: &str) -> Result<bool, Failure> {
    if std::io::stdin().is_terminal() {
        eprint!("{what}");
    }
    let mut line = String::new();
    std::io::stdin()
        .lock()
        .take(LINE_BYTES_MAX)
        .read_line(&mut line)
        .map_err(|error| Failure::Failed(format!("can not read from stdin: {error}")))?;
    Ok(line.lines().next().map(str::trim) == Some(name))
}
