//! `replctl verify`: begins a verification, shows how far it is, and says what it came to.

use std::time::Duration;

use indicatif::ProgressBar;
use nbd_server::admin::client::Client;
use nbd_server::admin::{Request, Response, Role, Status, VerifyResult, VerifyRun, VerifyStatus};
use nbd_server::config::{Node, size};

use crate::output::print;
use crate::{Failure, bar};

/// How often it is looked at.
const PAUSE: Duration = Duration::from_millis(200);

/// What to do.
pub(crate) struct Wanted {
    pub(crate) repair: bool,
    pub(crate) bytes_per_second: u64,
    pub(crate) json: bool,
    /// Nothing is to be done on a node that is not Primary.
    pub(crate) if_primary: bool,
}

/// Begins one and waits for its end.
pub(crate) fn verify(node: &Node, wanted: &Wanted) -> Result<(), Failure> {
    let mut client = Client::connect(&node.admin_socket())?;
    let first = status(&mut client)?;
    if wanted.if_primary && first.role != Role::Primary {
        return Ok(());
    }
    let before = first.verify.last;
    let request = Request::Verify {
        repair: wanted.repair,
        bytes_per_second: wanted.bytes_per_second,
    };
    match client.call(&request)? {
        Response::Done { .. } => {}
        Response::Error(error) => return Err(error.into()),
        _ => return Err(Failure::UnexpectedAnswer),
    }
    let bar = bar::bytes(0, "verify");
    let result = loop {
        let verify = status(&mut client)?.verify;
        match verify.running.filter(|run| run.counts.is_some()) {
            Some(run) => show(&bar, &run),
            None if verify.last.is_some() && verify.last != before => break verify.last,
            None => {}
        }
        std::thread::sleep(PAUSE);
    };
    bar.finish_and_clear();
    let result = result.ok_or(Failure::UnexpectedAnswer)?;
    if wanted.json {
        let text = serde_json::to_string_pretty(&result)
            .map_err(|error| Failure::Failed(format!("can not write JSON: {error}")))?;
        print(&(text + "\n"))?;
    } else {
        print(&told(&result, wanted.repair))?;
    }
    if result.clean {
        return Ok(());
    }
    Err(Failure::Failed(why(&result, wanted.repair)))
}

fn status(client: &mut Client) -> Result<Status, Failure> {
    match client.call(&Request::Status)? {
        Response::Status(status) => Ok(*status),
        Response::Error(error) => Err(error.into()),
        _ => Err(Failure::UnexpectedAnswer),
    }
}

/// Shows how far it is.
fn show(bar: &ProgressBar, run: &VerifyRun) {
    let (Some(left), Some(counts)) = (run.left_bytes, run.counts) else {
        return;
    };
    let found = counts.bad_blocks + counts.differing_blocks;
    bar.set_message(format!("verify, {found} found"));
    bar.set_length(counts.bytes + left);
    bar.set_position(counts.bytes);
}

/// What a status says of verifications.
pub(crate) fn facts(verify: &VerifyStatus) -> Vec<String> {
    let mut facts = Vec::new();
    if let Some(run) = &verify.running {
        // How far it is has a line of its own, with a bar.
        facts.push(format!("{} is verifying", run.by));
    }
    match (&verify.last, &verify.last_clean) {
        (Some(last), _) if last.counts.left_blocks > 0 => {
            let (blocks, ended) = (last.counts.left_blocks, &last.ended);
            facts.push(format!("VERIFY LEFT {blocks} BLOCKS at {ended}"));
        }
        (_, Some(at)) => facts.push(format!("verified clean at {at}")),
        (Some(last), None) => facts.push(format!("verified at {}, not all of it", last.ended)),
        (None, None) => {}
    }
    facts
}

/// Bytes as people read them.
fn bytes(n: u64) -> String {
    match n {
        n if n >= 1 << 20 && !n.is_multiple_of(1 << 20) => {
            format!("{:.1} MiB", n as f64 / f64::from(1 << 20))
        }
        n => size::format(n),
    }
}

/// What it came to, for people.
fn told(result: &VerifyResult, repair: bool) -> String {
    let counts = &result.counts;
    let share = counts.wire_bytes as f64 / counts.bytes.max(1) as f64 * 100.0;
    let mut out = format!(
        "compared {}, {} bytes ({share:.4} %) over the wire\n",
        bytes(counts.bytes),
        counts.wire_bytes
    );
    out.push_str(&format!(
        "bad blocks {}, differing blocks {}, {} {}\n",
        counts.bad_blocks,
        counts.differing_blocks,
        counts.left_blocks,
        if repair {
            "not mended"
        } else {
            "left as they are"
        }
    ));
    for finding in &result.findings {
        let what = match finding.kind.as_str() {
            "bad" => "is bad in the store",
            "differs" => "differs from the right copy",
            _ => "has no checksum",
        };
        out.push_str(&format!(
            "  {}: block {} (byte {}) of volume {} {what}\n",
            finding.node,
            finding.block,
            finding.block * 4096,
            finding.volume
        ));
    }
    let found = counts.bad_blocks + counts.differing_blocks;
    if found > result.findings.len() as u64 {
        out.push_str("  and more\n");
    }
    if !result.missed.is_empty() {
        out.push_str(&format!(
            "not compared in whole: {}\n",
            result.missed.join(", ")
        ));
    }
    if result.clean {
        out.push_str("all copies are sound and equal\n");
    }
    out
}

/// What is not as it should be, and what to do.
fn why(result: &VerifyResult, repair: bool) -> String {
    if !result.finished {
        return "it ended before its end: begin it again".to_owned();
    }
    if result.counts.left_blocks > 0 {
        let blocks = result.counts.left_blocks;
        return if repair {
            format!(
                "{blocks} blocks could not be mended: no good copy was in reach; see the log of repld"
            )
        } else {
            format!("{blocks} blocks are not as they should be: replctl verify --repair mends them")
        };
    }
    format!(
        "not all was compared: {} was away or behind; begin again when it is back",
        result.missed.join(", ")
    )
}
