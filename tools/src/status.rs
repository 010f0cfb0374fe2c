//! `replctl status` for people.

use nbd_server::admin::{
    Connection, DiskState, Health, IntegrityStatus, Membership, PeerStatus, Role, Status, VerifyRun,
};
use nbd_server::config::size;

#[cfg(test)]
mod tests;

#[derive(Clone, Copy)]
enum Colour {
    Plain,
    Good,
    Warn,
    Bad,
}

#[derive(Clone)]
struct Cell {
    text: String,
    colour: Colour,
}

fn cell(text: impl Into<String>, colour: Colour) -> Cell {
    Cell {
        text: text.into(),
        colour,
    }
}

fn plain(text: impl Into<String>) -> Cell {
    cell(text, Colour::Plain)
}

/// The status as a compact table.
pub(crate) fn table(status: &Status, colour: bool) -> String {
    let paint = |cell: &Cell, width: usize| {
        let code = match cell.colour {
            Colour::Plain => None,
            Colour::Good => Some(32),
            Colour::Warn => Some(33),
            Colour::Bad => Some(31),
        };
        let pad = " ".repeat(width.saturating_sub(cell.text.chars().count()));
        match code.filter(|_| colour) {
            Some(code) => format!("\x1b[{code}m{}\x1b[0m{pad}", cell.text),
            None => format!("{}{pad}", cell.text),
        }
    };

    let health = cell(
        status.health.as_str(),
        match status.health {
            Health::Ok => Colour::Good,
            Health::Degraded => Colour::Warn,
            Health::Down => Colour::Bad,
        },
    );
    let mut out = format!(
        "{} on {}: {}, {}",
        status.resource,
        status.node,
        status.role,
        paint(&health, 0)
    );
    if !status.health_reason.is_empty() {
        out.push_str(&format!(" ({})", status.health_reason));
    }
    out.push('\n');

    let mut facts = Vec::new();
    facts.push(match (&status.primary, status.epoch) {
        (Some(primary), epoch) => format!("primary {primary}, epoch {epoch}"),
        (None, 0) => "never promoted".to_owned(),
        (None, epoch) => format!("primary unknown, epoch {epoch}"),
    });
    facts.push(match status.quorum {
        Some(true) => "quorum".to_owned(),
        Some(false) => "NO QUORUM".to_owned(),
        None => "quorum unknown".to_owned(),
    });
    if status.suspended.as_str() != "no" {
        facts.push(format!("I/O SUSPENDED ({})", status.suspended));
    }
    if status.fenced == Some(true) {
        facts.push("FENCED".to_owned());
    }
    out.push_str(&format!("  {}\n", facts.join("; ")));

    let mut facts = Vec::new();
    if let (Some(committed), Some(applied)) = (status.seq.committed, status.seq.applied) {
        facts.push(format!("committed {committed}, applied {applied}"));
    }
    if let (Some(total), Some(used)) = (status.limits.journal.size, status.limits.journal.used) {
        facts.push(format!(
            "journal {} of {}",
            bytes(used),
            size::format(total)
        ));
    }
    facts.extend(integrity(&status.integrity));
    facts.extend(crate::verify::facts(&status.verify));
    if status.memory_locked == Some(false) {
        facts.push("MEMORY NOT LOCKED".to_owned());
    }
    if let Some(ms) = status.last_progress_ms.filter(|ms| *ms >= 1000) {
        facts.push(format!("DATA THREAD STANDS STILL for {} s", ms / 1000));
    }
    if !facts.is_empty() {
        out.push_str(&format!("  {}\n", facts.join("; ")));
    }

    let mut rows = vec![
        ["VOLUME", "SIZE", "DISK", "CLIENTS", "URI"]
            .map(plain)
            .to_vec(),
    ];
    rows.extend(status.volumes.iter().map(|volume| {
        vec![
            plain(&volume.name),
            plain(size::format(volume.size)),
            disk(volume.disk_state),
            plain(unknown(volume.nbd_clients)),
            plain(&volume.uri),
        ]
    }));
    let mut peers = vec![
        [
            "PEER",
            "ROLE",
            "CONNECTION",
            "REPLICATION",
            "DISK",
            "BEHIND",
            "SYNC",
        ]
        .map(plain)
        .to_vec(),
    ];
    peers.extend(status.peers.iter().map(|peer| {
        vec![
            plain(&peer.name),
            cell(
                peer.role.as_str(),
                match peer.role {
                    Role::Primary => Colour::Good,
                    _ => Colour::Plain,
                },
            ),
            cell(
                peer.connection.as_str(),
                match peer.connection {
                    Connection::Connected => Colour::Good,
                    Connection::Connecting => Colour::Warn,
                    Connection::StandAlone => Colour::Bad,
                },
            ),
            plain(peer.replication.as_str()),
            disk(peer.disk_state),
            plain(peer.behind_bytes.map_or_else(|| "?".to_owned(), bytes)),
            plain(
                peer.sync_percent
                    .map_or_else(|| "?".to_owned(), |p| format!("{p:.1}%")),
            ),
        ]
    }));
    for rows in [rows, peers] {
        if rows.len() == 1 {
            continue;
        }
        let widths: Vec<usize> = (0..rows[0].len())
            .map(|i| {
                rows.iter()
                    .map(|row| row[i].text.chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        out.push('\n');
        for row in rows {
            let cells: Vec<_> = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| paint(cell, *width))
                .collect();
            out.push_str(format!("  {}", cells.join("  ")).trim_end());
            out.push('\n');
        }
    }
    out.extend(status.verify.running.as_ref().and_then(verification));
    for peer in &status.peers {
        out.extend(resync(peer));
        let outside = match peer.membership {
            None | Some(Membership::Member) => None,
            Some(Membership::Dropped) => {
                Some("dropped: it counts again by itself once it has everything")
            }
            Some(Membership::Joining) => Some("joining: it counts once it has everything"),
            Some(Membership::Out) => Some(
                "counts for nothing: replctl return takes it back, with new disks replctl replace",
            ),
        };
        if let Some(text) = outside {
            out.push_str(&format!("  {}: {text}\n", peer.name));
        }
        if peer.fenced == Some(true) {
            out.push_str(&format!(
                "  {0}: fenced: it is not promoted before repl-fence unfence {0}\n",
                peer.name
            ));
        }
        if let Some(reason) = &peer.connection_reason {
            out.push_str(&format!("  {}: {reason}\n", peer.name));
        }
    }
    out
}

/// A bar that is full to so many percent.
fn bar(percent: f64) -> String {
    const CELLS: usize = 24;
    let filled = (1..=CELLS)
        .take_while(|&n| percent * CELLS as f64 >= n as f64 * 100.0)
        .count();
    format!("[{}{}]", "#".repeat(filled), ".".repeat(CELLS - filled))
}

/// A line about the verification that this node runs, with a bar.
fn verification(run: &VerifyRun) -> Option<String> {
    let (percent, left) = (run.percent?, run.left_bytes?);
    Some(format!(
        "  verify {} {percent:.1}%, {} left\n",
        bar(percent),
        bytes(left)
    ))
}

/// A line about a resync with this peer, with a bar.
fn resync(peer: &PeerStatus) -> Option<String> {
    let left = peer.sync_left_bytes?;
    let percent = peer.sync_percent.unwrap_or(0.0);
    let pace = peer
        .sync_bytes_per_second
        .map_or_else(String::new, |pace| format!(", {} per second", bytes(pace)));
    let time = peer.sync_seconds_left.map_or_else(String::new, |s| {
        format!(", {}:{:02}:{:02} to go", s / 3600, s / 60 % 60, s % 60)
    });
    Some(format!(
        "  {}: {} {} {percent:.1}%, {} left{pace}{time}\n",
        peer.name,
        peer.replication.as_str(),
        bar(percent),
        bytes(left)
    ))
}

/// What was found of the blocks at rest, if there is anything to say.
fn integrity(found: &IntegrityStatus) -> Vec<String> {
    let mut facts = Vec::new();
    let count = |count: Option<u64>| count.unwrap_or(0);
    let bad = count(found.bad_blocks);
    if bad > 0 {
        let repaired = count(found.repaired_blocks);
        facts.push(format!("BAD BLOCKS {bad}, {repaired} of them repaired"));
    }
    let lost = count(found.lost_blocks);
    if lost > 0 {
        facts.push(format!("LOST BLOCKS {lost}"));
    }
    let pages = found.sums_pages_lost.unwrap_or(0);
    if pages > 0 {
        facts.push(format!("CHECKSUMS LOST ({pages} pages)"));
    }
    facts
}

fn disk(state: DiskState) -> Cell {
    cell(
        state.as_str(),
        match state {
            DiskState::UpToDate => Colour::Good,
            DiskState::Inconsistent | DiskState::Failed | DiskState::Diskless => Colour::Bad,
            DiskState::Outdated | DiskState::Consistent => Colour::Warn,
            DiskState::DUnknown => Colour::Plain,
        },
    )
}

fn unknown<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "?".to_owned(), |value| value.to_string())
}

/// Bytes as people read them; one decimal at most.
pub(crate) fn bytes(count: u64) -> String {
    let mut tenths = u128::from(count) * 10;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB", "PiB"] {
        if tenths < 10_240 {
            break;
        }
        tenths /= 1024;
        unit = next;
    }
    match (tenths / 10, tenths % 10) {
        (whole, 0) => format!("{whole} {unit}"),
        (whole, tenth) => format!("{whole}.{tenth} {unit}"),
    }
}
