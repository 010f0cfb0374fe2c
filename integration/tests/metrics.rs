//! Metrics as a collector sees them: all that `docs/metrics.md` names and nothing else, true numbers, and an answer also
//! while the data thread is stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use integration::{BOUND, Scene, small};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// A running cluster, and where each node's metrics are.
fn scene() -> (Scene, PathBuf) {
    let mut scene = Scene::laid_out(small());
    let dir = scene.cluster.dir().to_owned();
    let mut config = OpenOptions::new()
        .append(true)
        .open(scene.cluster.config())
        .expect("the config");
    let listen = format!("[metrics]\nlisten = \"{}/%n.metrics\"\n", dir.display());
    config
        .write_all(listen.as_bytes())
        .expect("a disk with room");
    scene
        .cluster
        .create_and_start()
        .unwrap_or_else(|error| panic!("{error}"));
    (scene, dir)
}

/// The page of a node, read within the bound.
fn scrape(dir: &Path, node: &str) -> Page {
    let path = dir.join(format!("{node}.metrics"));
    let mut stream = UnixStream::connect(&path).expect("somebody listens");
    stream.set_read_timeout(Some(BOUND)).expect("a bound");
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .expect("a request");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    let body = text.split_once("\r\n\r\n").expect("a head and a body").1;
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    Page::read(body)
}

/// What a page says.
struct Page {
    /// The type of each family.
    types: BTreeMap<String, String>,
    /// The labels of each family's samples.
    labels: BTreeMap<String, BTreeSet<String>>,
    /// Name and labels as they are written, without those of the node, and the number.
    samples: BTreeMap<String, f64>,
}

impl Page {
    fn read(body: &str) -> Self {
        let mut page = Self {
            types: BTreeMap::new(),
            labels: BTreeMap::new(),
            samples: BTreeMap::new(),
        };
        let mut family = String::new();
        for line in body.lines() {
            if let Some(text) = line.strip_prefix("# TYPE ") {
                let (name, kind) = text.split_once(' ').expect("a name and a type");
                name.clone_into(&mut family);
                assert!(
                    page.types.insert(family.clone(), kind.to_owned()).is_none(),
                    "{family} is there twice"
                );
                page.labels.insert(family.clone(), BTreeSet::new());
            } else if !line.starts_with('#') {
                page.sample(line, &family);
            }
        }
        page
    }

    fn sample(&mut self, line: &str, family: &str) {
        let (series, number) = line.rsplit_once(' ').expect("a series and a number");
        let (name, labels) = series.split_once('{').expect("labels");
        let suffix = name.strip_prefix(family);
        let suffix = suffix.unwrap_or_else(|| panic!("{name} is no sample of {family}"));
        assert!(
            ["", "_bucket", "_sum", "_count"].contains(&suffix),
            "{line}"
        );
        let mut kept = Vec::new();
        for label in labels.trim_end_matches('}').split(',') {
            let key = label.split('=').next().unwrap_or(label);
            if !["resource", "node"].contains(&key) {
                kept.push(label);
                if key != "le" {
                    let labels = self.labels.get_mut(family).expect("it has a type");
                    labels.insert(key.to_owned());
                }
            }
        }
        let series = format!("{name}{{{}}}", kept.join(","));
        let number = number.parse().expect("a number");
        assert!(
            self.samples.insert(series, number).is_none(),
            "{line} is there twice"
        );
    }

    #[track_caller]
    fn get(&self, series: &str) -> f64 {
        let known = || self.samples.keys().cloned().collect::<Vec<_>>().join("\n");
        let found = self.samples.get(series);
        *found.unwrap_or_else(|| panic!("there is no {series}, but\n{}", known()))
    }
}

/// Waits for a page that fits.
fn wait_for(dir: &Path, node: &str, what: &str, fits: impl Fn(&Page) -> bool) -> Page {
    let began = Instant::now();
    loop {
        let page = scrape(dir, node);
        if fits(&page) {
            return page;
        }
        assert!(began.elapsed() < BOUND, "{what}: {:#?}", page.samples);
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_page_has_what_the_docs_say_and_nothing_else() {
    let text = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
    let text = std::fs::read_to_string(text).expect("docs/metrics.md");
    let mut documented = BTreeMap::new();
    for row in text.lines().filter(|line| line.starts_with("| `repld_")) {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, unit, labels, meaning] = cells[..] else {
            panic!("{row} has not five cells");
        };
        let name = name.trim_matches('`').to_owned();
        assert!(!meaning.is_empty(), "{name} has no meaning");
        let bare = name.trim_end_matches("_total");
        for known in ["seconds", "bytes"] {
            assert_eq!(bare.ends_with(known), unit == known, "the unit of {name}");
        }
        let labels = labels.split(", ").filter(|label| !label.is_empty());
        let labels: BTreeSet<String> = labels.map(str::to_owned).collect();
        let row = (kind.to_owned(), labels);
        assert!(
            documented.insert(name, row).is_none(),
            "a row is there twice: {row:?}",
            row = cells
        );
    }
    // Every name that an alert uses is one of them.
    for word in text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')) {
        if let Some(metric) = word
            .strip_suffix("_bucket")
            .or(Some(word))
            .filter(|w| w.starts_with("repld_"))
        {
            assert!(documented.contains_key(metric), "{metric} has no row");
        }
    }

    let (scene, dir) = scene();
    scene.promote(0);
    for node in ["pbx-a", "pbx-b"] {
        let page = scrape(&dir, node);
        let shown: BTreeMap<_, _> = page
            .types
            .iter()
            .map(|(name, kind)| (name.clone(), kind.clone()))
            .collect();
        let said: BTreeMap<_, _> = documented
            .iter()
            .map(|(name, (kind, _))| (name.clone(), kind.clone()))
            .collect();
        assert_eq!(shown, said, "{node}");
        for (name, (_, labels)) in &documented {
            let seen = &page.labels[name];
            let is_there = page
                .samples
                .keys()
                .any(|series| series.starts_with(name.as_str()));
            assert!(
                !is_there || seen == labels,
                "{name} on {node} has the labels {seen:?}"
            );
        }
    }
    // A Primary with peers knows everything.
    let page = scrape(&dir, "pbx-a");
    for name in documented.keys() {
        let is_there = page
            .samples
            .keys()
            .any(|series| series.starts_with(name.as_str()));
        assert!(is_there, "the Primary has no sample of {name}");
    }
}

#[test]
fn what_clients_did_is_counted_on_every_node() {
    let (scene, dir) = scene();
    scene.promote(0);
    let mut client = scene.open(0, "recordings");
    for n in 0..40 {
        let data = vec![7; 8192];
        client
            .write_at(n * 8192, &data, n % 2 == 0)
            .expect("a write");
    }
    client.read_at(0, &mut [0; 5000]).expect("a read");
    client.flush().expect("a flush");
    client.trim(1 << 20, 1 << 20, false).expect("a trim");

    let of = |name: &str, operation: &str| {
        format!("repld_request_{name}{{volume=\"recordings\",operation=\"{operation}\"}}")
    };
    let peer = |name: &str| format!("repld_peer_{name}{{peer=\"pbx-c\"}}");
    let store = |name: &str, operation: &str| {
        format!(
            "repld_disk_{name}{{file=\"store\",volume=\"recordings\",operation=\"{operation}\"}}"
        )
    };
    let page = wait_for(&dir, "pbx-a", "all is applied and acknowledged", |page| {
        page.get("repld_applied_seq{}") == page.get("repld_admitted_seq{}")
            && page.get(&peer("behind_bytes")) == 0.0
            && page.get(&peer("unacknowledged_seconds")) == 0.0
    });
    for (operation, count, bytes) in [
        ("write", 40.0, 40.0 * 8192.0),
        ("read", 1.0, 5000.0),
        ("flush", 1.0, 0.0),
        ("zero", 1.0, 1048576.0),
    ] {
        assert_eq!(page.get(&of("duration_seconds_count", operation)), count);
        assert_eq!(page.get(&of("bytes_total", operation)), bytes);
        assert_eq!(page.get(&of("failures_total", operation)), 0.0);
    }
    assert!(page.get(&of("duration_seconds_sum", "write")) > 0.0);
    assert_eq!(
        page.get("repld_request_duration_seconds_count{volume=\"db\",operation=\"write\"}"),
        0.0
    );
    // One write at a time: each is a batch of its own. How many of those a journal takes at once is its own affair.
    let written = "repld_disk_bytes_total{file=\"journal\",volume=\"\",operation=\"write\"}";
    let acknowledged = page.get(&peer("acknowledgement_duration_seconds_count"));
    assert!(
        page.get(written) > 40.0 * 8192.0 && acknowledged >= 41.0,
        "{acknowledged}"
    );
    assert!(page.get(&peer("sent_bytes_total")) > 40.0 * 8192.0);
    assert_eq!(page.get(&peer("connections_made_total")), 1.0);
    assert_eq!(page.get("repld_nbd_clients{volume=\"recordings\"}"), 1.0);
    assert!(page.get(&store("bytes_total", "write")) >= 40.0 * 8192.0);
    assert!(page.get(&store("duration_seconds_count", "flush")) >= 1.0);
    assert!(page.get("repld_lease_remaining_seconds{}") > 0.0);

    let all = page.get("repld_admitted_seq{}");
    let page = wait_for(&dir, "pbx-b", "the Secondary has applied all", |page| {
        page.get("repld_applied_seq{}") >= all
    });
    assert!(page.get(written) > 40.0 * 8192.0);
    assert!(page.get(&store("bytes_total", "write")) >= 40.0 * 8192.0);
    assert_eq!(page.get(&of("duration_seconds_count", "write")), 0.0);
    assert!(page.get("repld_peer_received_bytes_total{peer=\"pbx-a\"}") > 40.0 * 8192.0);
}

/// The data thread of a node, stopped as a debugger stops it; it goes on when this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn data_thread_of(pid: u32) -> Self {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
        let is_data = |task: &PathBuf| {
            std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "data")
        };
        let mut tasks = tasks.map(|entry| entry.expect("a thread").path());
        let task = tasks.find(is_data).expect("the data thread");
        let name = task.file_name().and_then(|name| name.to_str());
        let thread = Pid::from_raw(name.and_then(|n| n.parse().ok()).expect("a number"));
        ptrace::seize(thread, ptrace::Options::empty()).expect("a child can be traced");
        ptrace::interrupt(thread).expect("it stops");
        waitpid(thread, Some(WaitPidFlag::__WALL)).expect("it has stopped");
        Self(thread)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // It may have been killed.
        let _ = ptrace::detach(self.0, None);
    }
}

#[test]
fn metrics_are_served_while_the_data_thread_is_stopped() {
    let (scene, dir) = scene();
    scene.promote(0);
    let before = wait_for(&dir, "pbx-a", "it is well", |page| {
        page.get("repld_health{health=\"ok\"}") == 1.0
    });
    assert!(before.get("repld_data_thread_stalled_seconds{}") < 30.0);

    let stopped = Stopped::data_thread_of(scene.cluster.pid(0).expect("it runs"));
    let turns = scrape(&dir, "pbx-a").get("repld_data_thread_turns_total{}");
    let page = wait_for(&dir, "pbx-a", "the stall is seen", |page| {
        page.get("repld_health{health=\"down\"}") == 1.0
    });
    assert!(page.get("repld_data_thread_stalled_seconds{}") >= 5.0);
    assert_eq!(page.get("repld_lease_remaining_seconds{}"), 0.0);
    assert_eq!(page.get("repld_data_thread_turns_total{}"), turns);
    assert_eq!(page.types, before.types);

    drop(stopped);
    wait_for(&dir, "pbx-a", "it goes on", |page| {
        page.get("repld_health{health=\"ok\"}") == 1.0
            && page.get("repld_data_thread_turns_total{}") > turns
    });
}
