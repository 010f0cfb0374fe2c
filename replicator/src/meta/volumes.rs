//! The table of volumes: which there are, and how large they are. Like the membership it is changed by committed records only, at
//! their place in the one order, so that it has a raw form for records, frames and the superblock.
//!
//! A volume keeps its place in the table, which is its [`VolumeId`], for life. One that was removed leaves a hole, which a later
//! one may take.

use std::mem::offset_of;

use arrayvec::ArrayVec;
use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::meta::config::{NAME_BYTES_MAX, Name};
use crate::types::*;

/// The largest volume (1 PiB).
pub const VOLUME_BYTES_MAX: u64 = 1 << 50;

/// A volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VolumeRecord {
    /// Its name; empty if this is a hole.
    pub name: Name,
    /// Its size in bytes; 0 of a hole.
    pub bytes: u64,
}

/// The volumes of a resource, by their ids.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Volumes {
    /// One was made smaller or removed once: what is beyond a volume's end may have been something.
    pub shrunk: bool,
    list: ArrayVec<VolumeRecord, VOLUMES_MAX>,
}

/// Why a table can not be changed so.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum VolumesError {
    /// No such volume.
    #[error("there is no such volume")]
    Unknown,
    /// The name is taken.
    #[error("there is a volume of this name")]
    Exists,
    /// There are as many as there can be.
    #[error("there are {VOLUMES_MAX} volumes, which is the most")]
    Full,
    /// No size for a volume.
    #[error("a volume has a size that is a multiple of 4 KiB, at least 4 KiB and at most 1 PiB")]
    Size,
}

fn is_size(bytes: u64) -> bool {
    bytes > 0 && bytes.is_multiple_of(BLOCK_BYTES_U64) && bytes <= VOLUME_BYTES_MAX
}

impl FromIterator<VolumeRecord> for Volumes {
    /// # Panics
    /// If there are more than 16.
    fn from_iter<T: IntoIterator<Item = VolumeRecord>>(volumes: T) -> Self {
        Self {
            shrunk: false,
            list: volumes.into_iter().collect(),
        }
    }
}

impl Volumes {
    /// The volumes that there are, with their ids.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (VolumeId, &VolumeRecord)> {
        (0..)
            .map(VolumeId)
            .take(self.list.len())
            .collect::<ArrayVec<_, VOLUMES_MAX>>()
            .into_iter()
            .zip(&self.list)
            .filter(|(_, v)| v.bytes > 0)
    }

    /// The volume of an id.
    #[must_use]
    pub fn get(&self, id: VolumeId) -> Option<&VolumeRecord> {
        self.list
            .get(usize::from(id.0))
            .filter(|volume| volume.bytes > 0)
    }

    /// The volume of a name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<(VolumeId, &VolumeRecord)> {
        self.iter().find(|(_, v)| v.name.as_str() == name)
    }

    /// Bytes of a volume; 0 if there is none.
    #[must_use]
    pub fn bytes(&self, id: VolumeId) -> u64 {
        self.get(id).map_or(0, |v| v.bytes)
    }

    /// Blocks of a volume; 0 if there is none.
    #[must_use]
    pub fn blocks(&self, id: VolumeId) -> u64 {
        self.bytes(id) / BLOCK_BYTES_U64
    }

    /// The sizes in bytes by id, of holes 0.
    pub fn sizes(&self) -> impl Iterator<Item = u64> + Clone {
        self.list.iter().map(|v| v.bytes)
    }

    /// All places in the table; a hole has no name and no bytes.
    pub fn slots(&self) -> impl Iterator<Item = &VolumeRecord> {
        self.list.iter()
    }

    /// Places in the table, holes included.
    #[must_use]
    pub fn places(&self) -> u16 {
        u16::try_from(self.list.len()).expect("at most 16 volumes")
    }

    /// Whether nothing of the other table is missing here: every volume of it is here, and not smaller.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        other.iter().all(|(id, v)| {
            self.get(id)
                .is_some_and(|own| own.name == v.name && own.bytes >= v.bytes)
        })
    }

    /// How many bytes of a volume of `next` are in this table already, as that volume.
    #[must_use]
    pub fn common_bytes(&self, next: &Self, id: VolumeId) -> u64 {
        match (self.get(id), next.get(id)) {
            (Some(own), Some(v)) if own.name == v.name => own.bytes.min(v.bytes),
            _ => 0,
        }
    }

    /// Whether a volume can have a store at a place while these are the node's: not if the place is another one's, or if a volume of
    /// that name is at another place.
    #[must_use]
    pub fn may_have(&self, id: VolumeId, name: &str) -> bool {
        self.get(id).is_none_or(|v| v.name.as_str() == name)
            && self.find(name).is_none_or(|(at, _)| at == id)
    }

    /// Whether the same volumes, of the same sizes, are at the same places: whatever there was before.
    #[must_use]
    pub fn has_same_places(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }

    /// A number that is the same for equal tables.
    #[must_use]
    pub fn digest(&self) -> u32 {
        crc32fast::hash(self.to_raw().as_bytes())
    }

    /// The same with a volume of another size.
    ///
    /// # Errors
    /// Why that can not be.
    pub fn resized(&self, name: &str, bytes: u64) -> Result<Self, VolumesError> {
        if !is_size(bytes) {
            return Err(VolumesError::Size);
        }
        let (id, volume) = self.find(name).ok_or(VolumesError::Unknown)?;
        let mut next = self.clone();
        next.shrunk |= bytes < volume.bytes;
        next.list[usize::from(id.0)].bytes = bytes;
        Ok(next)
    }

    /// The same with one more volume.
    ///
    /// # Errors
    /// Why that can not be.
    pub fn with(&self, name: Name, bytes: u64) -> Result<Self, VolumesError> {
        if !is_size(bytes) || name.is_empty() {
            return Err(VolumesError::Size);
        }
        if self.find(&name).is_some() {
            return Err(VolumesError::Exists);
        }
        let mut next = self.clone();
        let volume = VolumeRecord { name, bytes };
        match next.list.iter_mut().find(|v| v.bytes == 0) {
            Some(hole) => *hole = volume,
            None => next.list.try_push(volume).map_err(|_| VolumesError::Full)?,
        }
        Ok(next)
    }

    /// The same without a volume.
    ///
    /// # Errors
    /// Why that can not be.
    pub fn without(&self, name: &str) -> Result<Self, VolumesError> {
        let (id, _) = self.find(name).ok_or(VolumesError::Unknown)?;
        let mut next = self.clone();
        next.shrunk = true;
        next.list[usize::from(id.0)] = VolumeRecord::default();
        Ok(next)
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
/// One [`VolumeRecord`] as it is on disk and on the wire.
pub struct RawVolume {
    length: u8,
    name: [u8; NAME_BYTES_MAX],
    bytes: U64,
}
const _: () = assert!(size_of::<RawVolume>() == 72);
const _: () = assert!(offset_of!(RawVolume, bytes) == 64);

/// [`Volumes`] as they are on disk and on the wire: 1160 bytes.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub struct RawVolumes {
    count: U16,
    flags: u8,
    reserved: [u8; 5],
    pub(super) volumes: [RawVolume; VOLUMES_MAX],
}
const _: () = assert!(size_of::<RawVolumes>() == 1160);
const _: () = {
    assert!(offset_of!(RawVolumes, flags) == 2);
    assert!(offset_of!(RawVolumes, volumes) == 8);
};

const SHRUNK: u8 = 1;

impl RawVolumes {
    /// Put together from its parts.
    pub(super) fn of(count: u16, shrunk: bool, volumes: [RawVolume; VOLUMES_MAX]) -> Self {
        Self {
            count: U16::new(count),
            flags: if shrunk { SHRUNK } else { 0 },
            reserved: [0; 5],
            volumes,
        }
    }
}

impl Volumes {
    /// As it goes to disk and wire.
    #[must_use]
    pub fn to_raw(&self) -> RawVolumes {
        let mut raw = RawVolumes::read_from_bytes(&[0; size_of::<RawVolumes>()])
            .expect("the length is the type's own");
        raw.count = U16::new(self.places());
        raw.flags = if self.shrunk { SHRUNK } else { 0 };
        for (out, volume) in raw.volumes.iter_mut().zip(&self.list) {
            out.length = u8::try_from(volume.name.len()).expect("a name has at most 63 bytes");
            out.name[..volume.name.len()].copy_from_slice(volume.name.as_bytes());
            out.bytes = U64::new(volume.bytes);
        }
        raw
    }

    /// Reads what [`Volumes::to_raw`] wrote; `None` if it can not have.
    #[must_use]
    pub fn from_raw(raw: &RawVolumes) -> Option<Self> {
        let mut volumes = Self {
            shrunk: raw.flags & SHRUNK != 0,
            ..Self::default()
        };
        for raw in raw.volumes.get(..usize::from(raw.count.get()))? {
            let text = raw.name.get(..usize::from(raw.length))?;
            let name = Name::from(std::str::from_utf8(text).ok()?).ok()?;
            let bytes = raw.bytes.get();
            let hole = name.is_empty() && bytes == 0;
            if !hole && (!is_size(bytes) || name.is_empty() || volumes.find(&name).is_some()) {
                return None;
            }
            volumes.list.push(VolumeRecord { name, bytes });
        }
        Some(volumes)
    }
}

#[cfg(test)]
mod tests;
