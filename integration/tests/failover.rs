//! The Primary dies, freezes or loses its peers. P1 (acknowledged is durable), P4 (one writer), P5 (no
//! taken-back reads), P7 (bounded stall).

use std::time::Duration;

use integration::{BOUND, MIB, Scene, dropped, roomy, small};
use nbd_server::nbd::client::{Client, ClientError, ClientRequest};
use tools::cluster::exit;
use tools::demo::workload::Running;

/// Every answer to what is in flight on this connection.
fn answers(mut client: Client) -> (usize, ClientError) {
    let mut answered = 0;
    loop {
        match client.wait() {
            Ok(_) => answered += 1,
            Err(error) => return (answered, error),
        }
    }
}

#[test]
fn killing_the_primary_under_load_loses_nothing_acknowledged() {
    let mut scene = Scene::serving(small());
    let mut streams = scene.busy_streams();
    let mut primary = 0;
    for round in 0..4 {
        let load = scene.work(primary, streams);
        // A different place in the journal, and in its group commits, each time.
        scene.await_writes(&load, 400 + 137 * round);
        streams = scene.kill_under(primary, load);
        let (dead, next) = (primary, (primary + 1) % 3);
        scene.promote(next);
        scene.verify(next);
        scene
            .cluster
            .start(dead)
            .expect("the killed node starts again");
        scene.await_caught_up(dead, next);
        primary = next;
    }
    scene.stop_and_compare(primary);
}

#[test]
fn killing_all_nodes_at_once_under_load_loses_nothing_acknowledged() {
    let mut scene = Scene::serving(small());
    let load = scene.work(0, scene.busy_streams());
    scene.await_writes(&load, 800);
    for node in [1, 2] {
        scene.cluster.kill(node).expect("killed");
    }
    scene.kill_under(0, load);
    scene.cluster.start_all().expect("all start again");
    // Not the one that was Primary.
    scene.promote(2);
    scene.verify(2);
    scene.stop_and_compare(2);
}

#[test]
fn a_frozen_primary_answers_nothing_stale_and_returns_as_secondary() {
    let mut scene = Scene::serving(roomy());
    let load = scene.work(0, scene.busy_streams());
    scene.await_writes(&load, 300);
    let mut reader = scene.open(0, "db");
    let mut writer = scene.open(0, "db");

    scene.cluster.freeze(0).expect("frozen");
    // These wait in the sockets of a Primary that believes in its lease until it looks at its clock.
    for page in 0..64 {
        let offset = page * 256 * 1024;
        reader
            .submit(&ClientRequest::Read { offset, len: 8192 })
            .expect("sent");
    }
    let data = vec![0xee; 8192];
    writer
        .submit(&ClientRequest::Write {
            offset: 0,
            data: &data,
            fua: true,
        })
        .expect("sent");
    // It returns only when the old lease is over; from then on the old Primary's word is worth nothing.
    scene.promote(1);
    // The load's own connections still lead to the frozen node: its streams end after the thaw.
    scene.cluster.thaw(0).expect("thawed");
    let streams = dropped(load);
    for (what, client) in [("read", reader), ("write", writer)] {
        let (answered, end) = answers(client);
        assert_eq!(
            answered, 0,
            "a {what} was answered by a node that is Primary no more"
        );
        assert!(matches!(end, ClientError::Lost(_)), "{what}: {end}");
    }

    // The new one works, and the old one follows it by itself.
    let load = scene.work(1, streams);
    scene.await_writes(&load, 300);
    let result = scene
        .cluster
        .wait_status(0, "the old Primary is Secondary", BOUND, |status| {
            status.role == "Secondary" && status.primary.as_deref() == Some("pbx-b")
        });
    result.expect("by itself");
    scene.finish(load);
    scene.await_caught_up(0, 1);
    scene.verify(1);
    scene.stop_and_compare(1);
}

#[test]
fn a_secondary_that_dies_and_returns_lets_no_client_down_and_catches_up() {
    let journal_bytes = 128 << 20;
    let mut scene = Scene::serving(tools::cluster::Spec {
        journal_bytes,
        ..roomy()
    });
    let load = scene.work(0, scene.busy_streams());
    scene.await_writes(&load, 200);
    scene.cluster.kill(1).expect("killed");
    scene.await_writes(&load, 300);
    scene.cluster.start(1).expect("started again");
    scene.await_writes(&load, 200);
    scene.finish(load);
    scene.await_caught_up(1, 0);
    scene.verify(0);
    scene.stop_and_compare(0);
}

#[test]
fn a_frozen_secondary_adds_no_stall() {
    let mut scene = Scene::serving(roomy());
    let load = scene.work(0, scene.busy_streams());
    scene.await_writes(&load, 200);
    let mut client = scene.open(0, "recordings");
    // Far below any time-out that could hide in there, and that would be met each time; a busy machine's hiccup is not.
    let short = Duration::from_millis(900);
    let mut longest = Duration::MAX;
    for round in 0..3 {
        if round > 0 {
            scene.await_caught_up(2, 0);
        }
        scene.cluster.freeze(2).expect("frozen");
        let mut worst = Duration::ZERO;
        for i in 0..200 {
            let start = std::time::Instant::now();
            let mut data = vec![0; 4096];
            client.read_at(i * 4096, &mut data).expect("reads go on");
            client.flush().expect("flushes go on");
            worst = worst.max(start.elapsed());
        }
        scene.await_writes(&load, 200);
        scene.cluster.thaw(2).expect("thawed");
        longest = longest.min(worst);
        if longest < short {
            break;
        }
    }
    assert!(longest < short, "in each round a request took {longest:?}");
    scene.finish(load);
    client.disconnect().expect("goodbye");
    scene.await_caught_up(2, 0);
    scene.stop_and_compare(0);
}

#[test]
fn losing_the_majority_suspends_io_and_a_returning_node_resumes_it() {
    let mut scene = Scene::serving(small());
    let mut client = scene.open(0, "db");
    client
        .write_at(0, &[1; 4096], true)
        .expect("with a majority");
    for node in [1, 2] {
        scene.cluster.kill(node).expect("killed");
    }
    let status = scene
        .cluster
        .wait_status(0, "I/O is suspended", BOUND, |status| {
            status.suspended == "quorum"
        });
    let status = status.expect("it says so");
    assert_eq!(status.health, "down", "{status:?}");
    assert_eq!(status.quorum, Some(false), "{status:?}");

    client
        .submit(&ClientRequest::Write {
            offset: 4096,
            data: &[2; 4096],
            fua: false,
        })
        .expect("sent");
    client
        .submit(&ClientRequest::Read {
            offset: 0,
            len: 4096,
        })
        .expect("sent");
    client.set_idle_timeout(Some(Duration::from_secs(1)));
    let early = client.wait();
    assert!(
        matches!(early, Err(ClientError::TimedOut)),
        "without a majority: {early:?}"
    );
    assert_eq!(
        scene.cluster.status(0).expect("answers").suspended,
        "quorum"
    );

    scene.cluster.start(1).expect("started again");
    client.set_idle_timeout(Some(BOUND));
    for _ in 0..2 {
        client
            .wait()
            .expect("the connection lived on")
            .result
            .expect("no error was made of it");
    }
    let mut data = [0; 8192];
    client.read_at(0, &mut data).expect("readable");
    assert!(data[..4096].iter().all(|b| *b == 1) && data[4096..].iter().all(|b| *b == 2));
    client.disconnect().expect("goodbye");
    let resumed = scene
        .cluster
        .wait_status(0, "I/O is resumed", BOUND, |status| {
            status.suspended == "no"
        });
    assert_eq!(resumed.expect("it says so").health, "degraded");
}

#[test]
fn without_a_majority_io_fails_if_the_policy_says_so() {
    let spec = tools::cluster::Spec {
        on_no_quorum: Some("io-error".into()),
        ..small()
    };
    let mut scene = Scene::serving(spec);
    let mut client = scene.open(0, "db");
    client
        .write_at(0, &[1; 4096], true)
        .expect("with a majority");
    for node in [1, 2] {
        scene.cluster.kill(node).expect("killed");
    }
    let error = client
        .write_at(4096, &[2; 4096], false)
        .expect_err("without one");
    assert!(matches!(error, ClientError::Io(_)), "{error}");
}

#[test]
fn a_wiped_node_never_counts() {
    let mut scene = Scene::serving(small());
    // pbx-c has everything so far, and then loses its disk.
    let load = scene.work(0, scene.busy_streams());
    scene.await_writes(&load, 200);
    scene.cluster.kill(2).expect("killed");
    std::fs::remove_dir_all(scene.cluster.data_dir(2)).expect("wiped");
    scene.cluster.create(2).expect("created anew");
    scene.await_writes(&load, 200);
    let streams = scene.kill_under(0, load);

    // pbx-b and a blank node: nobody knows what pbx-a acknowledged with pbx-c.
    scene.cluster.start(2).expect("starts");
    let verb = ["promote", "--timeout", "5"];
    let refused = scene.cluster.ctl(1, &verb, BOUND).expect("answers");
    assert_eq!(refused.code, exit::NO_QUORUM, "{}", refused.message());
    let refused = scene.cluster.ctl(2, &verb, BOUND).expect("answers");
    assert!(
        [exit::NO_QUORUM, exit::NO_DATA].contains(&refused.code),
        "a blank node was promoted: {}",
        refused.message()
    );

    scene.cluster.start(0).expect("starts");
    scene.promote(1);
    scene.verify(1);
    let load: Running = scene.work(1, streams);
    scene.await_writes(&load, 100);
    scene.finish(load);
    scene.verify(1);
    assert!(scene.tally.write_bytes() > MIB);
}
