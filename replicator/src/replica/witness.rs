//! Witnesses: voters without data. A witness is a node whose log stays empty and whose config came without its record
//! (protocol S1), told by a Primary. It promises, answers heartbeats and reports as any voter does.

use super::Replica;
use super::follower::Owed;
use super::metadata::MetaVersion;
use super::peers::Feed;
use crate::io::*;
use crate::memory::Memory;
use crate::meta::config::ConfigAt;
use crate::types::*;
use crate::wire::frame::{Frame, Report, Told};

impl<M: Memory> Replica<M> {
    /// Whether this node is a witness: it keeps no log and is never Primary.
    pub(super) fn is_witness(&self) -> bool {
        self.config.is_witness(self.config.me)
    }

    pub(super) fn refuse_promotion(&mut self, id: AdminId) {
        let text = "this node is a witness and has no data to serve: promote a data node";
        self.out.push_back(Output::AdminReply {
            id,
            result: Err(AdminError::Failed(text.into())),
        });
    }

    /// The newest record that this node holds durably; of a witness the one that brought its config.
    pub(super) fn kept(&self) -> RecordId {
        if self.is_witness() {
            let config = self.metadata.durable_config.as_ref();
            return config.map_or(RecordId::NONE, |c| c.at);
        }
        self.log.durable_id()
    }

    /// The same of a peer, by its report.
    pub(super) fn kept_by(&self, node: NodeId, report: &Report) -> RecordId {
        if self.config.is_witness(node) {
            return report.config.as_ref().map_or(RecordId::NONE, |c| c.at);
        }
        report.tail
    }

    /// The latest config that this node holds durably.
    pub(super) fn durable_config(&self) -> Option<ConfigAt> {
        if self.is_witness() {
            return self.metadata.durable_config.clone();
        }
        self.log.config_at(self.log.durable_id().seq).cloned()
    }

    /// A Primary tells a witness its config, once no promotion can miss its record (protocol M4).
    pub(super) fn tell_witness(&mut self, index: usize) {
        let peer = &self.peers[index];
        let (Some(conn), Feed::Witness { told }) = (peer.conn, peer.feed) else {
            return;
        };
        let Some(config) = self.log.config() else {
            return;
        };
        let at = config.at.seq;
        let early = planted!(WitnessToldEarly) && self.log.durable_id().seq >= at;
        if told >= at || !(self.may_be_told(config) || early) {
            return;
        }
        let told = Told {
            uuid: self.metadata.wanted.uuid,
            history: self.metadata.wanted.history,
            config: config.clone(),
        };
        self.peers[index].feed = Feed::Witness { told: at };
        self.send(conn, Frame::Config(Box::new(told)));
    }

    /// Somebody who speaks as Primary tells this node a config (protocol N2).
    pub(super) fn got_config(&mut self, conn: ConnId, told: Told) {
        let sb = &self.metadata.wanted;
        let ours = told.uuid == sb.uuid && told.history == sb.history;
        if !ours && !self.fresh() {
            let reason = DropReason::Unrelated("its config belongs to another resource");
            self.give_up(conn, reason, true);
            return;
        }
        if !self.is_witness() || told.config.config.standing(sb.incarnation).is_none() {
            let reason = DropReason::Protocol("it sent a config that is not for this node");
            self.give_up(conn, reason, false);
            return;
        }
        let at = told.config.at;
        if !self.hear_primary(conn, at.epoch) {
            return;
        }
        let own = self.log.config();
        if own.is_some_and(|own| own.at == at && own.config != told.config.config) {
            self.fail(
                "a config has the name of another and different contents",
                None,
            );
            return;
        }
        if own.is_none_or(|own| own.at < at) {
            self.take_config(told.uuid, told.history, told.config);
        }
        let durable = self.kept() >= at && self.metadata.durable_promised >= at.epoch;
        let version = if durable || planted!(ConfigAckOnReceipt) {
            MetaVersion::default()
        } else {
            self.metadata.changed()
        };
        // One answer per connection is enough: the newest.
        self.owed
            .retain(|(_, o)| !matches!(o, Owed::Ack { conn: c, .. } if *c == conn));
        let (epoch, seq) = (at.epoch, at.seq);
        self.owed.push((version, Owed::Ack { conn, epoch, seq }));
    }

    /// Takes a config without its record, and the identity that goes with it.
    pub(super) fn take_config(
        &mut self,
        uuid: ResourceUuid,
        history: HistoryId,
        config: ConfigAt,
    ) -> MetaVersion {
        let wanted = &mut self.metadata.wanted;
        wanted.uuid = uuid;
        wanted.history = history;
        wanted.promised = wanted.promised.max(config.at.epoch);
        self.highest_seen = self.highest_seen.max(config.at.epoch);
        self.log.adopt_config(config);
        self.metadata.changed()
    }
}

#[cfg(test)]
mod tests;
