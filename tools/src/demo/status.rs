//! What `replctl status --json` prints, as its readers outside see it.

use serde::Deserialize;

/// One node's view of the resource.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    /// The resource's name.
    pub resource: String,
    /// The node that answered.
    pub node: String,
    /// Primary, Secondary, Unknown or Witness.
    pub role: String,
    /// 0 before the first promotion.
    pub epoch: u64,
    /// The Primary's name, as far as it is known.
    pub primary: Option<String>,
    /// Whether a majority is there; null where unknown.
    pub quorum: Option<bool>,
    /// no, quorum, fencing or user.
    pub suspended: String,
    /// ok, degraded or down.
    pub health: String,
    /// Why it is not ok.
    pub health_reason: String,
    /// Positions in the log.
    pub seq: Positions,
    /// The volumes.
    pub volumes: Vec<Volume>,
    /// The other nodes.
    pub peers: Vec<Peer>,
    /// What is bounded; more than the contract promises.
    #[serde(default)]
    pub limits: Limits,
}

/// What is bounded, as far as tests look at it.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct Limits {
    /// The journal's ring.
    #[serde(default)]
    pub journal: Ring,
}

/// The journal's ring.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct Ring {
    /// Bytes of records that are not applied durably.
    pub used: Option<u64>,
}

/// Positions in the log; null where unknown.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Positions {
    /// The last record that the Primary admitted.
    pub admitted: Option<u64>,
    /// The last record that is on this node's stable media.
    pub durable: Option<u64>,
    /// The last record that a majority has.
    pub committed: Option<u64>,
    /// The last record that is in this node's stores.
    pub applied: Option<u64>,
}

/// One volume as the answering node has it.
#[derive(Clone, Debug, Deserialize)]
pub struct Volume {
    /// Its name, which is its export's name too.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// DRBD's disk states.
    pub disk_state: String,
    /// NBD connections in transmission.
    pub nbd_clients: Option<u64>,
    /// Where a client finds it.
    pub uri: Option<String>,
}

/// One peer as the answering node sees it.
#[derive(Clone, Debug, Deserialize)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Primary, Secondary, Unknown or Witness.
    pub role: Option<String>,
    /// DRBD's connection states.
    pub connection: Option<String>,
    /// DRBD's replication states.
    pub replication: Option<String>,
    /// DRBD's disk states.
    pub disk_state: Option<String>,
    /// member, dropped, joining or out.
    #[serde(default)]
    pub membership: Option<String>,
    /// The last record that it has durably.
    pub durable_seq: Option<u64>,
    /// How much it misses.
    pub behind_bytes: Option<u64>,
    /// How much of a resync is done.
    pub sync_percent: Option<f64>,
}

impl Status {
    /// The peer of that name.
    #[must_use]
    pub fn peer(&self, name: &str) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.name == name)
    }

    /// The volume of that name.
    #[must_use]
    pub fn volume(&self, name: &str) -> Option<&Volume> {
        self.volumes.iter().find(|volume| volume.name == name)
    }

    /// Bytes of the journal that are in use.
    #[must_use]
    pub fn journal_used(&self) -> Option<u64> {
        self.limits.journal.used
    }

    /// Whether it serves and nothing holds its writes back.
    #[must_use]
    pub fn serves(&self) -> bool {
        self.role == "Primary" && self.suspended == "no"
    }
}

impl Peer {
    /// Whether it is connected and UpToDate.
    #[must_use]
    pub fn up_to_date(&self) -> bool {
        self.connection.as_deref() == Some("Connected")
            && self.disk_state.as_deref() == Some("UpToDate")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_example_is_understood() {
        let text = r#"{
          "resource": "pbx", "node": "pbx-a", "role": "Primary", "epoch": 3,
          "primary": "pbx-a", "quorum": true, "suspended": "no", "health": "ok", "health_reason": "",
          "seq": {"admitted": 9123, "durable": 9123, "committed": 9123, "applied": null},
          "volumes": [{"name": "db", "size": 8589934592, "disk_state": "UpToDate", "nbd_clients": 1,
                       "uri": "nbd+unix:///db?socket=/run/replicator/pbx/nbd.sock"}],
          "peers": [{"name": "pbx-b", "role": "Secondary", "connection": "Connected",
                     "replication": "Established", "disk_state": "UpToDate", "durable_seq": 9123,
                     "behind_bytes": 0, "sync_percent": 100.0}],
          "added_later": {}
        }"#;
        let status: Status = serde_json::from_str(text).expect("the contract's example");
        assert!(status.serves());
        assert!(status.peer("pbx-b").expect("a peer").up_to_date());
        assert_eq!(status.volume("db").expect("a volume").nbd_clients, Some(1));
        assert_eq!(status.seq.applied, None);
    }
}
