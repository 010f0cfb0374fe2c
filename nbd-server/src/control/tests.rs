//! The control thread against a data thread that the test plays.

mod fencing;
mod metrics;
mod operators;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::eventfd::EventFd;
use nix::sys::socket::sockopt::KeepAlive;
use replicator::io::DropReason;
use replicator::meta::config::Name;
use replicator::meta::volumes::VolumeRecord;
use replicator::types::{NodeId, Time};
use replicator::view::{ConnectionState, DiskState, Health, PeerView, Role};
use tempfile::TempDir;
use tokio::sync::mpsc;

use super::{ControlError, Listeners, run};
use crate::admin::client::{Client, status};
use crate::admin::{Connection, ExitCode, LINE_BYTES_MAX, Request, Response};
use crate::config::{Config, NodeRole};
use crate::handle::{DataCommand, DataError, DataHandle, Snapshot, Stream, ToControl, ToData};
use crate::meters::Meters;
use crate::nbd::Terms;

const WAIT: Duration = Duration::from_secs(30);

struct Daemon {
    config: Arc<Config>,
    me: usize,
    from_control: Receiver<ToData>,
    to_control: mpsc::UnboundedSender<ToControl>,
    snapshot: Arc<Mutex<Snapshot>>,
    meters: Arc<Meters>,
    thread: Option<JoinHandle<Result<(), ControlError>>>,
}

impl Daemon {
    fn start(config: &Arc<Config>, me: usize) -> Self {
        let listeners = Listeners::bind(&config.nodes[me]).unwrap();
        let (sender, from_control) = channel();
        let (to_control, from_data) = mpsc::unbounded_channel();
        let volumes = config.volumes.iter().map(|v| VolumeRecord {
            name: Name::from(&v.name).unwrap(),
            bytes: v.size_bytes,
        });
        let snapshot = Arc::new(Mutex::new(Snapshot {
            volumes: Arc::new(volumes.collect()),
            ..Snapshot::default()
        }));
        let data = DataHandle {
            sender,
            bell: Arc::new(EventFd::new().unwrap()),
            snapshot: Arc::clone(&snapshot),
            meters: Arc::default(),
        };
        let meters = Arc::clone(&data.meters);
        let (ready_sender, ready) = channel();
        let shared = Arc::clone(config);
        let thread = std::thread::spawn(move || {
            run(shared, me, listeners, data, from_data, move || {
                ready_sender.send(()).unwrap();
            })
        });
        ready.recv_timeout(WAIT).unwrap();
        Self {
            config: Arc::clone(config),
            me,
            from_control,
            to_control,
            snapshot,
            meters,
            thread: Some(thread),
        }
    }

    fn publish(&self, change: impl FnOnce(&mut Snapshot)) {
        let mut snapshot = self.snapshot.lock().unwrap();
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).unwrap();
        snapshot.at = Time(u64::try_from(now.tv_sec()).unwrap() * 1_000_000_000);
        change(&mut snapshot);
        drop(snapshot);
        self.to_control.send(ToControl::Changed).unwrap();
    }

    fn client(&self) -> Client {
        Client::connect(&self.config.nodes[self.me].admin_socket()).unwrap()
    }

    fn call(&self, request: &Request) -> Response {
        self.client().call(request).unwrap()
    }

    fn error(&self, request: &Request) -> (ExitCode, String) {
        match self.call(request) {
            Response::Error(error) => (error.code, error.message),
            other => panic!("{other:?}"),
        }
    }

    fn next(&self) -> ToData {
        self.from_control.recv_timeout(WAIT).unwrap()
    }

    fn peer_reason(&self, peer: usize, fragment: &str) {
        let began = Instant::now();
        let socket = self.config.nodes[self.me].admin_socket();
        loop {
            let status = status(&socket).unwrap();
            let reason = status.peers[peer].connection_reason.clone();
            if reason
                .as_ref()
                .is_some_and(|reason| reason.contains(fragment))
            {
                return;
            }
            assert!(began.elapsed() < WAIT, "{fragment:?} is not in {reason:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.to_control.send(ToControl::Ended { failed: None });
        let ended = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            ended.unwrap().unwrap();
            assert!(!self.config.nodes[self.me].admin_socket().exists());
        }
    }
}

/// A config on ports that were free a moment ago.
fn config(dir: &TempDir, nodes: usize) -> Arc<Config> {
    let text = config_text(dir, nodes);
    Arc::new(Config::parse(Path::new("pbx.toml"), &text).unwrap())
}

fn config_text(dir: &TempDir, nodes: usize) -> String {
    let held: Vec<_> = (0..2 * nodes)
        .map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    let port = |i: usize| held[i].local_addr().unwrap().port();
    let mut text = String::from(
        "resource = \"pbx\"\njournal = { size = \"16MiB\" }\nvolume = [{ name = \"db\", size = \"64MiB\" }]\n",
    );
    for i in 0..nodes {
        let name = ["a", "b", "c"][i];
        text.push_str(&format!(
            "[[node]]\nname = \"{name}\"\naddress = \"127.0.0.1:{}\"\nnbd_listen = \"127.0.0.1:{}\"\n\
             data_dir = \"{dir}/%n\"\nrun_dir = \"{dir}/%n\"\n",
            port(2 * i),
            port(2 * i + 1),
            dir = dir.path().display(),
        ));
    }
    text
}

#[test]
fn status_is_answered_before_the_data_thread_has_moved() {
    let dir = TempDir::new().unwrap();
    let config = config(&dir, 3);
    let daemon = Daemon::start(&config, 1);
    let Response::Status(status) = daemon.call(&Request::Status) else {
        panic!()
    };
    assert_eq!((status.node.as_str(), status.last_progress_ms), ("b", None));
    assert_eq!(status.health, crate::admin::Health::Down);
    assert_eq!(
        status
            .peers
            .iter()
            .map(|p| p.name.as_str())
            .collect::<Vec<_>>(),
        ["a", "c"]
    );

    daemon.publish(|snapshot| {
        snapshot.view.role = Role::Secondary;
        snapshot.view.health = Health::Ok;
        snapshot.view.primary = Some(NodeId(2));
    });
    let Response::Status(status) = daemon.call(&Request::Status) else {
        panic!()
    };
    assert_eq!(status.health, crate::admin::Health::Ok);
    assert_eq!(status.primary.as_deref(), Some("c"));

    // It hangs.
    daemon.publish(|snapshot| snapshot.at = Time(snapshot.at.0 - 60_000_000_000));
    let Response::Status(status) = daemon.call(&Request::Status) else {
        panic!()
    };
    assert_eq!(status.health, crate::admin::Health::Down);
    assert!(
        status.health_reason.contains("has not moved for 6"),
        "{}",
        status.health_reason
    );

    for socket in [config.nodes[1].admin_socket(), config.nodes[1].nbd_socket()] {
        let mode = std::fs::metadata(socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[test]
fn status_names_the_disk_that_is_at_fault_and_the_remedy() {
    let dir = TempDir::new().unwrap();
    let daemon = Daemon::start(&config(&dir, 1), 0);
    let told = |change: fn(&mut Snapshot)| {
        daemon.publish(change);
        let Response::Status(status) = daemon.call(&Request::Status) else {
            panic!()
        };
        (status.health, status.health_reason)
    };
    // It serves, and a disk hangs: the others' disks do.
    let (health, reason) = told(|snapshot| {
        snapshot.view.serving = true;
        snapshot.view.health = Health::Ok;
        snapshot.trouble.silence = Some("/dev/vg0/j: writing 4096 bytes at byte 0".into());
    });
    assert_eq!(health, crate::admin::Health::Degraded);
    assert_eq!(
        reason,
        "/dev/vg0/j: writing 4096 bytes at byte 0; look at that device"
    );
    // One that could only take over can not.
    let (health, _) = told(|snapshot| snapshot.view.serving = false);
    assert_eq!(health, crate::admin::Health::Down);
    // A read failed: whoever asked for it got an error.
    let (health, reason) = told(|snapshot| {
        snapshot.view.serving = true;
        snapshot.trouble.silence = None;
        snapshot.trouble.failure = Some("/dev/vg0/s: reading failed".into());
        snapshot.trouble.advice = "mend or replace that device";
    });
    assert_eq!(health, crate::admin::Health::Degraded);
    assert_eq!(
        reason,
        "/dev/vg0/s: reading failed; promote another node, mend or replace that device, then restart repld"
    );
    // A write failed: the node has stepped aside.
    let (health, reason) = told(|snapshot| {
        snapshot.view.serving = false;
        snapshot.view.disk_state = DiskState::Failed;
        snapshot.view.failed = true;
        snapshot.view.health = Health::Down;
        snapshot.view.health_reason = "a store can not be written";
    });
    assert_eq!(health, crate::admin::Health::Down);
    assert_eq!(
        reason,
        "a store can not be written: /dev/vg0/s: reading failed; mend or replace that device, then restart repld"
    );
}

#[test]
fn commands_are_forwarded_and_their_refusals_come_back() {
    let dir = TempDir::new().unwrap();
    let daemon = Daemon::start(&config(&dir, 1), 0);
    let socket = daemon.config.nodes[0].admin_socket();
    let asking = std::thread::spawn(move || {
        let mut client = Client::connect(&socket).unwrap();
        client
            .call(&Request::Promote {
                timeout_ms: 1234,
                force: false,
            })
            .unwrap()
    });
    let ToData::Command { command, answer } = daemon.next() else {
        panic!()
    };
    assert_eq!(command, DataCommand::Promote { timeout_ms: 1234 });
    let refusal = DataError {
        code: 11,
        message: "node b is Primary".to_owned(),
    };
    answer.send(Err(refusal)).unwrap();
    let Response::Error(error) = asking.join().unwrap() else {
        panic!()
    };
    assert_eq!(
        (error.code, error.message.as_str()),
        (ExitCode::OtherPrimary, "node b is Primary")
    );

    let (code, text) = daemon.error(&Request::Connect {
        peer: "x".to_owned(),
    });
    assert!(
        code == ExitCode::Usage && text.contains("no peer \"x\""),
        "{text}"
    );
}

#[test]
fn losing_the_quorum_by_disconnect_is_said() {
    let dir = TempDir::new().unwrap();
    let daemon = Daemon::start(&config(&dir, 3), 0);
    daemon.publish(|snapshot| {
        snapshot.view.quorum = true;
        snapshot.view.peers.push(PeerView {
            node: NodeId(1),
            connection: ConnectionState::Connected,
            ..PeerView::default()
        });
    });
    let socket = daemon.config.nodes[0].admin_socket();
    let asking = std::thread::spawn(move || {
        Client::connect(&socket)
            .unwrap()
            .call(&Request::Disconnect {
                peer: "b".to_owned(),
            })
    });
    let ToData::Command { command, answer } = daemon.next() else {
        panic!()
    };
    assert_eq!(command, DataCommand::Disconnect { peer: NodeId(1) });
    answer.send(Ok(())).unwrap();
    let Response::Done {
        notice: Some(notice),
    } = asking.join().unwrap().unwrap()
    else {
        panic!()
    };
    assert!(notice.contains("quorum of 2 is lost"), "{notice}");
}

#[test]
fn nonsense_is_answered_and_ends_the_connection() {
    let dir = TempDir::new().unwrap();
    let daemon = Daemon::start(&config(&dir, 1), 0);
    let long = vec![b'x'; LINE_BYTES_MAX];
    for (bytes, fragment) in [
        (&b"hello\n"[..], "can not be read"),
        (b"{\"verb\":\"format\"}\n", "can not be read"),
        (b"\xff\n", "can not be read"),
        (&long, "longer than"),
    ] {
        let mut stream = UnixStream::connect(daemon.config.nodes[0].admin_socket()).unwrap();
        stream.write_all(bytes).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains(fragment), "{answer}");
    }
}

#[test]
fn events_begin_with_what_is_there() {
    let dir = TempDir::new().unwrap();
    let daemon = Daemon::start(&config(&dir, 1), 0);
    let mut client = daemon.client();
    client.send(&Request::Events).unwrap();
    for what in ["exists resource pbx", "exists volume db"] {
        let Response::Event(event) = client.next(Some(WAIT)).unwrap() else {
            panic!()
        };
        assert!(event.to_string().contains(what), "{event}");
    }
    daemon.publish(|snapshot| snapshot.view.role = Role::Primary);
    let Response::Event(event) = client.next(Some(WAIT)).unwrap() else {
        panic!()
    };
    assert_eq!(event.changes["role"], "Primary");

    let mut watch = daemon.client();
    watch.send(&Request::Watch).unwrap();
    for _ in 0..2 {
        assert!(matches!(
            watch.next(Some(WAIT)).unwrap(),
            Response::Status(_)
        ));
    }
}

#[test]
fn a_second_daemon_does_not_take_the_sockets() {
    let dir = TempDir::new().unwrap();
    let config = config(&dir, 2);
    let daemon = Daemon::start(&config, 0);
    assert!(Listeners::bind(&config.nodes[0]).is_err());
    let mut other = config.nodes[1].clone();
    other.run_dir = config.nodes[0].run_dir.clone();
    let error = Listeners::bind(&other).unwrap_err().to_string();
    assert!(error.contains("another program answers"), "{error}");
    drop(daemon);

    // Stale ones are replaced, other things are not.
    let node = &config.nodes[0];
    drop(std::os::unix::net::UnixListener::bind(node.nbd_socket()).unwrap());
    drop(Listeners::bind(node).unwrap());
    std::fs::remove_file(node.nbd_socket()).unwrap();
    std::fs::write(node.nbd_socket(), "x").unwrap();
    let error = Listeners::bind(node).unwrap_err().to_string();
    assert!(error.contains("is no socket"), "{error}");
}

/// The client's flags, GO for "db" without information requests, and the first bytes of a request.
const GO: &[u8] = b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x08\0\0\0\x02db\0\0\x25\x60\x95\x13early";

#[test]
fn clients_are_refused_or_handed_over_with_what_they_sent_early() {
    let dir = TempDir::new().unwrap();
    let config = config(&dir, 2);
    let daemon = Daemon::start(&config, 0);
    daemon.publish(|snapshot| snapshot.view.primary = Some(NodeId(1)));
    let mut refused = UnixStream::connect(config.nodes[0].nbd_socket()).unwrap();
    refused.set_read_timeout(Some(WAIT)).unwrap();
    refused.write_all(&GO[..GO.len() - 9]).unwrap();
    let mut seen = Vec::new();
    let mut buffer = [0; 1024];
    while !String::from_utf8_lossy(&seen).contains("b is Primary of pbx") {
        let n = refused.read(&mut buffer).unwrap();
        assert_ne!(n, 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buffer[..n]);
    }

    daemon.publish(|snapshot| snapshot.view.serving = true);
    let mut unix = UnixStream::connect(config.nodes[0].nbd_socket()).unwrap();
    unix.write_all(GO).unwrap();
    let mut tcp = TcpStream::connect(config.nodes[0].nbd_listen.unwrap()).unwrap();
    let first = daemon.next();
    tcp.write_all(GO).unwrap();
    for (message, is_tcp) in [(first, false), (daemon.next(), true)] {
        let ToData::Client {
            stream,
            volume,
            terms,
            leftover,
        } = message
        else {
            panic!("{message:?}")
        };
        assert_eq!(volume.0, 0);
        assert_eq!(terms, Terms::default());
        assert_eq!(leftover, b"\x25\x60\x95\x13early");
        // Nothing reads on it any more but the data thread.
        match (stream, is_tcp) {
            (Stream::Unix(mut stream), false) => {
                unix.write_all(b"more").unwrap();
                stream.read_exact(&mut buffer[..4]).unwrap();
            }
            (Stream::Tcp(mut stream), true) => {
                assert!(stream.nodelay().unwrap());
                // A host that dies is noticed, also where nobody writes.
                let kept = nix::sys::socket::getsockopt(&stream, KeepAlive);
                assert_eq!(kept, Ok(true));
                tcp.write_all(b"more").unwrap();
                stream.read_exact(&mut buffer[..4]).unwrap();
            }
            (other, _) => panic!("{other:?}"),
        }
        assert_eq!(&buffer[..4], b"more");
    }
}

#[test]
fn two_nodes_meet_and_meet_again() {
    let dir = TempDir::new().unwrap();
    let config = config(&dir, 2);
    let a = Daemon::start(&config, 0);
    a.peer_reason(0, "refused");
    let b = Daemon::start(&config, 1);
    let meet = || {
        let ToData::Peer {
            stream: Stream::Tcp(mut at_a),
            peer,
            ..
        } = a.next()
        else {
            panic!()
        };
        assert_eq!(peer, NodeId(1));
        let ToData::Peer {
            stream: Stream::Tcp(mut at_b),
            peer,
            ..
        } = b.next()
        else {
            panic!()
        };
        assert_eq!(peer, NodeId(0));
        at_a.write_all(b"frame").unwrap();
        let mut frame = [0; 5];
        at_b.read_exact(&mut frame).unwrap();
        assert_eq!(&frame, b"frame");
    };
    meet();
    a.to_control
        .send(ToControl::PeerDown { peer: NodeId(1) })
        .unwrap();
    meet();

    // Who disconnected says so to whoever dials.
    b.to_control
        .send(ToControl::Reach {
            peer: NodeId(0),
            wanted: false,
        })
        .unwrap();
    let status = || status(&config.nodes[1].admin_socket()).unwrap();
    let began = Instant::now();
    while status().peers[0].connection != Connection::StandAlone {
        assert!(began.elapsed() < WAIT);
    }
    a.to_control
        .send(ToControl::PeerDown { peer: NodeId(1) })
        .unwrap();
    a.peer_reason(
        0,
        "the peer refused: b is disconnected from a; run replctl connect a on b",
    );
    assert!(b.from_control.try_recv().is_err());
    b.to_control
        .send(ToControl::Reach {
            peer: NodeId(0),
            wanted: true,
        })
        .unwrap();
    meet();

    // What ended the connection for good is told until somebody connects again.
    let why = DropReason::Unrelated("they went on without each other");
    b.to_control
        .send(ToControl::StandAlone {
            peer: NodeId(0),
            why,
        })
        .unwrap();
    b.peer_reason(
        0,
        "the peer's data has another identity: they went on without each other; when that is settled, run replctl connect",
    );
    b.to_control
        .send(ToControl::Reach {
            peer: NodeId(0),
            wanted: true,
        })
        .unwrap();
    a.to_control
        .send(ToControl::PeerDown { peer: NodeId(1) })
        .unwrap();
    meet();
}

#[test]
fn nodes_with_other_configs_do_not_meet() {
    let dir = TempDir::new().unwrap();
    let config = config(&dir, 2);
    let mut other = Config::clone(&config);
    other.nodes[0].role = NodeRole::Witness;
    let a = Daemon::start(&config, 0);
    let b = Daemon::start(&Arc::new(other), 1);
    a.peer_reason(0, "the peer refused: the peer's config has other nodes");
    b.peer_reason(0, "the peer's config has other nodes");
    assert!(a.from_control.try_recv().is_err() && b.from_control.try_recv().is_err());

    // A stranger is told what is wrong and changes nothing.
    let mut stranger = TcpStream::connect(config.nodes[1].address).unwrap();
    stranger.write_all(&[b'x'; 512]).unwrap();
    let mut answer = Vec::new();
    stranger.read_to_end(&mut answer).unwrap();
    assert!(String::from_utf8_lossy(&answer).contains("is no node of a replicated disk"));
}

#[test]
fn a_socket_with_a_dropped_read_is_never_handed_on() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let runtime = super::runtime::Runtime::new().unwrap();
    let handed_on = runtime.block_on(async {
        let socket = super::runtime::Socket::new(Stream::Unix(ours)).unwrap();
        let late = tokio::time::timeout(Duration::from_millis(10), socket.read(16)).await;
        assert!(late.is_err());
        socket.into_stream()
    });
    assert!(handed_on.is_none());
    theirs.set_read_timeout(Some(WAIT)).unwrap();
    assert_eq!(
        theirs.read(&mut [0; 16]).unwrap(),
        0,
        "it has to be shut down"
    );
}

#[test]
fn clients_that_never_choose_are_bounded() {
    let dir = TempDir::new().unwrap();
    let config = config(&dir, 1);
    let _daemon = Daemon::start(&config, 0);
    let greeted = || {
        let mut stream = UnixStream::connect(config.nodes[0].nbd_socket()).unwrap();
        stream.set_read_timeout(Some(WAIT)).unwrap();
        let bytes = stream.read(&mut [0; 18]).unwrap();
        (bytes > 0).then_some(stream)
    };
    let held: Vec<_> = (0..super::NBD_NEGOTIATING_MAX)
        .map(|_| greeted().unwrap())
        .collect();
    // One more, and the one that has waited longest goes; whoever speaks is never kept away.
    let more = greeted().unwrap();
    let ends = |stream: &UnixStream| matches!((&mut &*stream).read(&mut [0; 16]), Ok(0));
    assert!(ends(&held[0]));
    drop(held);
    let again: Vec<_> = (0..3 * super::NBD_NEGOTIATING_MAX)
        .map(|_| greeted().unwrap())
        .collect();
    assert!(ends(&more) && ends(&again[0]));
    greeted().unwrap();
}
