use serde_json::json;

use super::*;

/// A status with what matters here.
fn status(role: &str, quorum: bool, disk: &str, peer: &str, fenced: bool) -> Status {
    let value = json!({
        "resource": "pbx", "node": "a", "role": role, "membership": null, "fenced": fenced, "epoch": 3,
        "primary": null, "quorum": quorum, "suspended": "no", "health": "ok", "health_reason": "the disk is gone",
        "seq": {"admitted": 1, "durable": 1, "committed": 1, "applied": 1},
        "volumes": [{"name": "db", "size": 4096, "disk_state": disk, "nbd_clients": 0, "uri": ""}],
        "peers": [{"name": "b", "role": "Secondary", "connection": peer, "replication": "Off",
                   "disk_state": "UpToDate", "membership": null, "durable_seq": null, "applied_seq": null,
                   "behind_bytes": null, "sync_percent": null, "connection_reason": null}],
        "version": "0", "memory_locked": null, "last_progress_ms": null,
        "limits": Limits::default(),
    });
    serde_json::from_value(value).expect("a status")
}

use nbd_server::admin::Limits;

#[test]
fn the_score_follows_the_data() {
    let of = |role, quorum, disk, peer| score(&status(role, quorum, disk, peer, false));
    assert_eq!(of("Primary", true, "UpToDate", "Connecting"), Score::SERVES);
    assert_eq!(
        of("Primary", false, "UpToDate", "Connected"),
        Score::SERVES_NOBODY
    );
    assert_eq!(of("Secondary", true, "UpToDate", "Connected"), Score::BEST);
    assert_eq!(of("Secondary", true, "UpToDate", "Connecting"), Score::GOOD);
    for disk in [
        "Consistent",
        "Outdated",
        "Inconsistent",
        "Diskless",
        "DUnknown",
    ] {
        assert_eq!(
            of("Secondary", true, disk, "Connected"),
            Score::None,
            "{disk}"
        );
    }
    assert_eq!(of("Secondary", false, "UpToDate", "Connected"), Score::None);
    let fenced = status("Secondary", true, "UpToDate", "Connected", true);
    assert_eq!(score(&fenced), Score::None);
}

#[test]
fn every_state_has_its_code() {
    let of =
        |role, disk, started| judge(&status(role, true, disk, "Connected", false), started).code;
    assert_eq!(of("Primary", "UpToDate", true), Code::RunningPromoted);
    // Promoted by hand: the cluster has to know.
    assert_eq!(of("Primary", "UpToDate", false), Code::RunningPromoted);
    assert_eq!(of("Secondary", "UpToDate", true), Code::Success);
    assert_eq!(of("Secondary", "Outdated", true), Code::Success);
    assert_eq!(of("Secondary", "UpToDate", false), Code::NotRunning);
    assert_eq!(of("Witness", "Diskless", true), Code::Success);
    assert_eq!(of("Primary", "Failed", true), Code::FailedPromoted);
    assert_eq!(of("Secondary", "Failed", true), Code::Generic);
    assert_eq!(of("Secondary", "Failed", false), Code::NotRunning);
}

/// A host whose link came back was never down for Pacemaker, which would leave it fenced.
#[test]
fn who_was_fenced_and_follows_says_so() {
    let of = |role, started, fenced| {
        judge(
            &status(role, true, "UpToDate", "Connected", fenced),
            started,
        )
        .text()
    };
    assert_eq!(of("Secondary", true, true), "score none\nfenced yes\n");
    assert_eq!(of("Secondary", true, false), "score 10000\n");
    assert_eq!(of("Secondary", false, true), "score none\n");
    // It has yet to learn that it is over.
    assert_eq!(of("Primary", true, true), "score none\n");
}

#[test]
fn a_node_without_a_config_does_not_run_and_is_stopped() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("pbx.toml");
    let (code, reason) = configured(&file, None).expect_err("it is not there");
    assert_eq!(code, Code::NotInstalled);
    assert!(reason.contains("pbx.toml"));
    std::fs::write(&file, "nonsense = 1\n").expect("written");
    let (code, _) = configured(&file, None).expect_err("it is wrong");
    assert_eq!(code, Code::Arguments);
    let call = |action, started| {
        let args = OcfArgs {
            action,
            timeout_ms: 1000,
            started,
            promoted: false,
        };
        run(&dir.path().join("none.toml"), None, &args)
    };
    assert_eq!(call(Action::Monitor, false), 7);
    assert_eq!(call(Action::Stop, true), 0);
    assert_eq!(call(Action::Notify, true), 0);
    assert_eq!(call(Action::Start, false), 5);
}

#[test]
fn the_shell_gets_one_line_each() {
    let outcome = Outcome::because(Code::Generic, Score::BEST, "a\nb  c");
    assert_eq!(outcome.text(), "score 10000\nreason a b c\n");
    assert_eq!(
        Outcome::new(Code::Success, Score::None).text(),
        "score none\n"
    );
}
