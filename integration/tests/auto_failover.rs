//! `replctl auto-failover` with three real nodes: whatever happens to the Primary, another node takes over by itself, the service runs on one
//! node at a time, and nothing that was acknowledged is lost (P1).

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use integration::{BOUND, Scene, dropped, roomy};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tools::cluster::Spec;

const A: usize = 0;

/// Whoever reads the output of a test wants to know why something took so long.
const SLOW: Duration = Duration::from_secs(8);

/// The service: it holds a lock as long as it runs, and says so if it does not get it. It ends at once at SIGTERM, unless there is a
/// file `stubborn`.
fn service(place: &Path) -> Spec {
    let program = place.join("service");
    let script = "#!/bin/sh\ncd PLACE\nexec 9>> lock\nflock -n 9 || echo \"overlap $REPLICATOR_NODE\" >> log\n\
        echo \"start $REPLICATOR_NODE\" >> log\n\
        trap '[ -e stubborn ] || { echo \"stop $REPLICATOR_NODE\" >> log; exit 0; }' TERM\n\
        while [ ! -e \"end-$REPLICATOR_NODE\" ]; do sleep 0.05 9>&-; done\nexit 1\n";
    let script = script.replace("PLACE", &place.display().to_string());
    std::fs::write(&program, script).expect("written");
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&program, mode).expect("a program");
    Spec {
        // The service is stopped when a quarter of a lease is left: a busy machine's hiccup is not to look like a Primary that hangs.
        policy: "lease_ms = 3000\n".into(),
        more: format!("\n[failover]\ncommand = \"{}\"\n", program.display()),
        ..roomy()
    }
}

/// Three nodes with a `replctl auto-failover` each.
struct Kept {
    scene: Scene,
    keepers: Vec<Child>,
    place: TempDir,
}

impl Kept {
    /// Node 0 is Primary, and the service runs there.
    fn start() -> Self {
        let mut kept = Self::watching(Scene::serving);
        assert_eq!(kept.next_start(0), A);
        kept
    }

    /// Whatever such nodes do.
    fn watching(nodes: impl FnOnce(Spec) -> Scene) -> Self {
        let place = TempDir::new().expect("a directory");
        let scene = nodes(service(place.path()));
        let mut kept = Self {
            scene,
            keepers: Vec::new(),
            place,
        };
        for node in 0..3 {
            let keeper = kept.spawn(node);
            kept.keepers.push(keeper);
        }
        kept
    }

    fn spawn(&self, node: usize) -> Child {
        let name = self.scene.cluster.name(node);
        let log = self.place.path().join(format!("{name}.log"));
        let log = File::options()
            .create(true)
            .append(true)
            .open(log)
            .expect("a log");
        Command::new(&self.scene.cluster.programs().replctl)
            .arg("--config")
            .arg(self.scene.cluster.config())
            .args(["--node", name, "auto-failover"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0)
            .spawn()
            .expect("replctl starts")
    }

    fn log(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.place.path().join("log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    fn starts(&self) -> Vec<String> {
        let log = self.log();
        assert!(
            !log.iter().any(|line| line.starts_with("overlap")),
            "{log:?}"
        );
        let starts = log.iter().filter_map(|line| line.strip_prefix("start "));
        starts.map(str::to_owned).collect()
    }

    /// Waits until the service was started more than so often; on which node.
    fn next_start(&mut self, than: usize) -> usize {
        let began = Instant::now();
        loop {
            if let Some(name) = self.starts().get(than) {
                let node = (0..3).find(|n| self.scene.cluster.name(*n) == name);
                return node.expect("one of them");
            }
            let said = || (0..3).map(|n| self.said(n)).collect::<String>();
            assert!(
                began.elapsed() < BOUND,
                "no start after {than}: {:?}\n{}",
                self.log(),
                said()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until the service was told to stop there.
    fn await_stop(&self, node: usize) {
        let stopped = format!("stop {}", self.scene.cluster.name(node));
        let began = Instant::now();
        while !self.log().contains(&stopped) {
            assert!(began.elapsed() < BOUND, "{:?}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn said(&self, node: usize) -> String {
        let name = self.scene.cluster.name(node);
        std::fs::read_to_string(self.place.path().join(format!("{name}.log"))).unwrap_or_default()
    }

    /// The service moved to another node, which is Primary and has everything.
    fn taken_over(&mut self, from: usize, began: Instant) -> usize {
        let starts = self.starts().len();
        let to = self.next_start(starts);
        eprintln!("the service runs again after {:?}", began.elapsed());
        assert_ne!(to, from);
        self.scene.verify(to);
        to
    }

    fn end(mut self, primary: usize) {
        for keeper in &mut self.keepers {
            keeper.kill().expect("killed");
            keeper.wait().expect("it was ours");
        }
        // As systemd would do: nothing is left of what it ran.
        std::fs::write(
            self.place
                .path()
                .join(format!("end-{}", self.scene.cluster.name(primary))),
            "",
        )
        .expect("written");
        self.keepers.clear();
        let place = self.place;
        self.scene.stop_and_compare(primary);
        drop(place);
    }
}

#[test]
fn a_primary_that_dies_or_hangs_is_replaced_by_itself() {
    let mut kept = Kept::start();
    let load = kept.scene.work(A, kept.scene.calm_streams());
    kept.scene.await_writes(&load, 100);
    let began = Instant::now();
    let streams = kept.scene.kill_under(A, load);
    let second = kept.taken_over(A, began);
    kept.scene.cluster.start(A).expect("it starts again");
    kept.scene.await_caught_up(A, second);

    // The service is stubborn besides: it is killed in time.
    std::fs::write(kept.place.path().join("stubborn"), "").expect("written");
    let load = kept.scene.work(second, streams);
    kept.scene.await_writes(&load, 100);
    let before = kept.scene.tally.writes();
    let began = Instant::now();
    kept.scene.cluster.freeze(second).expect("frozen");
    let third = kept.taken_over(second, began);
    kept.scene.cluster.thaw(second).expect("thawed");
    kept.scene.dropped_since(before, load);
    kept.scene.await_caught_up(second, third);
    kept.scene.verify(third);
    assert_eq!(kept.starts().len(), 3);
    kept.end(third);
}

#[test]
fn a_clean_stop_moves_the_service_and_one_that_fails_is_left_to_the_others() {
    let mut kept = Kept::start();
    let load = kept.scene.work(A, kept.scene.calm_streams());
    kept.scene.await_writes(&load, 100);
    let before = kept.scene.tally.writes();
    let began = Instant::now();
    let pid = i32::try_from(kept.keepers[A].id()).expect("a number");
    kill(Pid::from_raw(pid), Signal::SIGTERM).expect("it is ours");
    let second = kept.taken_over(A, began);
    let ended = kept.keepers[A].wait().expect("it ends");
    assert!(ended.success(), "{}", kept.said(A));
    assert!(
        kept.log().contains(&"stop pbx-a".to_owned()),
        "{:?}",
        kept.log()
    );
    drop(dropped(load));
    assert!(kept.scene.tally.writes() >= before);
    kept.keepers[A] = kept.spawn(A);

    // The service ends by itself.
    let end = kept
        .place
        .path()
        .join(format!("end-{}", kept.scene.cluster.name(second)));
    std::fs::write(&end, "").expect("written");
    let third = kept.taken_over(second, Instant::now());
    assert!(
        kept.said(second)
            .contains("the service ended by itself: exit status: 1")
    );
    std::fs::remove_file(end).expect("removed");
    // Without a majority nobody serves, and nothing runs.
    for node in (0..3).filter(|n| *n != third) {
        kept.scene.cluster.kill(node).expect("killed");
    }
    kept.await_stop(third);
    let starts = kept.starts().len();
    kept.scene.cluster.start_all().expect("started");
    let last = kept.next_start(starts);
    kept.scene.verify(last);
    kept.end(last);
}

#[test]
fn what_is_promoted_by_hand_serves_and_after_a_restart_of_all_whoever_has_everything() {
    const B: usize = 1;
    const C: usize = 2;
    let mut kept = Kept::watching(Scene::started);
    // Nobody but an operator can know which data a resource is to begin with.
    let began = Instant::now();
    while !(0..3).all(|node| kept.said(node).contains("is watched")) {
        assert!(began.elapsed() < BOUND, "{}", kept.said(A));
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(kept.starts(), [""; 0]);
    kept.scene.promote(B);
    assert_eq!(kept.next_start(0), B);

    let load = kept.scene.work(B, kept.scene.calm_streams());
    kept.scene.await_writes(&load, 100);
    kept.scene.cluster.kill(C).expect("killed");
    kept.scene.await_writes(&load, 100);
    drop(kept.scene.kill_under(B, load));
    kept.scene.cluster.kill(A).expect("killed");
    kept.await_stop(B);
    // The one that lacks the most is there first.
    kept.scene.cluster.start(C).expect("started");
    kept.scene.cluster.start_all().expect("started");
    let next = kept.next_start(1);
    assert_ne!(next, C, "it has less than the others");
    kept.scene.verify(next);
    kept.scene.await_caught_up(C, next);
    kept.end(next);
}

/// A number that is different each time, and is told: so a life can be had again.
fn seed() -> u64 {
    let given = std::env::var("AUTO_FAILOVER_SEED").ok();
    let seed = given.and_then(|text| text.parse().ok()).unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |now| now.as_nanos() as u64)
    });
    eprintln!("AUTO_FAILOVER_SEED={seed}");
    seed | 1
}

#[test]
fn random_faults_need_no_hand_and_lose_nothing() {
    let faults = std::env::var("AUTO_FAILOVER_FAULTS").ok();
    let faults = faults.and_then(|text| text.parse().ok()).unwrap_or(4);
    let mut random = seed();
    let mut below = move |n: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 8) % n
    };
    let mut kept = Kept::start();
    let mut primary = A;
    let mut load = kept.scene.work(primary, kept.scene.calm_streams());
    for number in 0..faults {
        kept.scene.await_writes(&load, 30 + below(100));
        let (fault, starts, began) = (below(5), kept.starts().len(), Instant::now());
        let other = (primary + 1 + usize::try_from(below(2)).unwrap_or(0)) % 3;
        eprintln!("{number}: fault {fault} of {primary}, other {other}");
        match fault {
            // Of a Secondary: nobody notices.
            0 => {
                kept.scene.cluster.kill(other).expect("killed");
                kept.scene.await_writes(&load, 30);
                kept.scene.cluster.start(other).expect("it starts again");
                kept.scene.await_caught_up(other, primary);
                assert_eq!(kept.starts().len(), starts, "{:?}", kept.log());
                continue;
            }
            1 => kept.scene.cluster.kill(primary).expect("killed"),
            2 => kept.scene.cluster.freeze(primary).expect("frozen"),
            3 => {
                let pid = i32::try_from(kept.keepers[primary].id()).expect("a number");
                kill(Pid::from_raw(pid), Signal::SIGTERM).expect("it is ours");
            }
            _ => {
                let end = format!("end-{}", kept.scene.cluster.name(primary));
                std::fs::write(kept.place.path().join(end), "").expect("written");
            }
        }
        let next = kept.next_start(starts);
        eprintln!(
            "{number}: the service runs again after {:?}",
            began.elapsed()
        );
        if began.elapsed() > SLOW {
            let said: String = (0..3).map(|node| kept.said(node)).collect();
            eprintln!("{number} was slow:\n{said}{}", kept.scene.cluster.logs());
        }
        let end = format!("end-{}", kept.scene.cluster.name(primary));
        match fault {
            1 => kept.scene.cluster.start(primary).expect("it starts again"),
            2 => kept.scene.cluster.thaw(primary).expect("thawed"),
            3 => {
                assert!(kept.keepers[primary].wait().expect("it ends").success());
                kept.keepers[primary] = kept.spawn(primary);
            }
            _ => std::fs::remove_file(kept.place.path().join(end)).expect("removed"),
        }
        let streams = dropped(load);
        kept.scene.verify(next);
        primary = next;
        load = kept.scene.work(primary, streams);
        for node in (0..3).filter(|n| *n != primary) {
            kept.scene.await_caught_up(node, primary);
        }
    }
    kept.scene.await_writes(&load, 30);
    kept.scene.finish(load);
    kept.end(primary);
}
