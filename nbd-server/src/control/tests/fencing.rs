//! The fence-peer handler and self-fencing, against a data thread that the test plays.

use super::*;
use crate::admin::{Health as Verdict, Status, Suspended};
use crate::config::{FencePeer, Watchdog};
use replicator::view;

/// A handler that writes its environment down, waits until it is let go (each time, or this time), and ends with a code.
fn handler(dir: &TempDir, code: i32) -> FencePeer {
    let (handler, place) = (dir.path().join("handler"), dir.path().display().to_string());
    let script = format!(
        "#!/bin/sh\nenv > {place}/env.new\nmv {place}/env.new {place}/env\necho x >> {place}/calls\n\
         n=$(wc -l < {place}/calls)\n\
         while [ ! -e {place}/go ] && [ ! -e {place}/go$n ]; do sleep 0.02; done\nexit {code}\n"
    );
    std::fs::write(&handler, script).unwrap();
    std::fs::set_permissions(&handler, std::fs::Permissions::from_mode(0o755)).unwrap();
    FencePeer {
        handler,
        timeout: Duration::from_secs(30),
    }
}

fn with_handler(dir: &TempDir, code: i32) -> Arc<Config> {
    let mut config = Config::clone(&config(dir, 2));
    config.policy.lease_ms = 200;
    config.fence_peer = Some(handler(dir, code));
    Arc::new(config)
}

/// A Primary whose peer is gone, and with it the lease.
fn lose(daemon: &Daemon) {
    daemon.publish(|snapshot| {
        snapshot.view.role = Role::Primary;
        snapshot.view.serving = true;
        snapshot.view.quorum = false;
        snapshot.view.suspended = view::Suspended::Quorum;
        snapshot.view.health = Health::Down;
        snapshot.view.health_reason = "the other node can not be reached";
        snapshot.view.disk_state = DiskState::UpToDate;
        snapshot.view.peers.clear();
        snapshot.view.peers.push(PeerView {
            node: NodeId(1),
            connection: ConnectionState::Connecting,
            membership: view::Membership::Full,
            ..PeerView::default()
        });
    });
}

fn status_of(daemon: &Daemon) -> Status {
    status(&daemon.config.nodes[daemon.me].admin_socket()).unwrap()
}

fn until<T>(what: &str, mut seen: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = seen() {
            return value;
        }
        assert!(began.elapsed() < WAIT, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn calls(dir: &TempDir) -> usize {
    std::fs::read_to_string(dir.path().join("calls")).map_or(0, |text| text.lines().count())
}

#[test]
fn a_peer_that_the_handler_switched_off_is_confirmed_to_be_stopped() {
    let dir = TempDir::new().unwrap();
    let daemon = Daemon::start(&with_handler(&dir, 7), 0);
    lose(&daemon);
    let env = until("the handler is called", || {
        std::fs::read_to_string(dir.path().join("env")).ok()
    });
    for line in [
        "DRBD_RESOURCE=pbx",
        "DRBD_MY_NODE_ID=0",
        "DRBD_PEER_NODE_ID=1",
        "DRBD_NODE_ID_0=a",
        "DRBD_NODE_ID_1=b",
        "DRBD_PEER=b",
        "DRBD_PEER_ADDRESS=127.0.0.1",
        "DRBD_PEER_AF=ipv4",
        "DRBD_CSTATE=Connecting",
        "DRBD_VOLUME=0",
        "UP_TO_DATE_NODES=0x00000001",
    ] {
        assert!(env.lines().any(|l| l == line), "no {line} in {env}");
    }
    assert!(
        !env.contains("CARGO"),
        "our own environment is there: {env}"
    );
    // I/O waits for it, which is told; nothing is believed yet.
    let status = status_of(&daemon);
    assert_eq!(status.suspended, Suspended::Fencing);
    assert!(status.health_reason.contains("handler is being run for b"));
    assert!(daemon.from_control.try_recv().is_err());

    std::fs::write(dir.path().join("go"), "").unwrap();
    let ToData::Command { command, answer } = daemon.next() else {
        panic!()
    };
    assert_eq!(command, DataCommand::ConfirmStopped { peer: NodeId(1) });
    answer.send(Ok(())).unwrap();
    until("it is over", || {
        (status_of(&daemon).suspended == Suspended::Quorum).then_some(())
    });
    // Who counts for nothing is not waited for, and nobody is asked about it.
    daemon.publish(|s| s.view.peers[0].connection = ConnectionState::Connected);
    daemon.publish(|snapshot| {
        snapshot.view.peers[0].connection = ConnectionState::Connecting;
        snapshot.view.peers[0].membership = view::Membership::Dropped;
    });
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(calls(&dir), 1);
}

#[test]
fn whatever_else_a_handler_says_confirms_nothing_and_is_told() {
    for (code, text) in [
        (0, "ended with 0 (that is no exit code"),
        (3, "ended with 3 (the peer's data is inconsistent)"),
        (4, "ended with 4 (the peer is outdated)"),
        (5, "ended with 5 (the peer is not reached)"),
        (6, "ended with 6 (the peer is Primary)"),
        (8, "ended with 8 (that is no exit code"),
    ] {
        let dir = TempDir::new().unwrap();
        std::fs::write(dir.path().join("go"), "").unwrap();
        let daemon = Daemon::start(&with_handler(&dir, code), 0);
        lose(&daemon);
        let status = until(text, || {
            let status = status_of(&daemon);
            status.health_reason.contains(text).then_some(status)
        });
        assert_eq!(
            (status.suspended, status.health),
            (Suspended::Quorum, Verdict::Down)
        );
        // It is not called again for the same loss, and again for the next.
        lose(&daemon);
        assert_eq!(calls(&dir), 1);
        daemon.publish(|s| s.view.peers[0].connection = ConnectionState::Connected);
        until("that it is connected is seen", || {
            (!status_of(&daemon).health_reason.contains("ended with")).then_some(())
        });
        lose(&daemon);
        until("it is called again", || (calls(&dir) == 2).then_some(()));
        assert!(daemon.from_control.try_recv().is_err());
    }
}

#[test]
fn a_handler_that_can_not_be_run_or_does_not_end_is_told() {
    let dir = TempDir::new().unwrap();
    let mut config = Config::clone(&with_handler(&dir, 7));
    config.fence_peer.as_mut().unwrap().timeout = Duration::from_millis(100);
    let daemon = Daemon::start(&Arc::new(config), 0);
    lose(&daemon);
    until("that it was killed is told", || {
        status_of(&daemon)
            .health_reason
            .contains("did not end within")
            .then_some(())
    });
    drop(daemon);

    let mut config = Config::clone(&with_handler(&dir, 7));
    config.fence_peer.as_mut().unwrap().handler = dir.path().join("nothing");
    let daemon = Daemon::start(&Arc::new(config), 0);
    lose(&daemon);
    until("that it is not there is told", || {
        status_of(&daemon)
            .health_reason
            .contains("can not be run")
            .then_some(())
    });
    assert!(daemon.from_control.try_recv().is_err());
}

#[test]
fn what_a_handler_says_after_the_peer_was_back_comes_too_late() {
    let dir = TempDir::new().unwrap();
    let config = with_handler(&dir, 7);
    let a = Daemon::start(&config, 0);
    lose(&a);
    until("the handler is called", || (calls(&dir) == 1).then_some(()));
    // The peer is back, and gone again.
    let b = Daemon::start(&config, 1);
    assert!(matches!(a.next(), ToData::Peer { .. }));
    drop(b);
    a.to_control
        .send(ToControl::PeerDown { peer: NodeId(1) })
        .unwrap();
    std::fs::write(dir.path().join("go1"), "").unwrap();
    // That was another loss than this one, for which it is called anew.
    until("it is called again", || (calls(&dir) == 2).then_some(()));
    while let Ok(message) = a.from_control.try_recv() {
        assert!(matches!(message, ToData::Peer { .. }), "{message:?}");
    }
    std::fs::write(dir.path().join("go2"), "").unwrap();
    let command = loop {
        match a.next() {
            ToData::Peer { .. } => {}
            ToData::Command { command, .. } => break command,
            message => panic!("{message:?}"),
        }
    };
    assert_eq!(command, DataCommand::ConfirmStopped { peer: NodeId(1) });
}

#[test]
fn a_promotion_calls_the_handler_when_the_other_node_does_not_come() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("go"), "").unwrap();
    let daemon = Daemon::start(&with_handler(&dir, 5), 0);
    lose(&daemon);
    daemon.publish(|snapshot| {
        snapshot.view.role = Role::Secondary;
        snapshot.view.serving = false;
        snapshot.view.suspended = view::Suspended::No;
        snapshot.view.disk_state = DiskState::Consistent;
    });
    for count in 1..=2 {
        let socket = daemon.config.nodes[0].admin_socket();
        let asking = std::thread::spawn(move || {
            let request = Request::Promote {
                timeout_ms: 5000,
                force: false,
            };
            Client::connect(&socket).unwrap().call(&request).unwrap()
        });
        let ToData::Command { command, answer } = daemon.next() else {
            panic!()
        };
        assert_eq!(command, DataCommand::Promote { timeout_ms: 5000 });
        until("it is called", || (calls(&dir) >= count).then_some(()));
        until("it has ended", || {
            status_of(&daemon)
                .health_reason
                .contains("ended with 5")
                .then_some(())
        });
        let refusal = DataError {
            code: 10,
            message: "1 of 2 voters".to_owned(),
        };
        answer.send(Err(refusal)).unwrap();
        let Response::Error(error) = asking.join().unwrap() else {
            panic!()
        };
        assert!(
            error
                .message
                .contains("1 of 2 voters; the fence-peer handler ended with 5")
        );
        assert_eq!(calls(&dir), count);
    }
}

#[test]
fn clients_of_a_primary_without_a_majority_are_disconnected_after_a_while() {
    let dir = TempDir::new().unwrap();
    let mut config = Config::clone(&config(&dir, 3));
    config.policy.disconnect_clients_after_ms = 300;
    let daemon = Daemon::start(&Arc::new(config), 0);
    let until_ns = |seconds: u64| {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).unwrap();
        Time((u64::try_from(now.tv_sec()).unwrap() + seconds) * 1_000_000_000)
    };
    daemon.publish(|snapshot| {
        snapshot.view.role = Role::Primary;
        snapshot.view.serving = true;
        snapshot.view.lease_until = until_ns(3600);
        snapshot.nbd_clients[0] = 1;
    });
    let opens = || {
        let mut stream = UnixStream::connect(daemon.config.nodes[0].nbd_socket()).unwrap();
        stream.set_read_timeout(Some(WAIT)).unwrap();
        stream.write_all(&GO[..GO.len() - 9]).unwrap();
        let mut seen = Vec::new();
        let mut buffer = [0; 1024];
        loop {
            let n = stream.read(&mut buffer).unwrap();
            seen.extend_from_slice(&buffer[..n]);
            if n == 0 || seen.len() > 18 {
                return String::from_utf8_lossy(&seen).into_owned();
            }
        }
    };
    // While the lease runs nobody is dropped: a client comes in.
    assert!(!opens().contains("reaches no majority"));
    assert!(matches!(daemon.next(), ToData::Client { .. }));

    let began = Instant::now();
    daemon.publish(|snapshot| snapshot.view.lease_until = until_ns(0));
    let ToData::Command { command, .. } = daemon.next() else {
        panic!()
    };
    assert_eq!(command, DataCommand::DropClients);
    assert!(began.elapsed() >= Duration::from_millis(300));
    until("clients are turned away", || {
        opens().contains("reaches no majority").then_some(())
    });
    // It is back.
    daemon.publish(|snapshot| {
        snapshot.view.lease_until = until_ns(3600);
        snapshot.nbd_clients[0] = 0;
    });
    until("clients are served again", || {
        (!opens().contains("reaches no majority")).then_some(())
    });
}

#[test]
fn a_watchdog_is_fed_while_the_node_is_well_and_closed_with_v_only_then() {
    let dir = TempDir::new().unwrap();
    let device = dir.path().join("watchdog");
    std::fs::write(&device, "").unwrap();
    let mut config = Config::clone(&config(&dir, 3));
    config.watchdog = Some(Watchdog {
        device: device.clone(),
        after: Duration::from_millis(200),
    });
    let config = Arc::new(config);
    let fed = || std::fs::read(&device).unwrap();
    let fed_more = |than: usize| until("it is fed", || (fed().len() > than).then(|| fed().len()));
    let well = |daemon: &Daemon| {
        daemon.publish(|snapshot| {
            snapshot.view.role = Role::Secondary;
            snapshot.at = Time(u64::MAX / 2);
        });
    };
    // A Secondary is well, and a stop disarms it.
    let daemon = Daemon::start(&config, 0);
    well(&daemon);
    fed_more(fed_more(0));
    drop(daemon);
    assert_eq!(fed().last(), Some(&b'V'));

    // A Primary without a lease is not, and what it leaves behind resets the host.
    let daemon = Daemon::start(&config, 0);
    well(&daemon);
    fed_more(fed().len());
    daemon.publish(|snapshot| snapshot.view.role = Role::Primary);
    until("it is fed no more", || {
        let before = fed().len();
        std::thread::sleep(2 * crate::control::selffence::FEED);
        (fed().len() == before).then_some(())
    });
    let left = fed().len();
    drop(daemon);
    assert_eq!(fed().len(), left);
    assert_ne!(fed().last(), Some(&b'V'));

    // One that is not there is no reason to start without it.
    let mut other = Config::clone(&config);
    other.watchdog.as_mut().unwrap().device = dir.path().join("nothing");
    let listeners = Listeners::bind(&other.nodes[0]).unwrap();
    let (sender, _from_control) = channel();
    let (_to_control, from_data) = mpsc::unbounded_channel();
    let data = DataHandle {
        sender,
        bell: Arc::new(EventFd::new().unwrap()),
        snapshot: Arc::default(),
        meters: Arc::default(),
    };
    let error = run(Arc::new(other), 0, listeners, data, from_data, || {
        panic!("it starts")
    });
    let error = error.unwrap_err().to_string();
    assert!(error.contains("[watchdog] device"), "{error}");
}
