//! The table is readable, and plain where nobody sees colours.

use nbd_server::admin::*;

use super::{bytes, table};

fn example() -> Status {
    serde_json::from_str(
        r#"{"resource":"pbx","node":"pbx-a","role":"Primary","epoch":3,"primary":"pbx-a","quorum":true,
        "suspended":"no","health":"degraded","health_reason":"pbx-c can not be reached",
        "seq":{"admitted":9123,"durable":9123,"committed":9123,"applied":8800},
        "volumes":[{"name":"db","size":8589934592,"disk_state":"UpToDate","nbd_clients":1,
                    "uri":"nbd+unix:///db?socket=/run/nbd.sock"}],
        "peers":[{"name":"pbx-b","role":"Secondary","connection":"Connected","replication":"Established",
                  "disk_state":"UpToDate","durable_seq":9123,"behind_bytes":0,"sync_percent":100.0,
                  "connection_reason":null},
                 {"name":"pbx-c","role":"Unknown","connection":"Connecting","replication":"Off",
                  "disk_state":"DUnknown","durable_seq":null,"behind_bytes":null,"sync_percent":null,
                  "connection_reason":"connection refused"}],
        "version":"0.1.0","memory_locked":true,"last_progress_ms":3,
        "limits":{"journal":{"size":1073741824,"used":1572864},
                  "memory":{"size":null,"used":null,"registered":null},"requests":0,"requests_max":1,
                  "nbd_connections_max":1024,"nbd_negotiating_max":100,"admin_connections_max":64,
                  "lease_ms":1000}}"#,
    )
    .unwrap()
}

#[test]
fn a_degraded_primary() {
    let expected = "\
pbx on pbx-a: Primary, degraded (pbx-c can not be reached)
  primary pbx-a, epoch 3; quorum
  committed 9123, applied 8800; journal 1.5 MiB of 1GiB

  VOLUME  SIZE  DISK      CLIENTS  URI
  db      8GiB  UpToDate  1        nbd+unix:///db?socket=/run/nbd.sock

  PEER   ROLE       CONNECTION  REPLICATION  DISK      BEHIND  SYNC
  pbx-b  Secondary  Connected   Established  UpToDate  0 B     100.0%
  pbx-c  Unknown    Connecting  Off          DUnknown  ?       ?
  pbx-c: connection refused
";
    assert_eq!(table(&example(), false), expected);
    assert!(table(&example(), true).contains("\x1b[33mdegraded\x1b[0m"));
}

#[test]
fn a_resync_has_a_bar_with_what_is_left_how_fast_it_goes_and_for_how_long() {
    let mut status = example();
    let peer = &mut status.peers[0];
    peer.replication = Replication::SyncSource;
    peer.sync_percent = Some(25.0);
    peer.sync_left_bytes = Some(3 << 30);
    let line = |status: &Status| {
        let text = table(status, false);
        let line = text.lines().find(|l| l.contains('['));
        line.map(str::to_owned)
    };
    let bar = "  pbx-b: SyncSource [######..................] 25.0%, 3 GiB left";
    assert_eq!(line(&status).as_deref(), Some(bar), "at first");
    let peer = &mut status.peers[0];
    peer.sync_bytes_per_second = Some(1 << 20);
    peer.sync_seconds_left = Some(3 * 1024);
    let whole = format!("{bar}, 1 MiB per second, 0:51:12 to go");
    assert_eq!(line(&status), Some(whole));
    status.peers[0].sync_left_bytes = None;
    assert_eq!(line(&status), None, "once it is over");
}

#[test]
fn a_verification_has_a_bar_on_the_node_that_runs_it() {
    let mut status = example();
    let running = VerifyRun {
        by: "pbx-a".into(),
        counts: Some(VerifyCounts::default()),
        left_bytes: Some(3 << 30),
        percent: Some(25.0),
    };
    let elsewhere = VerifyRun {
        counts: None,
        left_bytes: None,
        percent: None,
        ..running.clone()
    };
    let bar = "  verify [######..................] 25.0%, 3 GiB left\n";
    status.verify.running = Some(running);
    let text = table(&status, false);
    assert!(
        text.contains(bar) && text.contains("pbx-a is verifying"),
        "{text}"
    );
    status.verify.running = Some(elsewhere);
    let text = table(&status, false);
    assert!(
        text.contains("pbx-a is verifying") && !text.contains('['),
        "{text}"
    );
}

#[test]
fn what_hurts_is_said_loudly() {
    let mut status = example();
    status.quorum = Some(false);
    status.suspended = Suspended::Quorum;
    status.last_progress_ms = Some(4200);
    status.memory_locked = Some(false);
    status.integrity = IntegrityStatus {
        bad_blocks: Some(3),
        repaired_blocks: Some(2),
        lost_blocks: Some(1),
        sums_pages_lost: Some(5),
    };
    let text = table(&status, false);
    for loud in [
        "NO QUORUM",
        "I/O SUSPENDED (quorum)",
        "MEMORY NOT LOCKED",
        "BAD BLOCKS 3, 2 of them repaired",
        "LOST BLOCKS 1",
        "CHECKSUMS LOST (5 pages)",
        "DATA THREAD STANDS STILL for 4 s",
    ] {
        assert!(text.contains(loud), "{text}");
    }
}

#[test]
fn bytes_are_readable() {
    for (count, text) in [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (1 << 30, "1 GiB"),
        (u64::MAX, "16383.9 PiB"),
    ] {
        assert_eq!(bytes(count), text);
    }
}
