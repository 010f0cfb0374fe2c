//! The disks of one node, and what is known of the files that its stores are: a file that was made shorter, or put aside, has to be made
//! longer again before something is asked of it there.

use replicator::meta::config::Name;
use replicator::meta::volumes::Volumes;
use replicator::types::VolumeId;

use crate::disk::Disk;

/// The disks of one node.
pub(crate) struct Disks {
    pub(crate) meta: Disk,
    pub(crate) journal: Disk,
    pub(crate) stores: Vec<Disk>,
    /// The checksums of the stores' blocks.
    pub(crate) sums: Disk,
    /// What a resync has brought so far.
    pub(crate) stage: Disk,
    /// What the files of the stores are known to be.
    files: Vec<StoreFile>,
}

/// The file of a store, as far as the core had it changed in this life of the disks.
#[derive(Clone, Debug, Default)]
struct StoreFile {
    /// The volume that it was made for.
    of: Option<Name>,
    /// It ends there, in blocks.
    end: Option<u64>,
}

impl Disks {
    /// All that they say they have is durable.
    pub(crate) fn flush_all(&mut self) {
        let files = [
            &mut self.meta,
            &mut self.journal,
            &mut self.sums,
            &mut self.stage,
        ];
        for disk in files.into_iter().chain(&mut self.stores) {
            disk.flushed(u64::MAX - 1);
        }
    }

    /// Those of a node whose stores are empty.
    pub(crate) fn new(meta: &[u8], journal: &[u8], volumes: usize) -> Self {
        let empty = || Disk::with(false, &[]);
        Self {
            meta: Disk::with(true, meta),
            journal: Disk::with(true, journal),
            stores: (0..volumes).map(|_| empty()).collect(),
            sums: empty(),
            stage: empty(),
            files: vec![StoreFile::default(); volumes],
        }
    }

    /// The same contents, all of it durable.
    pub(crate) fn copy(&self) -> Self {
        Self {
            meta: self.meta.copy(),
            journal: self.journal.copy(),
            stores: self.stores.iter().map(Disk::copy).collect(),
            sums: self.sums.copy(),
            stage: self.stage.copy(),
            files: self.files.clone(),
        }
    }

    /// Files are as long as these volumes need, or longer.
    ///
    /// # Panics
    /// If one of them takes the place of another volume's file, which was not put aside.
    pub(crate) fn made_room(&mut self, volumes: &Volumes) {
        for (id, volume) in volumes.iter() {
            let file = &mut self.files[usize::from(id.0)];
            match file.of {
                Some(of) => assert_eq!(of, volume.name, "the file of {of} is still in place {id}"),
                None => file.of = Some(volume.name),
            }
            file.end = file.end.map(|end| end.max(volumes.blocks(id)));
        }
    }

    /// Files are no longer than these volumes need, and those of others are put aside.
    pub(crate) fn fitted(&mut self, volumes: &Volumes) {
        let places = (0..).map(VolumeId).zip(&mut self.stores);
        for ((id, store), file) in places.zip(&mut self.files) {
            store.truncate(volumes.blocks(id));
            *file = StoreFile {
                of: volumes.get(id).map(|v| v.name),
                end: Some(volumes.blocks(id)),
            };
        }
    }

    /// Whether a store's file has blocks up to `end`.
    pub(crate) fn reaches(&self, volume: VolumeId, end: u64) -> bool {
        let file = self.files.get(usize::from(volume.0));
        file.and_then(|f| f.end).is_none_or(|blocks| end <= blocks)
    }

    pub(crate) fn all_mut(&mut self) -> impl Iterator<Item = &mut Disk> {
        let Self {
            meta,
            journal,
            stores,
            sums,
            stage,
            files: _,
        } = self;
        stores.iter_mut().chain([meta, journal, sums, stage])
    }
}
