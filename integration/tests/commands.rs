//! What scripts rely on: exit codes, and what status says meanwhile.

use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use integration::{BOUND, Scene, small};
use nbd_server::nbd::client::{Client, ClientError, Uri};
use tools::cluster::exit;

/// Runs `replctl VERB...` on a node and returns its exit code; the complaint, if any, is one line.
fn code(scene: &Scene, node: usize, verb: &[&str]) -> i32 {
    let finished = scene.cluster.ctl(node, verb, BOUND).expect("replctl runs");
    if finished.code != exit::DONE {
        let lines = finished.stderr.lines().count();
        assert_eq!(
            lines, 1,
            "one line says what is wrong: {:?}",
            finished.stderr
        );
        assert_eq!(finished.stdout, "", "nothing else is printed");
    }
    finished.code
}

#[test]
fn promote_beside_a_live_primary_is_refused_at_once() {
    let scene = Scene::serving(small());
    let start = Instant::now();
    assert_eq!(code(&scene, 1, &["promote"]), exit::OTHER_PRIMARY);
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "11 at once, not after the 30 s of --timeout"
    );
    assert_eq!(scene.cluster.status(0).expect("answers").role, "Primary");
    scene.stop_and_compare(0);
}

#[test]
fn promote_and_demote_are_done_when_there_is_nothing_to_do() {
    let scene = Scene::serving(small());
    assert_eq!(code(&scene, 0, &["promote"]), exit::DONE);
    assert_eq!(code(&scene, 1, &["demote"]), exit::DONE);
    assert_eq!(code(&scene, 0, &["demote"]), exit::DONE);
    assert_eq!(code(&scene, 0, &["demote"]), exit::DONE);
    assert_eq!(scene.cluster.status(0).expect("answers").role, "Secondary");
    // After a clean demote nobody waits for a lease.
    let start = Instant::now();
    assert_eq!(code(&scene, 2, &["promote"]), exit::DONE);
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "took {:?}",
        start.elapsed()
    );
}

#[test]
fn the_first_promotion_needs_every_node() {
    let mut scene = Scene::laid_out(small());
    for node in 0..3 {
        scene.cluster.create(node).expect("created");
    }
    for node in [0, 1] {
        scene.cluster.start(node).expect("started");
    }
    assert_eq!(
        code(&scene, 0, &["promote", "--timeout", "3"]),
        exit::NO_QUORUM
    );
    let status = scene.cluster.status(0).expect("answers");
    assert_eq!((status.epoch, status.primary), (0, None));
    scene.cluster.start(2).expect("started");
    assert_eq!(code(&scene, 0, &["promote"]), exit::DONE);
    // From then on a majority is enough.
    assert_eq!(code(&scene, 0, &["demote"]), exit::DONE);
    scene.cluster.kill(2).expect("killed");
    assert_eq!(code(&scene, 1, &["promote"]), exit::DONE);
}

#[test]
fn without_a_majority_promote_is_refused() {
    let mut scene = Scene::serving(small());
    assert_eq!(code(&scene, 0, &["demote"]), exit::DONE);
    for node in [0, 2] {
        scene.cluster.kill(node).expect("killed");
    }
    assert_eq!(
        code(&scene, 1, &["promote", "--timeout", "3"]),
        exit::NO_QUORUM
    );
}

#[test]
fn a_daemon_that_does_not_run_is_3_and_a_config_error_is_2() {
    let scene = Scene::laid_out(small());
    scene.cluster.create(0).expect("created");
    for verb in ["status", "promote", "demote"] {
        assert_eq!(code(&scene, 0, &[verb]), exit::UNREACHABLE, "{verb}");
    }
    assert_eq!(code(&scene, 0, &["no-such-verb"]), exit::USAGE);
    assert_eq!(
        code(&scene, 0, &["status", "--no-such-option"]),
        exit::USAGE
    );

    let config = scene.cluster.config().to_owned();
    let replctl = |node: &str, config: &std::path::Path| {
        let mut command = Command::new(&scene.cluster.programs().replctl);
        command
            .arg("--config")
            .arg(config)
            .args(["--node", node, "status"]);
        let output = command.output().expect("runs");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (code, text) = replctl("nobody", &config);
    assert_eq!(code, Some(exit::USAGE), "{text}");
    let (code, text) = replctl("pbx-a", &config.with_extension("missing"));
    assert_eq!(code, Some(exit::USAGE), "{text}");
    let good = std::fs::read_to_string(&config).expect("readable");
    let bad = config.with_extension("bad");
    std::fs::write(&bad, good.replace("[journal]", "[jornal]")).expect("written");
    let (code, text) = replctl("pbx-a", &bad);
    assert_eq!(code, Some(exit::USAGE), "{text}");
    assert!(text.contains("jornal"), "the unknown key is named: {text}");
}

#[test]
fn a_daemon_without_a_created_node_exits_2_and_a_second_one_1() {
    let mut scene = Scene::laid_out(small());
    let config = scene.cluster.config().to_owned();
    let never = AtomicBool::new(false);
    let repld = |scene: &Scene| {
        let mut command = Command::new(&scene.cluster.programs().repld);
        command
            .arg("--config")
            .arg(&config)
            .args(["--node", "pbx-a"]);
        tools::demo::finish(&mut command, BOUND, &never).expect("repld runs")
    };
    let blank = repld(&scene);
    assert_eq!(blank.code, 2, "{}", blank.message());
    assert!(blank.stderr.contains("replctl create"), "{}", blank.stderr);

    scene.cluster.create(0).expect("created");
    assert_eq!(
        code(&scene, 0, &["create"]),
        exit::FAILED,
        "an existing node is not touched"
    );
    scene.cluster.start(0).expect("started");
    let second = repld(&scene);
    assert_eq!(second.code, 1, "{}", second.message());
    // The first one does not mind, and its sockets are still its own.
    scene.cluster.status(0).expect("answers");
    // A killed one leaves sockets behind; they are in nobody's way.
    scene.cluster.kill(0).expect("killed");
    scene.cluster.start(0).expect("started again");
    let status = scene.cluster.terminate(0).expect("stops");
    assert!(status.success(), "{status}");
}

#[test]
fn an_attached_client_keeps_demote_away_unless_forced() {
    let mut scene = Scene::serving(small());
    let mut client = scene.open(0, "db");
    client.write_at(0, &[7; 512], false).expect("served");
    let attached = scene
        .cluster
        .wait_status(0, "the client is counted", BOUND, |status| {
            status.volume("db").and_then(|db| db.nbd_clients) == Some(1)
        });
    attached.expect("status says so");
    assert_eq!(code(&scene, 0, &["demote"]), exit::IN_USE);
    client.write_at(0, &[8; 512], false).expect("still served");

    assert_eq!(code(&scene, 0, &["demote", "--force"]), exit::DONE);
    let error = client.flush().expect_err("it was dropped");
    assert!(matches!(error, ClientError::Lost(_)), "{error}");
    // What was acknowledged is in the next Primary.
    scene.promote(1);
    let mut data = [0; 512];
    scene.open(1, "db").read_at(0, &mut data).expect("readable");
    assert_eq!(data, [8; 512]);
}

#[test]
fn exports_of_a_secondary_are_refused_with_the_primarys_name() {
    let scene = Scene::serving(small());
    let uri = Uri::unix("db", scene.cluster.nbd_socket(1));
    match Client::connect(&uri) {
        Err(ClientError::Policy { text }) => assert!(text.contains("pbx-a"), "{text}"),
        other => panic!("a Secondary served: {other:?}"),
    }
}

#[test]
fn status_answers_within_a_second_whoever_hangs() {
    let mut scene = Scene::serving(small());
    let mut frozen = Vec::new();
    for victim in [1, 2] {
        scene.cluster.freeze(victim).expect("frozen");
        frozen.push(victim);
        let mut times = Vec::new();
        for _ in 0..20 {
            let answer = scene
                .cluster
                .ctl(0, &["status", "--json"], BOUND)
                .expect("replctl runs");
            assert_eq!(
                answer.code,
                exit::DONE,
                "with {frozen:?} frozen: {}",
                answer.message()
            );
            times.push(answer.took);
        }
        // One second is the promise; starting a process on a busy machine is not part of it, and may take long now and then.
        times.sort();
        assert!(
            times[times.len() / 2] < Duration::from_millis(1500),
            "with {frozen:?} frozen they took {times:?}"
        );
    }
    let suspended = scene
        .cluster
        .wait_status(0, "the lease runs out", BOUND, |status| {
            status.suspended == "quorum"
        });
    suspended.expect("status tells");
    for node in frozen {
        scene.cluster.thaw(node).expect("thawed");
    }
    let resumed = scene
        .cluster
        .wait_status(0, "it goes on", BOUND, |status| status.serves());
    resumed.expect("by itself, in the same epoch");
}

#[test]
fn disconnect_and_connect_are_obeyed() {
    let mut scene = Scene::serving(small());
    assert_eq!(code(&scene, 0, &["disconnect", "pbx-c"]), exit::DONE);
    let standalone = scene
        .cluster
        .wait_status(0, "the peer is StandAlone", BOUND, |status| {
            let peer = status
                .peer("pbx-c")
                .and_then(|peer| peer.connection.as_deref());
            peer == Some("StandAlone")
        });
    assert_eq!(standalone.expect("status says so").health, "degraded");
    let mut client = scene.open(0, "db");
    client
        .write_at(12_345, &[3; 777], true)
        .expect("the other two are a majority");
    client.disconnect().expect("goodbye");
    assert_eq!(code(&scene, 0, &["connect", "pbx-c"]), exit::DONE);
    scene.await_caught_up(2, 0);
    assert_eq!(code(&scene, 0, &["disconnect", "nobody"]), exit::USAGE);
}
