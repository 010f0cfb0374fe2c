//! Hosts on which a node can not start: `repld` names the setting that keeps it, and `replctl check` has found it before.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use integration::{BOUND, Scene, small};
use tools::cluster::{Finished, Spec, exit};

/// Forbids io_uring_setup (number 425 on every architecture) by seccomp, then runs the rest of its arguments.
const WITHOUT_IO_URING: &str = "
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
code = b''.join(struct.pack('HBBI', *i) for i in
    [(0x20, 0, 0, 0), (0x15, 0, 1, 425), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7fff0000)])
memory = ctypes.create_string_buffer(code)
class Program(ctypes.Structure):
    _fields_ = [('length', ctypes.c_ushort), ('code', ctypes.c_void_p)]
program = Program(4, ctypes.addressof(memory))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
";

/// A node that is created and does not run, on a host that something is wrong with.
struct Host {
    scene: Scene,
}

impl Host {
    fn new() -> Self {
        let scene = Scene::laid_out(Spec {
            volumes: vec![("db".into(), 1 << 20)],
            ..small()
        });
        scene.cluster.create(0).expect("created");
        Self { scene }
    }

    fn data_dir(&self) -> &Path {
        self.scene.cluster.data_dir(0)
    }

    fn run_dir(&self) -> PathBuf {
        let socket = self.scene.cluster.nbd_socket(0);
        socket.parent().expect("a directory").to_owned()
    }

    /// The command line of a program, behind what runs it.
    fn run(&self, before: &[&str], program: &Path, verb: &[&str], bound: Duration) -> Finished {
        let mut words: Vec<String> = before.iter().map(|&word| word.to_owned()).collect();
        words.push(program.display().to_string());
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .arg("--config")
            .arg(self.scene.cluster.config());
        command
            .args(["--node", self.scene.cluster.name(0)])
            .args(verb);
        tools::demo::finish(&mut command, bound, &AtomicBool::new(false)).expect("it runs")
    }

    /// Behind `before`, `repld` does not start and `replctl check` does not pass, and both say these words.
    fn expect(&self, before: &[&str], words: &[&str]) {
        let programs = self.scene.cluster.programs().clone();
        let daemon = self.run(before, &programs.repld, &[], BOUND);
        assert_eq!(daemon.code, exit::FAILED, "{}", daemon.message());
        let said = daemon
            .stderr
            .lines()
            .find(|line| line.starts_with("repld: "));
        let said = said.expect("the reason").to_owned();
        let check = self.run(before, &programs.replctl, &["check"], BOUND);
        assert_eq!(check.code, exit::FAILED, "{}", check.message());
        assert_eq!(check.stderr.lines().count(), 1, "{}", check.stderr);
        let wrong: Vec<_> = check
            .stdout
            .lines()
            .filter(|line| line.starts_with("FAIL"))
            .collect();
        for word in words {
            assert!(said.contains(word), "{word:?} is not in: {said}");
            assert!(
                wrong.iter().any(|line| line.contains(word)),
                "{word:?} is not in: {wrong:?}"
            );
        }
    }

    /// The same in a mount namespace of its own, after `setup` with the directory as `$0`. Skipped where there are none.
    fn expect_with_mount(&self, setup: &str, dir: &Path, words: &[&str]) {
        let unshare = ["unshare", "-Urm", "sh", "-c"];
        let possible = Command::new(unshare[0]).args(["-Urm", "true"]).status();
        if !possible.is_ok_and(|status| status.success()) {
            eprintln!("skipped: no user namespaces here");
            return;
        }
        let script = format!("{setup} && exec \"$@\"");
        let dir = dir.display().to_string();
        self.expect(&[&unshare[..], &[&script, &dir]].concat(), words);
    }
}

#[test]
fn what_keeps_a_node_from_starting_is_named_by_its_setting() {
    let host = Host::new();
    let shell = |limit: &str| format!("ulimit {limit} && exec \"$@\"");
    host.expect(
        &["sh", "-c", &shell("-n 60"), "sh"],
        &["RLIMIT_NOFILE is 60", "LimitNOFILE"],
    );
    let python = ["python3", "-c", WITHOUT_IO_URING];
    host.expect(
        &python,
        &[
            "io_uring is not available",
            "seccomp",
            "kernel.io_uring_disabled",
        ],
    );

    let read_only = "mount --bind \"$0\" \"$0\" && mount -o remount,ro,bind \"$0\"";
    host.expect_with_mount(read_only, &host.run_dir(), &["run_dir"]);
    host.expect_with_mount(read_only, host.data_dir(), &["data_dir"]);
    let full = "mount -t tmpfs -o size=4k,nr_inodes=1 none \"$0\"";
    host.expect_with_mount(full, &host.run_dir(), &["run_dir"]);
    let no_direct =
        "cp -r \"$0\" \"$0.copy\" && mount -t ramfs none \"$0\" && cp -r \"$0.copy/.\" \"$0\"";
    host.expect_with_mount(no_direct, host.data_dir(), &["O_DIRECT", "ext4"]);

    // Too little memory is found when it is asked for.
    let programs = host.scene.cluster.programs().clone();
    let little = ["sh", "-c", &shell("-v 200000"), "sh"];
    let daemon = host.run(&little, &programs.repld, &[], BOUND);
    assert_eq!(daemon.code, exit::FAILED, "{}", daemon.message());
    assert!(
        daemon.stderr.contains("[policy] memory"),
        "{}",
        daemon.stderr
    );
}

#[test]
fn check_passes_a_good_cluster_and_leaves_nothing_behind() {
    let mut scene = Scene::laid_out(small());
    let check =
        |scene: &Scene, node: usize| scene.cluster.ctl(node, &["check"], BOUND).expect("runs");
    let files = |dir: &Path| -> BTreeSet<PathBuf> {
        let entries = fs::read_dir(dir).expect("a directory");
        entries
            .map(|entry| entry.expect("an entry").path())
            .collect()
    };
    // Before anything is there: all is fine but that nobody else is.
    let before = files(scene.cluster.dir());
    let alone = check(&scene, 0);
    assert_eq!(alone.code, exit::FAILED, "{}", alone.message());
    let wrong: Vec<_> = alone
        .stdout
        .lines()
        .filter(|line| line.starts_with("FAIL"))
        .collect();
    assert_eq!(wrong.len(), 2, "{wrong:?}");
    assert!(
        wrong[0].contains("pbx-b") && wrong[1].contains("pbx-c"),
        "{wrong:?}"
    );
    assert_eq!(files(scene.cluster.dir()), before);

    // The peers run, this node is not even created.
    for node in [1, 2] {
        scene.cluster.create(node).expect("created");
        scene.cluster.start(node).expect("started");
    }
    let first = check(&scene, 0);
    assert_eq!(first.code, exit::DONE, "{}", first.stdout);
    assert!(
        !first.stdout.contains("FAIL") && first.stderr.is_empty(),
        "{}",
        first.stdout
    );
    assert_eq!(
        files(scene.cluster.dir()).difference(&before).count(),
        files(scene.cluster.dir()).len() - before.len()
    );
    assert!(!scene.cluster.data_dir(0).join("meta").exists());

    // All run, and stay connected whoever checks.
    scene.cluster.create(0).expect("created");
    scene.cluster.start(0).expect("started");
    scene.promote(0);
    for node in [0, 1, 2] {
        let passed = check(&scene, node);
        assert_eq!(passed.code, exit::DONE, "{}", passed.stdout);
    }
    let status = scene.cluster.status(0).expect("answers");
    assert!(
        status
            .peers
            .iter()
            .all(|peer| peer.connection.as_deref() == Some("Connected"))
    );

    // Peers with another config, another resource, each other's addresses.
    let config = scene.cluster.config().to_owned();
    let good = fs::read_to_string(&config).expect("readable");
    let addresses: Vec<&str> = good
        .lines()
        .filter(|line| line.starts_with("address"))
        .collect();
    let swapped = good
        .replace(addresses[1], "@")
        .replace(addresses[2], addresses[1]);
    for (text, word) in [
        (
            format!(
                "{good}\n[[node]]\nname = \"pbx-x\"\naddress = \"127.0.0.1:9\"\ndata_dir = \"/nowhere/x\"\nrun_dir = \"/nowhere/x\"\n"
            ),
            "other nodes, roles or addresses",
        ),
        (
            good.replace("resource = \"pbx\"", "resource = \"pbx2\""),
            "the peer is a node of resource \"pbx\"",
        ),
        (
            swapped.replace('@', addresses[2]),
            "answered at the address of",
        ),
    ] {
        assert_ne!(text, good);
        fs::write(&config, text).expect("written");
        let refused = check(&scene, 0);
        assert_eq!(refused.code, exit::FAILED, "{}", refused.stdout);
        let peer = refused
            .stdout
            .lines()
            .find(|line| line.starts_with("FAIL  peer"));
        assert!(
            peer.is_some_and(|line| line.contains(word)),
            "{}",
            refused.stdout
        );
    }
    fs::write(&config, good.replace("[journal]", "[jurnal]")).expect("written");
    let refused = check(&scene, 0);
    assert_eq!(
        (refused.code, &*refused.stdout),
        (exit::USAGE, ""),
        "{}",
        refused.message()
    );
    fs::write(&config, good).expect("restored");
}
