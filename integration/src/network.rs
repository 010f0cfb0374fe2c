//! Hosts on a switch, in network namespaces of their own, whose links can be cut: what is sent over such a link
//! vanishes without a word, as behind a broken switch.
//!
//! It needs a network namespace that nobody else uses, with the right to make more: [`Network::rerun_in_own`] runs a
//! test again in one, as root or in a user namespace.

use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tools::cluster::Host;

use crate::{BOUND, PROGRAMS_DIR, programs};

/// Says that this process has a network of its own.
const OWN: &str = "REPLICATOR_OWN_NETWORK";

/// Hosts, and the switch between them.
#[derive(Debug)]
pub struct Network {
    holders: Vec<Child>,
}

impl Network {
    /// Why there can be none on this machine, if so.
    #[must_use]
    pub fn missing() -> Option<String> {
        if Self::is_own() {
            return None;
        }
        for (program, option) in [
            ("ip", "-V"),
            ("nft", "-v"),
            ("unshare", "-V"),
            ("nsenter", "-V"),
        ] {
            if !quietly(Command::new(program).arg(option)) {
                return Some(format!("needs {program}"));
            }
        }
        let script = "ip link add br0 type bridge && nft add table bridge probe";
        let works = quietly(unshare(true).args(["sh", "-c", script]));
        (!works).then(|| "needs network namespaces with bridges and nftables".to_owned())
    }

    /// Why a process in a network of its own can mount no small disk, if so.
    #[must_use]
    pub fn lacks_mounts() -> Option<String> {
        if Self::is_own() {
            return None;
        }
        let script = "mount -t tmpfs none /mnt && \
                      dd if=/dev/zero of=/mnt/probe bs=4096 count=1 oflag=direct";
        let works = quietly(unshare(false).args(["sh", "-c", script]));
        (!works).then(|| "needs mount namespaces, and O_DIRECT on tmpfs (Linux 6.6)".to_owned())
    }

    /// Whether this process is in a network of its own.
    #[must_use]
    pub fn is_own() -> bool {
        std::env::var_os(OWN).is_some()
    }

    /// Runs one test of this very program with mounts of its own, and with a network of its own if that is wanted; whether
    /// it passed.
    ///
    /// # Panics
    /// If it can not be started.
    #[must_use]
    pub fn rerun_in_own(network: bool, test: &str) -> bool {
        let programs = programs().repld.parent().expect("in a directory");
        let this = std::env::current_exe().expect("a test knows its program");
        let status = unshare(network)
            .arg(this)
            .args(["--exact", test])
            .env(OWN, "1")
            .env(PROGRAMS_DIR, programs)
            .stdin(Stdio::null())
            .status();
        status.expect("unshare starts").success()
    }

    /// A network of so many hosts.
    ///
    /// # Panics
    /// If it can not be made.
    #[must_use]
    pub fn new(hosts: usize) -> Self {
        assert!(Self::is_own(), "not in the machine's own network");
        run(&["ip", "link", "set", "lo", "up"]);
        run(&["ip", "link", "add", "switch", "type", "bridge"]);
        run(&["ip", "link", "set", "switch", "up"]);
        run(&[
            "nft",
            "add table bridge links; \
             add set bridge links cut { type ipv4_addr . ipv4_addr; }; \
             add chain bridge links forward { type filter hook forward priority 0; }; \
             add rule bridge links forward ip saddr . ip daddr @cut drop",
        ]);
        let mut network = Self {
            holders: Vec::new(),
        };
        for host in 0..hosts {
            network.add(host);
        }
        network
    }

    fn add(&mut self, host: usize) {
        let mut command = Command::new("unshare");
        command.args(["--net", "sleep", "1000000"]);
        let holder = command.stdin(Stdio::null()).spawn();
        let pid = {
            self.holders.push(holder.expect("unshare starts"));
            self.holders[host].id()
        };
        let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        let start = Instant::now();
        while namespace(&pid.to_string()) == namespace("self") {
            assert!(start.elapsed() < BOUND, "no namespace for host {host}");
            std::thread::sleep(Duration::from_millis(2));
        }
        let (port, pid) = (format!("port{host}"), pid.to_string());
        run(&[
            "ip", "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &pid,
        ]);
        run(&["ip", "link", "set", &port, "master", "switch", "up"]);
        let address = format!("{}/24", address(host));
        for command in [
            &["ip", "link", "set", "lo", "up"][..],
            &["ip", "address", "add", &address, "dev", "eth0"],
            &["ip", "link", "set", "eth0", "up"],
        ] {
            let mut whole: Vec<String> = enter(&pid);
            whole.extend(command.iter().map(ToString::to_string));
            run(&whole.iter().map(String::as_str).collect::<Vec<_>>());
        }
    }

    /// The hosts, for a cluster.
    #[must_use]
    pub fn hosts(&self) -> Vec<Host> {
        let hosts = self.holders.iter().enumerate();
        hosts
            .map(|(host, holder)| Host {
                address: address(host),
                enter: enter(&holder.id().to_string()),
            })
            .collect()
    }

    /// What one host sends another one vanishes.
    ///
    /// # Panics
    /// If the switch can not be told.
    pub fn cut_one_way(&self, from: usize, to: usize) {
        let pair = format!("{{ {} . {} }}", address(from), address(to));
        run(&["nft", "add", "element", "bridge", "links", "cut", &pair]);
    }

    /// What two hosts send each other vanishes.
    ///
    /// # Panics
    /// If the switch can not be told.
    pub fn cut(&self, left: usize, right: usize) {
        self.cut_one_way(left, right);
        self.cut_one_way(right, left);
    }

    /// Cuts a host off from all others.
    ///
    /// # Panics
    /// If the switch can not be told.
    pub fn isolate(&self, host: usize) {
        for other in (0..self.holders.len()).filter(|other| *other != host) {
            self.cut(host, other);
        }
    }

    /// All links work.
    ///
    /// # Panics
    /// If the switch can not be told.
    pub fn heal(&self) {
        run(&["nft", "flush", "set", "bridge", "links", "cut"]);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for holder in &mut self.holders {
            // The namespaces go with the last process in them.
            let _ = holder.kill();
            let _ = holder.wait();
        }
    }
}

fn address(host: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, u8::try_from(host + 1).expect("few hosts"))
}

fn enter(pid: &str) -> Vec<String> {
    vec!["nsenter".into(), format!("--net=/proc/{pid}/ns/net")]
}

/// The beginning of a command that runs something in namespaces of its own.
fn unshare(network: bool) -> Command {
    let mut command = Command::new("unshare");
    if !nix::unistd::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    if network {
        command.arg("--net");
    }
    command.args(["--mount", "--"]);
    command
}

fn quietly(command: &mut Command) -> bool {
    let command = command.stdin(Stdio::null()).stdout(Stdio::null());
    let status = command.stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

fn run(command: &[&str]) {
    let status = Command::new(command[0]).args(&command[1..]).status();
    let status = status.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}");
}
