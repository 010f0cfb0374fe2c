//! What operators are told.

use replicator::view::{Membership, SyncView};
use replicator::wire::frame::Verified;

use super::*;

fn refused(code: u8, message: &str) -> DataError {
    DataError {
        code,
        message: message.to_owned(),
    }
}

/// Asks for something on a thread of its own.
fn asking(daemon: &Daemon, request: Request) -> JoinHandle<Response> {
    let mut client = daemon.client();
    std::thread::spawn(move || client.call(&request).unwrap())
}

fn disconnect(daemon: &Daemon, peer: &str) -> Option<String> {
    let peer = peer.to_owned();
    let asking = asking(daemon, Request::Disconnect { peer });
    let ToData::Command { answer, .. } = daemon.next() else {
        panic!()
    };
    answer.send(Ok(())).unwrap();
    match asking.join().unwrap() {
        Response::Done { notice } => notice,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_disconnect_tells_of_a_lost_quorum_by_the_nodes_that_count() {
    let dir = TempDir::new().unwrap();
    let daemon = Daemon::start(&config(&dir, 3), 0);
    let peer = |node, membership| PeerView {
        node: NodeId(node),
        connection: ConnectionState::Connected,
        membership,
        ..PeerView::default()
    };
    // One is connected and counts for nothing.
    daemon.publish(|snapshot| {
        snapshot.view.quorum = true;
        snapshot.view.membership = Membership::Full;
        snapshot.view.peers.push(peer(1, Membership::Full));
        snapshot.view.peers.push(peer(2, Membership::Out));
    });
    let notice = disconnect(&daemon, "b").unwrap();
    assert!(
        notice.contains("1 of the 2 nodes that count: the quorum of 2 is lost"),
        "{notice}"
    );
    assert_eq!(disconnect(&daemon, "c"), None);
    // A witness alone is no majority of the data nodes.
    daemon.publish(|snapshot| {
        snapshot.view.peers[1] = PeerView {
            role: Role::Witness,
            ..peer(2, Membership::Full)
        };
    });
    let notice = disconnect(&daemon, "b").unwrap();
    assert!(notice.contains("1 of the 2 data nodes"), "{notice}");
    assert_eq!(disconnect(&daemon, "c"), None);
}

#[test]
fn a_promotion_waits_for_a_disk_that_does_not_answer_for_a_moment() {
    let dir = TempDir::new().unwrap();
    let daemon = Daemon::start(&config(&dir, 1), 0);
    daemon.publish(|s| s.trouble.silence = Some("/dev/vg0/j: flushing".into()));
    let (timeout_ms, force) = (60_000, false);
    let promote = || asking(&daemon, Request::Promote { timeout_ms, force });
    let answers = |result: Result<(), DataError>| {
        let ToData::Command { command, answer } = daemon.next() else {
            panic!()
        };
        assert!(matches!(
            command,
            DataCommand::Promote {
                timeout_ms: 1..=60_000
            }
        ));
        answer.send(result).unwrap();
    };
    let promoting = promote();
    answers(Err(refused(17, "the disk is silent")));
    answers(Err(refused(17, "the disk is silent")));
    answers(Ok(()));
    assert_eq!(promoting.join().unwrap(), Response::Done { notice: None });
    // Whatever else is wrong is said at once.
    let promoting = promote();
    answers(Err(refused(17, "the disk is silent")));
    answers(Err(refused(11, "b is Primary")));
    let Response::Error(error) = promoting.join().unwrap() else {
        panic!()
    };
    assert_eq!(error.code, ExitCode::OtherPrimary);
    daemon.publish(|s| s.trouble.silence = None);
    let promoting = promote();
    answers(Err(refused(17, "it is Inconsistent")));
    let Response::Error(error) = promoting.join().unwrap() else {
        panic!()
    };
    assert_eq!(error.code, ExitCode::NotUpToDate);
}

#[test]
fn a_promotion_that_a_silent_disk_held_up_names_another_primary_first() {
    let dir = TempDir::new().unwrap();
    let daemon = Daemon::start(&config(&dir, 2), 0);
    daemon.publish(|s| {
        s.trouble.silence = Some("/dev/vg0/j: flushing".into());
        s.view.primary = Some(NodeId(1));
    });
    let request = Request::Promote {
        timeout_ms: 0,
        force: false,
    };
    let promoting = asking(&daemon, request);
    let ToData::Command { answer, .. } = daemon.next() else {
        panic!()
    };
    answer.send(Err(refused(17, "the disk is silent"))).unwrap();
    let Response::Error(error) = promoting.join().unwrap() else {
        panic!()
    };
    assert_eq!(error.code, ExitCode::OtherPrimary);
    assert_eq!(error.message, "b is Primary; the disk is silent");
}

#[test]
fn a_verification_that_an_operator_ends_is_not_due_when_it_ends() {
    let dir = TempDir::new().unwrap();
    let config = config(&dir, 1);
    std::fs::create_dir_all(&config.nodes[0].data_dir).unwrap();
    std::fs::write(config.nodes[0].verify_file(), "{\"counts_from\": 1}").unwrap();
    let daemon = Daemon::start(&config, 0);
    let next = || {
        let Response::Status(status) = daemon.call(&Request::Status) else {
            panic!()
        };
        status.verify.next.unwrap()
    };
    assert!(next().starts_with("1970"), "{}", next());
    // Nothing runs here: nothing was left out by it.
    let stopping = asking(&daemon, Request::StopVerify);
    let answer = |result| {
        let ToData::Command { command, answer } = daemon.next() else {
            panic!()
        };
        assert_eq!(command, DataCommand::StopVerify);
        answer.send(result).unwrap();
    };
    answer(Err(refused(1, "none runs here")));
    stopping.join().unwrap();
    assert!(next().starts_with("1970"), "{}", next());
    // What is due begins by itself as soon as it has ended, so by then it may not be due.
    daemon.publish(|s| {
        s.view.verify.by = Some(NodeId(0));
        s.view.verify.running = Some(Verified::default());
    });
    let stopping = asking(&daemon, Request::StopVerify);
    let ToData::Command { answer, .. } = daemon.next() else {
        panic!()
    };
    assert!(!next().starts_with("1970"), "{}", next());
    answer.send(Ok(())).unwrap();
    stopping.join().unwrap();
}

#[test]
fn a_witness_names_the_primary_for_changes_of_the_volumes() {
    let dir = TempDir::new().unwrap();
    let text = config_text(&dir, 3).replace("name = \"c\"\n", "name = \"c\"\nrole = \"witness\"\n");
    let config = Config::parse(Path::new("pbx.toml"), &text).unwrap();
    let daemon = Daemon::start(&Arc::new(config), 2);
    let remove = Request::RemoveVolume {
        volume: "db".to_owned(),
        timeout_ms: 1000,
    };
    assert_eq!(daemon.error(&remove).0, ExitCode::Failed);
    daemon.publish(|s| s.view.primary = Some(NodeId(1)));
    assert_eq!(
        daemon.error(&remove),
        (
            ExitCode::OtherPrimary,
            "b is Primary: volumes are changed there".to_owned()
        )
    );
}

#[test]
fn a_resync_shows_what_is_left_how_fast_it_goes_and_for_how_long() {
    const SECOND: u64 = 1_000_000_000;
    let dir = TempDir::new().unwrap();
    let daemon = Daemon::start(&config(&dir, 3), 0);
    let shown = |seconds: u64, left_bytes: u64| {
        daemon.publish(|snapshot| {
            snapshot.at = Time(seconds * SECOND);
            snapshot.view.peers = [PeerView {
                node: NodeId(1),
                connection: ConnectionState::Connected,
                sync: Some(SyncView {
                    left_bytes,
                    total_bytes: 1000,
                    ..SyncView::default()
                }),
                ..PeerView::default()
            }]
            .into_iter()
            .collect();
        });
        let status = status(&daemon.config.nodes[0].admin_socket()).unwrap();
        let peer = status.peers.into_iter().find(|p| p.name == "b").unwrap();
        assert_eq!(peer.sync_left_bytes, Some(left_bytes));
        (
            peer.sync_percent,
            peer.sync_bytes_per_second,
            peer.sync_seconds_left,
        )
    };
    assert_eq!(shown(1, 1000), (Some(0.0), None, None));
    assert_eq!(shown(3, 900), (Some(10.0), Some(50), Some(18)));
    assert_eq!(shown(11, 500), (Some(50.0), Some(50), Some(10)));
    // What was long ago does not count any more.
    assert_eq!(shown(21, 490), (Some(51.0), Some(1), Some(490)));
}
