//! A change of the volumes that an operator wants, on the Primary: all data nodes that count are asked for room, and when all have it
//! the record with the new table is appended.

use super::{HasRoom, Payload};
use crate::io::*;
use crate::journal::batch::Kind;
use crate::memory::Memory;
use crate::meta::volumes::{Volumes, VolumesError};
use crate::replica::Replica;
use crate::types::*;
use crate::wire::frame::Frame;

/// How far a node is with making room for a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum RoomAsk {
    /// Its stores are not known to have come to the change before this one: a place that is given to another volume may still
    /// be the former one's there, and records about that may be on their way.
    Waits,
    Sent,
    Granted,
}

/// A change that an operator wants, on the Primary.
#[derive(Debug)]
pub(in crate::replica) struct Change {
    id: AdminId,
    deadline: Time,
    pub(super) target: Volumes,
    /// What it is, for logs.
    text: String,
    token: u64,
    /// Who has to make room, and how far that is.
    asked: arrayvec::ArrayVec<(ConnId, NodeId, RoomAsk), NODES_MAX>,
    /// The record that makes it.
    record: Option<Seq>,
}

impl<M: Memory> Replica<M> {
    /// A node has room, or has none.
    pub(in crate::replica) fn got_prepared(
        &mut self,
        conn: ConnId,
        token: u64,
        result: Result<(), DiskError>,
    ) {
        let Some(change) = self.change.as_mut().filter(|c| c.token == token) else {
            return;
        };
        let Some(asked) = change.asked.iter_mut().find(|a| a.0 == conn) else {
            return;
        };
        if result.is_ok() {
            asked.2 = RoomAsk::Granted;
        }
        if let Err(error) = result {
            let name = self.config.nodes[usize::from(asked.1.0)];
            self.change_fails(format!("{name}: {error}; nothing is changed on any node"));
        }
    }

    /// An operator wants the volumes changed.
    pub(in crate::replica) fn change_volumes(
        &mut self,
        id: AdminId,
        deadline: Time,
        text: String,
        change: impl FnOnce(&Volumes) -> Result<Volumes, VolumesError>,
    ) {
        let target = match change(self.volumes()) {
            Ok(target) => target,
            Err(error) => {
                let result = Err(AdminError::Failed(error.to_string()));
                self.out.push_back(Output::AdminReply { id, result });
                return;
            }
        };
        let mut refused = self.not_changing_volumes();
        if refused.is_none() && target == *self.volumes() {
            self.out
                .push_back(Output::AdminReply { id, result: Ok(()) });
            return;
        }
        // All data nodes that count, or none.
        let mut asked = arrayvec::ArrayVec::new();
        let own = self.metadata.wanted.incarnation;
        let config = self.log.config().map(|c| c.config.clone());
        let nodes = config.iter().flat_map(|c| &c.nodes);
        let members = nodes.filter(|n| n.member && n.incarnation != own);
        let mut missing = Vec::new();
        for member in members {
            let node = self.node_named(&member.name);
            let peer = node.and_then(|n| self.peer(n));
            let here = peer.filter(|p| p.incarnation() == Some(member.incarnation));
            match here.and_then(|p| Some((p.conn?, p.node, RoomAsk::Waits))) {
                Some(peer) => asked.push(peer),
                None => missing.push(member.name.as_str()),
            }
        }
        if refused.is_none() && !missing.is_empty() {
            refused = Some(AdminError::Failed(format!(
                "{} can not be reached: volumes are changed on all nodes or on none; start it, or drop it",
                missing.join(", ")
            )));
        }
        if let Some(error) = refused {
            let result = Err(error);
            self.out.push_back(Output::AdminReply { id, result });
            return;
        }
        let token = self.next_token();
        self.room.failed = None;
        self.forget_room(&target);
        self.change = Some(Change {
            id,
            deadline,
            target,
            text,
            token,
            asked,
            record: None,
        });
    }

    /// Why the volumes can not be changed here and now.
    fn not_changing_volumes(&self) -> Option<AdminError> {
        if let Some(error) = self.not_primary("volumes are changed") {
            return Some(error);
        }
        if self.hold.is_some() {
            let text = "an operator holds writes, and with them the stores: resume them first";
            return Some(AdminError::Failed(text.into()));
        }
        let busy = self.change.is_some() || !self.log.unapplied_volumes().is_empty();
        busy.then(|| {
            AdminError::Failed(
                "another change of the volumes is under way: wait for its end".into(),
            )
        })
    }

    /// Whether an operator waits for a change.
    pub(in crate::replica) fn volumes_change(&self) -> bool {
        self.change.is_some()
    }

    /// Asks for room whoever has come to the change before.
    fn ask_for_room(&mut self) {
        let at = self.log.applied_volumes_at();
        let Some(mut change) = self.change.take() else {
            return;
        };
        for (conn, node, asked) in &mut change.asked {
            let applied = self.peer(*node).map_or(Seq(0), |p| p.applied);
            if *asked == RoomAsk::Waits && applied >= at {
                *asked = RoomAsk::Sent;
                let (token, volumes) = (change.token, Box::new(change.target.clone()));
                self.send(*conn, Frame::Prepare { token, volumes });
            }
        }
        self.change = Some(change);
    }

    pub(super) fn pump_change(&mut self) {
        let Some(change) = &self.change else { return };
        let late = self.now >= change.deadline;
        if let Some(record) = change.record {
            let known = self.metadata.durable_committed >= record;
            if self.log.applied_id().seq >= record && known {
                let text = format!("{}: done with record {record}", change.text);
                self.log_info(text);
                self.end_change(Ok(()));
            } else if late {
                let error = AdminError::NoQuorum(
                    "the change is in the journal and not committed and applied yet: it may be once a majority of the nodes is \
                     reached; status shows the sizes"
                        .into(),
                );
                self.end_change(Err(error));
            } else {
                self.applier.urgent = true;
            }
            return;
        }
        let target = change.target.clone();
        let all = change.asked.iter().all(|a| a.2 == RoomAsk::Granted) || planted!(RoomAsItIs);
        self.ask_for_room();
        match self.has_room_for(&target) {
            HasRoom::No(error) => {
                let name = self.config.nodes[usize::from(self.config.me.0)];
                self.change_fails(format!("{name}: {error}; nothing is changed on any node"));
                return;
            }
            HasRoom::Yes if all && self.may_append_volumes(&target) => {
                self.append_volumes(target);
                return;
            }
            _ => {}
        }
        if late {
            let Some(change) = &self.change else { return };
            let who = |how: RoomAsk| {
                let those = change.asked.iter().filter(|a| a.2 == how);
                let names = those.map(|a| self.config.nodes[usize::from(a.1.0)].as_str());
                names.collect::<Vec<_>>().join(", ")
            };
            let text = match (who(RoomAsk::Waits), who(RoomAsk::Sent)) {
                (names, _) if !names.is_empty() => format!(
                    "the stores of {names} have not come to the change before this one in time, as their status says"
                ),
                (_, names) if !names.is_empty() => {
                    format!("{names} has not made room in time")
                }
                _ => "the change could not be made in time".into(),
            };
            self.change_fails(format!(
                "{text}; nothing is changed on any node. A device that has to be zeroed takes long: give it more time with --timeout"
            ));
        }
    }

    fn may_append_volumes(&self, target: &Volumes) -> bool {
        let idle = self.clients.in_work() == 0 || !self.takes_away(target);
        self.lease_runs() && self.settled_config().is_some() && idle
    }

    fn append_volumes(&mut self, target: Volumes) {
        self.close_batch();
        if !self.append_control(Kind::Volumes, Payload::Volumes(Box::new(target))) {
            self.applier.urgent = true;
            return;
        }
        let record = self.log.tail().id;
        if let Some(change) = self.change.as_mut() {
            change.record = Some(record.seq);
            let text = format!("record {record} changes the volumes: {}", change.text);
            self.log_warn(text);
        }
        self.applier.urgent = true;
    }

    /// It does not come, and whoever was asked for room needs none.
    fn change_fails(&mut self, text: String) {
        if let Some(change) = self.change.as_ref().filter(|c| c.record.is_none()) {
            let asked = change.asked.iter().filter(|a| a.2 != RoomAsk::Waits);
            let asked: arrayvec::ArrayVec<_, NODES_MAX> = asked.map(|a| (a.0, a.1)).collect();
            for (conn, node) in asked {
                if self.peer(node).is_some_and(|p| p.conn == Some(conn)) {
                    let (token, volumes) = (self.next_token(), Box::new(self.volumes().clone()));
                    self.send(conn, Frame::Prepare { token, volumes });
                }
            }
            let own = self.volumes().clone();
            self.forget_room(&own);
        }
        self.end_change(Err(AdminError::Failed(text)));
    }

    fn end_change(&mut self, result: AdminResult) {
        if let Some(change) = self.change.take() {
            if let Err(error) = &result {
                self.log_warn(format!("{}: {error}", change.text));
            }
            let id = change.id;
            self.out.push_back(Output::AdminReply { id, result });
        }
    }

    /// A node that was asked for room is gone.
    pub(in crate::replica) fn change_loses(&mut self, conn: ConnId) {
        if self.preparation.as_ref().is_some_and(|p| p.conn == conn) {
            self.preparation = None;
        }
        let Some(change) = self.change.as_ref().filter(|c| c.record.is_none()) else {
            return;
        };
        if let Some(asked) = change.asked.iter().find(|a| a.0 == conn) {
            let name = self.config.nodes[usize::from(asked.1.0)];
            self.change_fails(format!(
                "the connection to {name} ended: volumes are changed on all nodes or on none, and nothing is changed"
            ));
        }
    }

    /// The reign is over, and with it what was asked of it.
    pub(in crate::replica) fn change_lost(&mut self) {
        let made = self.change.as_ref().is_some_and(|c| c.record.is_some());
        let text = if made {
            "this node ceased to be Primary meanwhile: the next one knows whether the change was made; status shows the sizes"
        } else {
            "this node ceased to be Primary meanwhile: nothing is changed"
        };
        self.change_fails(text.into());
    }

    pub(in crate::replica) fn change_timeout(&self) -> Option<Time> {
        self.change.as_ref().map(|c| c.deadline)
    }
}
