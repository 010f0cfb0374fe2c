//! What a bar shows is what status says, of the node in question.

use nbd_server::admin::Status;

use super::progress;

fn status(node: &str, peers: &[(&str, Option<u64>, Option<f64>)]) -> Status {
    let peer = |(name, left, percent): &(&str, Option<u64>, Option<f64>)| {
        serde_json::json!({"name": name, "role": "Secondary", "connection": "Connected", "replication": "SyncSource",
            "disk_state": "UpToDate", "durable_seq": 1, "behind_bytes": 0, "sync_percent": percent, "sync_left_bytes": left,
            "connection_reason": null})
    };
    let peers: Vec<_> = peers.iter().map(peer).collect();
    serde_json::from_value(serde_json::json!({"resource": "pbx", "node": node, "role": "Primary", "epoch": 3,
        "primary": "pbx-a", "quorum": true, "suspended": "no", "health": "ok", "health_reason": "",
        "seq": {"admitted": 1, "durable": 1, "committed": 1, "applied": 1}, "volumes": [], "peers": peers,
        "version": "0.1.0", "memory_locked": true, "last_progress_ms": 3,
        "limits": {"journal": {"size": 1, "used": 1}, "memory": {"size": null, "used": null, "registered": null},
            "requests": 0, "requests_max": 1, "nbd_connections_max": 1024, "nbd_negotiating_max": 100,
            "admin_connections_max": 64, "lease_ms": 1000}}))
    .unwrap()
}

#[test]
fn of_the_peer_that_is_given_something() {
    let others = [
        ("pbx-b", Some(7), Some(0.0)),
        ("pbx-c", Some(300), Some(40.0)),
    ];
    assert_eq!(
        progress(&status("pbx-a", &others), "pbx-c"),
        Some((300, 500))
    );
    assert_eq!(progress(&status("pbx-a", &others), "pbx-b"), Some((7, 7)));
}

#[test]
fn of_this_node_whoever_gives_it() {
    let from = [
        ("pbx-a", None, Some(100.0)),
        ("pbx-b", Some(30), Some(70.0)),
    ];
    let (left, total) = progress(&status("pbx-c", &from), "pbx-c").unwrap();
    assert_eq!((left, total.div_ceil(10)), (30, 10));
}

#[test]
fn nothing_where_nothing_is_brought_and_something_left_to_the_end() {
    let idle = [("pbx-c", None, Some(100.0))];
    assert_eq!(progress(&status("pbx-a", &idle), "pbx-c"), None);
    let last = [("pbx-c", Some(1), Some(100.0))];
    let (left, total) = progress(&status("pbx-a", &last), "pbx-c").unwrap();
    assert!(left == 1 && total >= 1);
}
