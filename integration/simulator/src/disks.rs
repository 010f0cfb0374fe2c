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
    /// The files of volumes that the node has stay where they are.
    pub(crate) fn made_room(&mut self, own: &Volumes, volumes: &Volumes) {
        for (id, volume) in volumes.iter().filter(|(id, v)| own.may_have(*id, &v.name)) {
            if !self.is_of(id, &volume.name) {
                // It was made for a volume that did not come.
                self.lose(id);
            }
            let file = &mut self.files[usize::from(id.0)];
            file.of = Some(volume.name);
            file.end = file.end.map(|end| end.max(volumes.blocks(id)));
        }
    }

    /// Files are no longer than these volumes need, and those of others are put aside. Returns whose files are new.
    pub(crate) fn fitted(&mut self, volumes: &Volumes) -> Vec<VolumeId> {
        let mut made = Vec::new();
        for place in 0..self.stores.len() {
            let id = VolumeId(u16::try_from(place).expect("few"));
            let volume = volumes.get(id);
            if let Some(volume) = volume.filter(|v| !self.is_of(id, &v.name)) {
                self.lose(id);
                self.files[place].of = Some(volume.name);
                made.push(id);
            }
            self.stores[place].truncate(volumes.blocks(id));
            self.files[place].of = volume.map(|v| v.name);
            self.files[place].end = Some(volumes.blocks(id));
        }
        made
    }

    /// The file of a store is put aside.
    pub(crate) fn lose(&mut self, id: VolumeId) {
        let place = usize::from(id.0);
        self.stores[place].truncate(0);
        self.files[place] = StoreFile {
            of: None,
            end: Some(0),
        };
    }

    /// Whether the file of a store was made for a volume of this name, as far as it is known.
    pub(crate) fn is_of(&self, id: VolumeId, name: &Name) -> bool {
        self.files[usize::from(id.0)]
            .of
            .is_none_or(|of| of == *name)
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
