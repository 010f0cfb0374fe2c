//! Progress bars for verbs that take their time: on a terminal, on stderr; elsewhere nothing is shown.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nbd_server::admin::client::Client;
use nbd_server::admin::{Request, Response, Status};
use nbd_server::config::Node;

/// A bar over so many bytes; one that shows nothing where stderr is no terminal.
pub(crate) fn bytes(total: u64, what: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), target());
    let style = ProgressStyle::with_template(
        "{msg} [{bar:30}] {percent:>3} % {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
    );
    if let Ok(style) = style {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(what.to_owned());
    bar
}

fn target() -> ProgressDrawTarget {
    if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    }
}

/// Says what is waited for, and for how long already, until it is dropped. For what has no parts that could be counted.
pub(crate) struct Waiting(ProgressBar);

impl Waiting {
    /// How often it moves.
    const TICK: Duration = Duration::from_millis(200);

    pub(crate) fn start(what: &str, timeout_ms: u64) -> Self {
        let bar = ProgressBar::with_draw_target(None, target());
        if let Ok(style) =
            ProgressStyle::with_template("{spinner} {msg}: {elapsed} of at most {prefix}")
        {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        bar.set_prefix(format!("{}s", timeout_ms.div_ceil(1000)));
        bar.enable_steady_tick(Self::TICK);
        Self(bar)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// How far a node is that is given what it lacks, as a peer of the node that is asked, or as that node itself: bytes that
/// are left, and in all.
fn progress(status: &Status, name: &str) -> Option<(u64, u64)> {
    let own = status.node == name;
    let mut peers = status.peers.iter().filter(|p| own || p.name == name);
    peers.find_map(|p| {
        let left = p.sync_left_bytes?;
        // The total is what the percent is of.
        let percent = p.sync_percent.unwrap_or(0.0).clamp(0.0, 99.9);
        Some((left, ((left as f64) / (1.0 - percent / 100.0)) as u64))
    })
}

/// Shows how far a node is, until it is dropped.
pub(crate) struct Watcher {
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Watches a node at this one's `repld`; where stderr is no terminal it does nothing.
    pub(crate) fn start(node: &Node, name: &str) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let thread = std::io::stderr().is_terminal().then(|| {
            let (path, name, ends) = (node.admin_socket(), name.to_owned(), Arc::clone(&ends));
            std::thread::spawn(move || watch(&path, &name, &ends))
        });
        Self { ends, thread }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It looks several times a second.
            let _ = thread.join();
        }
    }
}

fn watch(path: &std::path::Path, name: &str, ends: &AtomicBool) {
    let bar = bytes(0, name);
    let Ok(mut client) = Client::connect(path) else {
        return;
    };
    while !ends.load(Ordering::Relaxed) {
        if let Ok(Response::Status(status)) = client.call(&Request::Status)
            && let Some((left, total)) = progress(&status, name)
        {
            bar.set_length(total.max(left));
            bar.set_position(total.saturating_sub(left));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    bar.finish_and_clear();
}

#[cfg(test)]
mod tests;
