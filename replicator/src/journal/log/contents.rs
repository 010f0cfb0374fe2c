//! What the records of the log say of the resource: its volumes, its epochs, and who counts.

use super::{Log, TableAt};
use crate::meta::config::{ClusterConfig, ConfigAt};
use crate::meta::volumes::Volumes;
use crate::types::*;
use crate::wire::frame::EpochHistory;

impl<B: Clone> Log<B> {
    /// The record that was appended last brought this table of volumes.
    pub fn note_volumes(&mut self, volumes: Volumes) {
        let at = self.tail().id.seq;
        self.tables.push(TableAt { at, volumes });
    }

    /// The volumes at the end of the log: what follows has to be about these.
    #[must_use]
    pub fn volumes(&self) -> &Volumes {
        &self.tables.last().expect("the first one stays").volumes
    }

    /// The volumes that the record after this one is about; `None` if that is too long ago to be known.
    #[must_use]
    pub fn volumes_after(&self, seq: Seq) -> Option<&Volumes> {
        let table = self.tables.iter().rev().find(|t| t.at <= seq)?;
        Some(&table.volumes)
    }

    /// The volumes at the applied floor.
    #[must_use]
    pub fn applied_volumes(&self) -> &Volumes {
        &self.tables[0].volumes
    }

    /// The record that made the volumes at the applied floor what they are; 0 if none did.
    #[must_use]
    pub fn applied_volumes_at(&self) -> Seq {
        self.tables[0].at
    }

    /// The number of the first entry that the stores lack and that changes the volumes.
    #[must_use]
    pub fn next_volumes_number(&self) -> Option<u64> {
        self.number_of(self.tables.get(1)?.at)
    }

    /// The tables that the stores lack, in their order.
    #[must_use]
    pub fn unapplied_volumes(&self) -> &[TableAt] {
        &self.tables[1..]
    }

    /// The epoch history.
    #[must_use]
    pub fn epochs(&self) -> &EpochHistory {
        &self.epochs
    }

    /// The epoch history up to a record.
    #[must_use]
    pub fn epochs_until(&self, seq: Seq) -> EpochHistory {
        self.epochs
            .iter()
            .copied()
            .filter(|e| e.seq <= seq)
            .collect()
    }

    /// Whether the log holds this very record.
    #[must_use]
    pub fn contains(&self, id: RecordId) -> bool {
        id == RecordId::NONE
            || id == self.start.id
            || (id.seq <= self.tail().id.seq
                && self
                    .epochs
                    .iter()
                    .rev()
                    .find(|e| e.seq <= id.seq)
                    .is_some_and(|e| e.epoch == id.epoch))
    }

    /// The configs from the one at the applied floor on.
    #[must_use]
    pub fn configs(&self) -> &[ConfigAt] {
        &self.configs
    }

    /// The latest config.
    #[must_use]
    pub fn config(&self) -> Option<&ConfigAt> {
        self.configs.last()
    }

    /// The latest config that the log up to a record gives, or that came without its record. A config whose record is
    /// not durable yet may be no config at all after a crash: nobody is told of it.
    #[must_use]
    pub fn config_at(&self, seq: Seq) -> Option<&ConfigAt> {
        let counts = |c: &&ConfigAt| c.at.seq <= seq || Some(c.at) == self.adopted;
        self.configs.iter().rev().find(counts)
    }

    /// The config that a forced promotion goes on with, from the end of the log on (protocol D2).
    pub fn fork(&mut self, config: ClusterConfig) {
        self.configs.push(ConfigAt {
            at: self.tail().id,
            config,
        });
    }

    /// A config that came without its record: to a fresh node (protocol D3), or to a witness, in place of the one before.
    pub fn adopt_config(&mut self, config: ConfigAt) {
        self.adopted = Some(config.at);
        self.configs.clear();
        self.configs.push(config);
    }
}
