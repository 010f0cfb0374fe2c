use super::*;
use crate::io::DiskError;
use crate::journal::scan::Decision;
use crate::journal::testing::{Chain, Disk, superblock};
use crate::meta::config::{ConfigAt, Name};
use crate::meta::volumes::Volumes;
use crate::replica::{AckPolicy, OnNoQuorum};

/// A metadata file of which some copies can not be read.
struct Meta {
    copies: [[u8; BLOCK_BYTES]; COPIES],
    unreadable: Vec<usize>,
}

impl Meta {
    fn of(superblock: &Superblock) -> Self {
        let copies = std::array::from_fn(|copy| {
            let mut block = [0; BLOCK_BYTES];
            superblock.encode(copy, &mut block);
            block
        });
        Self {
            copies,
            unreadable: Vec::new(),
        }
    }
}

impl BlockRead for Meta {
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let copy = (0..COPIES).find(|&c| copy_offset(c) == offset).unwrap();
        if self.unreadable.contains(&copy) {
            return Err(DiskError::Os(5));
        }
        buffer.copy_from_slice(&self.copies[copy]);
        Ok(())
    }
}

/// A file of checksums that was never written.
struct Blank;

impl BlockRead for Blank {
    fn read(&mut self, _: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        buffer.fill(0);
        Ok(())
    }
}

fn config() -> ReplicaConfig {
    ReplicaConfig {
        resource: superblock().resource,
        nodes: ["a", "b", "c"].map(|n| Name::from(n).unwrap()).to_vec(),
        witnesses: vec![NodeId(2)],
        me: NodeId(0),
        lease_ms: 1000,
        on_no_quorum: OnNoQuorum::SuspendIo,
        ack: AckPolicy::Majority,
        requests_max: 16,
        drop_after_ms: 0,
        without_room: crate::replica::WithoutRoom::Wait,
    }
}

fn journal() -> Disk {
    let mut chain = Chain::new();
    let mut disk = Disk::with(&[chain.epoch(1), chain.write(2)]);
    let superblock = superblock();
    let label = &mut disk.bytes[..BLOCK_BYTES];
    label::encode(superblock.incarnation, superblock.journal_bytes, label);
    disk
}

fn refusal(meta: &mut Meta, journal: &mut Disk, config: &ReplicaConfig) -> RecoverError {
    recover(meta, journal, &mut Blank, config).unwrap_err()
}

#[test]
fn a_node_starts_with_what_its_disks_say() {
    let found = recover(
        &mut Meta::of(&superblock()),
        &mut journal(),
        &mut Blank,
        &config(),
    )
    .unwrap();
    assert_eq!(found.superblock, superblock());
    assert_eq!(found.scanned.parts.entries.len(), 2);
    assert_eq!(found.scanned.end.decision, Decision::End);
}

#[test]
fn two_copies_are_enough_and_one_is_not() {
    let mut meta = Meta::of(&superblock());
    meta.unreadable = vec![0, 3];
    assert!(recover(&mut meta, &mut journal(), &mut Blank, &config()).is_ok());
    meta.unreadable.push(1);
    assert_eq!(
        refusal(&mut meta, &mut journal(), &config()),
        RecoverError::Meta(MetaError::Damaged { intact: 1 })
    );
    meta.unreadable.push(2);
    assert_eq!(
        refusal(&mut meta, &mut journal(), &config()),
        RecoverError::Meta(MetaError::Read(DiskError::Os(5)))
    );
    let blank = &mut Meta::of(&superblock());
    blank.copies = [[0; BLOCK_BYTES]; COPIES];
    let error = refusal(blank, &mut journal(), &config());
    assert_eq!(error, RecoverError::Meta(MetaError::Blank));
}

#[test]
fn disks_that_are_not_this_nodes_are_refused() {
    let meta = || Meta::of(&superblock());
    let mut other = config();
    other.resource = Name::from("other").unwrap();
    let error = refusal(&mut meta(), &mut journal(), &other);
    assert!(matches!(error, RecoverError::Resource { .. }));

    let mut other = config();
    other.me = NodeId(1);
    let error = refusal(&mut meta(), &mut journal(), &other);
    assert!(matches!(error, RecoverError::Node { .. }));

    let mut foreign = journal();
    let label = &mut foreign.bytes[..BLOCK_BYTES];
    label::encode(Incarnation(9), superblock().journal_bytes, label);
    let error = refusal(&mut meta(), &mut foreign, &config());
    assert_eq!(error, RecoverError::Label(LabelError::Foreign));

    let mut broken = journal();
    broken.unreadable.insert(0);
    let error = refusal(&mut meta(), &mut broken, &config());
    assert_eq!(error, RecoverError::Journal(DiskError::Os(5)));
}

/// The superblock of a witness that was told a config.
fn witness() -> (Superblock, ReplicaConfig) {
    let mut superblock = superblock();
    superblock.journal_bytes = 0;
    superblock.volumes = Volumes::default();
    superblock.config = Some(ConfigAt {
        at: RecordId {
            epoch: Epoch(1),
            seq: Seq(7),
        },
        config: crate::journal::testing::config(3),
    });
    let mut config = config();
    config.witnesses = vec![config.me];
    (superblock, config)
}

#[test]
fn a_witness_starts_with_the_config_that_it_was_told() {
    let (superblock, config) = witness();
    let found = recover_witness(&mut Meta::of(&superblock), &config).unwrap();
    assert_eq!(found.scanned.parts.configs, [superblock.config.unwrap()]);
    assert!(found.scanned.parts.entries.is_empty());
    assert_eq!(found.scanned.damaged_until, RecordId::NONE);
    assert_eq!(found.scanned.committed, Seq(0));
}

#[test]
fn data_nodes_and_witnesses_are_not_taken_for_each_other() {
    let (superblock, as_witness) = witness();
    let error = refusal(&mut Meta::of(&superblock), &mut journal(), &config());
    let kind = RecoverError::Kind {
        found: "witness",
        expected: "data node",
    };
    assert_eq!(error, kind);
    let data = &mut Meta::of(&crate::journal::testing::superblock());
    let error = recover_witness(data, &as_witness).unwrap_err();
    assert!(matches!(error, RecoverError::Kind { .. }), "{error:?}");
}
