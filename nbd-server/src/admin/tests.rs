//! The words on the wire are the contract's.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};

use super::*;

fn example() -> Status {
    Status {
        resource: "pbx".into(),
        node: "pbx-a".into(),
        role: Role::Primary,
        membership: Some(Membership::Member),
        fenced: Some(false),
        epoch: 3,
        primary: Some("pbx-a".into()),
        quorum: Some(true),
        suspended: Suspended::No,
        health: Health::Ok,
        health_reason: String::new(),
        seq: SeqStatus {
            admitted: Some(9123),
            durable: Some(9123),
            committed: Some(9123),
            applied: Some(8800),
        },
        volumes: vec![VolumeStatus {
            id: 0,
            name: "db".into(),
            size: 8_589_934_592,
            disk_state: DiskState::UpToDate,
            nbd_clients: Some(1),
            uri: "nbd+unix:///db?socket=/run/replicator/pbx/nbd.sock".into(),
        }],
        peers: vec![PeerStatus {
            name: "pbx-b".into(),
            role: Role::Secondary,
            connection: Connection::Connected,
            replication: Replication::Established,
            disk_state: DiskState::UpToDate,
            membership: Some(Membership::Member),
            fenced: Some(false),
            durable_seq: Some(9123),
            applied_seq: Some(8800),
            behind_bytes: Some(0),
            sync_percent: Some(100.0),
            sync_left_bytes: None,
            sync_bytes_per_second: None,
            sync_seconds_left: None,
            connection_reason: None,
        }],
        version: "0.1.0".into(),
        memory_locked: None,
        last_progress_ms: Some(2),
        lease_left_ms: Some(800),
        limits: Limits::default(),
        integrity: IntegrityStatus::default(),
        verify: VerifyStatus::default(),
    }
}

/// Whether everything in `part` is in `whole`, as it is there.
fn contains(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => part
            .iter()
            .all(|(key, part)| whole.get(key).is_some_and(|w| contains(w, part))),
        (Value::Array(whole), Value::Array(part)) => {
            whole.len() == part.len() && whole.iter().zip(part).all(|(w, p)| contains(w, p))
        }
        _ => whole == part,
    }
}

#[test]
fn the_status_is_the_contracts() {
    let contract: Value = serde_json::from_str(
        r#"{
  "resource": "pbx", "node": "pbx-a", "role": "Primary", "epoch": 3,
  "primary": "pbx-a", "quorum": true, "suspended": "no", "health": "ok", "health_reason": "",
  "seq": {"admitted": 9123, "durable": 9123, "committed": 9123, "applied": 8800},
  "volumes": [{"name": "db", "size": 8589934592, "disk_state": "UpToDate", "nbd_clients": 1,
               "uri": "nbd+unix:///db?socket=/run/replicator/pbx/nbd.sock"}],
  "peers": [{"name": "pbx-b", "role": "Secondary", "connection": "Connected", "replication": "Established",
             "disk_state": "UpToDate", "durable_seq": 9123, "behind_bytes": 0, "sync_percent": 100.0}]
}"#,
    )
    .unwrap();
    let status = serde_json::to_value(example()).unwrap();
    assert!(contains(&status, &contract), "{status:#}");
    assert_eq!(status["memory_locked"], Value::Null);
    assert!(status.as_object().unwrap().contains_key("memory_locked"));
    assert_eq!(serde_json::from_value::<Status>(status).unwrap(), example());
}

#[test]
fn requests_are_what_they_were() {
    for (request, text) in [
        (Request::Status, json!({"verb": "status"})),
        (
            Request::Promote {
                timeout_ms: 30_000,
                force: false,
            },
            json!({"verb": "promote", "timeout_ms": 30_000, "force": false}),
        ),
        (
            Request::Demote { force: true },
            json!({"verb": "demote", "force": true}),
        ),
        (
            Request::SuspendIo { timeout_ms: 10_000 },
            json!({"verb": "suspend-io", "timeout_ms": 10_000}),
        ),
        (
            Request::Verify {
                repair: true,
                bytes_per_second: 4096,
            },
            json!({"verb": "verify", "repair": true, "bytes_per_second": 4096}),
        ),
        (Request::StopVerify, json!({"verb": "stop-verify"})),
        (Request::ResumeIo, json!({"verb": "resume-io"})),
        (
            Request::Connect { peer: "b".into() },
            json!({"verb": "connect", "peer": "b"}),
        ),
    ] {
        assert_eq!(serde_json::to_value(&request).unwrap(), text);
        assert_eq!(serde_json::from_value::<Request>(text).unwrap(), request);
    }
    for bad in [
        "{}",
        "{\"verb\":\"format\"}",
        "{\"verb\":\"promote\"}",
        "[]",
        "\"status\"",
    ] {
        assert!(serde_json::from_str::<Request>(bad).is_err(), "{bad}");
    }
}

#[test]
fn errors_carry_the_exit_code() {
    let error = Response::Error(AdminError::new(ExitCode::NotUpToDate, "x"));
    let text = serde_json::to_value(&error).unwrap();
    assert_eq!(text, json!({"error": {"code": 17, "message": "x"}}));
    assert_eq!(serde_json::from_value::<Response>(text).unwrap(), error);
    assert!(serde_json::from_str::<Response>("{\"error\":{\"code\":4,\"message\":\"\"}}").is_err());
    let codes: Vec<u8> = ExitCode::ALL.into_iter().map(u8::from).collect();
    assert_eq!(codes, [0, 1, 2, 3, 10, 11, 12, 17]);
}

#[test]
fn events_tell_what_is_there_and_then_what_changed() {
    let before = example();
    let all = changes(None, &before, "T");
    assert_eq!(all.len(), 3);
    assert!(all.iter().all(|event| event.kind == EventKind::Exists));
    assert!(changes(Some(&before), &before, "T").is_empty());

    let mut after = before.clone();
    after.seq.admitted = Some(10_000);
    after.peers[0].durable_seq = Some(10_000);
    assert!(changes(Some(&before), &after, "T").is_empty());

    after.peers[0].connection = Connection::Connecting;
    after.peers[0].connection_reason = Some("it is gone".into());
    after.volumes.clear();
    let changed = changes(Some(&before), &after, "T");
    let lines: Vec<String> = changed.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "T change peer pbx-b connection:Connecting connection_reason:\"it is gone\"",
            "T destroy volume db"
        ]
    );
}

#[test]
fn times_are_utc() {
    for (seconds, text) in [
        (0, "1970-01-01T00:00:00.007Z"),
        (951_782_400, "2000-02-29T00:00:00.007Z"),
        (1_709_251_199, "2024-02-29T23:59:59.007Z"),
        (4_107_542_400, "2100-03-01T00:00:00.007Z"),
    ] {
        assert_eq!(
            timestamp(UNIX_EPOCH + Duration::from_millis(seconds * 1000 + 7)),
            text
        );
    }
}

#[test]
fn lines_are_cut_and_bounded() {
    let mut lines = LineBuffer::default();
    lines.push(b"one\ntw");
    assert_eq!(lines.next_line(), Ok(Some(b"one".to_vec())));
    assert_eq!(lines.next_line(), Ok(None));
    lines.push(b"o\n\n");
    assert_eq!(lines.next_line(), Ok(Some(b"two".to_vec())));
    assert_eq!(lines.next_line(), Ok(Some(Vec::new())));
    lines.push(&vec![b'x'; LINE_BYTES_MAX - 1]);
    assert_eq!(lines.next_line(), Ok(None));
    lines.push(b"\n");
    assert_eq!(
        lines.next_line().unwrap().unwrap().len(),
        LINE_BYTES_MAX - 1
    );
    lines.push(&vec![b'x'; LINE_BYTES_MAX]);
    assert_eq!(lines.next_line(), Err(LineError::TooLong));
}

#[test]
fn whoever_asks_waits_for_longer_than_what_was_asked_may_take() {
    let (volume, peer, timeout_ms) = (String::from("db"), String::from("b"), 3_600_000);
    let requests = [
        Request::Promote {
            timeout_ms,
            force: false,
        },
        Request::Resize {
            volume: volume.clone(),
            size: 1 << 30,
            force: false,
            timeout_ms,
        },
        Request::AddVolume {
            volume: volume.clone(),
            timeout_ms,
        },
        Request::RemoveVolume { volume, timeout_ms },
        Request::Return { peer, timeout_ms },
    ];
    for request in requests {
        let patience = client::patience(&request);
        assert!(patience > Duration::from_millis(timeout_ms), "{request:?}");
    }
}
