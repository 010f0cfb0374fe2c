//! Events: what is there, then what changed, one object of the resource each.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Status;

/// Something that is there, came, changed or went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, in UTC: `2026-01-31T12:00:00.123Z`.
    pub time: String,
    /// What happened.
    pub kind: EventKind,
    /// What it happened to.
    pub what: EventObject,
    /// Its name.
    pub name: String,
    /// The state of it; with `change` only what is new.
    pub changes: BTreeMap<String, Value>,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// It is there.
    Exists,
    /// It changed.
    Change,
    /// It is gone.
    Destroy,
}

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventObject {
    /// The resource on this node.
    Resource,
    /// A volume on this node.
    Volume,
    /// Another node.
    Peer,
}

impl fmt::Display for Event {
    /// `TIME change peer pbx-b connection:Connecting replication:Off`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            EventKind::Exists => "exists",
            EventKind::Change => "change",
            EventKind::Destroy => "destroy",
        };
        let what = match self.what {
            EventObject::Resource => "resource",
            EventObject::Volume => "volume",
            EventObject::Peer => "peer",
        };
        write!(f, "{} {kind} {what} {}", self.time, self.name)?;
        for (key, value) in &self.changes {
            match value {
                Value::String(text) if !text.is_empty() && !text.contains([' ', '"']) => {
                    write!(f, " {key}:{text}")?;
                }
                other => write!(f, " {key}:{other}")?,
            }
        }
        Ok(())
    }
}

type Objects = BTreeMap<(EventObject, String), BTreeMap<String, Value>>;

/// The events that lead from one status to the next; without a status before, what is there. Counters that move with
/// every write are left out.
pub fn changes(before: Option<&Status>, after: &Status, time: &str) -> Vec<Event> {
    let old = before.map(objects).unwrap_or_default();
    let new = objects(after);
    let event = |kind, (what, name): &(EventObject, String), changes| Event {
        time: time.to_owned(),
        kind,
        what: *what,
        name: name.clone(),
        changes,
    };
    let mut events = Vec::new();
    for (key, state) in &new {
        match old.get(key) {
            None => events.push(event(EventKind::Exists, key, state.clone())),
            Some(was) => {
                let differs = state.iter().filter(|(k, v)| was.get(*k) != Some(*v));
                let differs: BTreeMap<_, _> =
                    differs.map(|(k, v)| (k.clone(), v.clone())).collect();
                if !differs.is_empty() {
                    events.push(event(EventKind::Change, key, differs));
                }
            }
        }
    }
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        events.push(event(EventKind::Destroy, key, BTreeMap::new()));
    }
    events
}

fn objects(status: &Status) -> Objects {
    let state = |pairs: Vec<(&str, Value)>| {
        pairs
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect()
    };
    let mut objects = Objects::from([(
        (EventObject::Resource, status.resource.clone()),
        state(vec![
            ("role", status.role.as_str().into()),
            ("epoch", status.epoch.into()),
            ("primary", status.primary.clone().into()),
            ("quorum", status.quorum.into()),
            ("fenced", status.fenced.into()),
            ("suspended", status.suspended.as_str().into()),
            ("health", status.health.as_str().into()),
            ("health_reason", status.health_reason.clone().into()),
        ]),
    )]);
    objects.extend(status.volumes.iter().map(|volume| {
        (
            (EventObject::Volume, volume.name.clone()),
            state(vec![
                ("size", volume.size.into()),
                ("disk_state", volume.disk_state.as_str().into()),
                ("nbd_clients", volume.nbd_clients.into()),
            ]),
        )
    }));
    objects.extend(status.peers.iter().map(|peer| {
        (
            (EventObject::Peer, peer.name.clone()),
            state(vec![
                ("role", peer.role.as_str().into()),
                ("connection", peer.connection.as_str().into()),
                ("replication", peer.replication.as_str().into()),
                ("fenced", peer.fenced.into()),
                ("disk_state", peer.disk_state.as_str().into()),
                ("connection_reason", peer.connection_reason.clone().into()),
            ]),
        )
    }));
    objects
}

/// A time of the wall clock in UTC, with milliseconds.
pub fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Years that begin in March have their leap day at the end; 146097 days are 400 years.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        since.subsec_millis()
    )
}
