//! The first thing on a connection between nodes: one frame of fixed size each way, before a byte of state changes.
//!
//! The node that dialled speaks first. The other one checks what it heard and answers with its own hello, or with a
//! refusal that carries the reason; then both have checked the other, and frames follow.
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | magic |
//! | 8..10 | protocol version |
//! | 10 | kind: 0 hello, 1 refusal |
//! | 11..16 | zero |
//! | 16..32 | digest of what the config must have in common |
//! | 32..224 | resource, sender, receiver: a length byte and 63 bytes each |
//! | 224..480 | of a refusal the reason: two length bytes and 254 bytes |
//! | 480..508 | zero |
//! | 508..512 | CRC32 of all before |

use std::mem::offset_of;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::meta::config::{NAME_BYTES_MAX, Name};

/// The version of everything that nodes say to each other.
pub const WIRE_VERSION: u16 = 3;

/// Bytes of a hello.
pub const HELLO_BYTES: usize = 512;

/// The most bytes of a refusal's reason.
pub const REASON_BYTES_MAX: usize = 254;

/// Why a connection was refused, cut to what fits.
pub type Reason = arrayvec::ArrayString<REASON_BYTES_MAX>;

const MAGIC: u64 = 0x4f4c_4c45_484c_5052; // "RPLHELLO"
const KIND_HELLO: u8 = 0;
const KIND_REFUSAL: u8 = 1;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawName {
    length: u8,
    bytes: [u8; NAME_BYTES_MAX],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawHello {
    magic: U64,
    version: U16,
    kind: u8,
    reserved: [u8; 5],
    digest: [u8; 16],
    resource: RawName,
    from: RawName,
    to: RawName,
    reason_length: U16,
    reason: [u8; REASON_BYTES_MAX],
    reserved_2: [u8; 28],
    checksum: U32,
}
const _: () = assert!(size_of::<RawHello>() == HELLO_BYTES);
const _: () = {
    assert!(offset_of!(RawHello, version) == 8);
    assert!(offset_of!(RawHello, kind) == 10);
    assert!(offset_of!(RawHello, digest) == 16);
    assert!(offset_of!(RawHello, resource) == 32);
    assert!(offset_of!(RawHello, from) == 96);
    assert!(offset_of!(RawHello, to) == 160);
    assert!(offset_of!(RawHello, reason_length) == 224);
    assert!(offset_of!(RawHello, reason) == 226);
    assert!(offset_of!(RawHello, checksum) == 508);
};
const CHECKSUM_AT: usize = HELLO_BYTES - 4;

/// What a node says first: what it is part of, who it is, and whom it means to talk to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hello {
    /// The version of what it speaks.
    pub version: u16,
    /// The digest of what its config must have in common with the other's.
    pub digest: [u8; 16],
    /// The resource's name.
    pub resource: Name,
    /// Who says it.
    pub from: Name,
    /// To whom.
    pub to: Name,
    /// Why it refuses, if it does.
    pub refusal: Option<Reason>,
}

/// Why a hello is not accepted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HelloError {
    /// Not one of ours.
    #[error(
        "what connected is no node of a replicated disk; make sure that the addresses in the config are right"
    )]
    NotAHello,
    /// Damaged on its way.
    #[error("the peer's hello was damaged on its way; look at the network between the nodes")]
    Checksum,
    /// A field that makes no sense.
    #[error("the peer's hello has a bad {0}; run the same version on all nodes")]
    Field(&'static str),
    /// Another version.
    #[error(
        "the peer speaks protocol version {0}, this node {WIRE_VERSION}; run versions that go together on all nodes"
    )]
    Version(u16),
    /// Another resource.
    #[error(
        "the peer is a node of resource \"{theirs}\", this is \"{ours}\"; correct the addresses in the config"
    )]
    Resource {
        /// What it said.
        theirs: String,
        /// What was expected.
        ours: String,
    },
    /// Another sender.
    #[error(
        "node \"{theirs}\" answered at the address of \"{ours}\"; correct the addresses in the config"
    )]
    From {
        /// What it said.
        theirs: String,
        /// What was expected.
        ours: String,
    },
    /// Meant for another node.
    #[error(
        "the peer wanted to reach node \"{theirs}\", this is \"{ours}\"; correct the addresses in its config"
    )]
    To {
        /// What it said.
        theirs: String,
        /// What was expected.
        ours: String,
    },
    /// Another config.
    #[error(
        "the peer's config has other nodes, roles or addresses than this node's; use the same file on all \
         nodes and restart repld where it changed"
    )]
    Digest,
    /// It refused.
    #[error("the peer refused: {0}")]
    Refused(String),
}

impl Hello {
    /// A refusal with its reason, in answer to a hello or to something that was none.
    #[must_use]
    pub fn refuse(self, reason: &str) -> Self {
        let mut fitting = Reason::new();
        let end = reason.floor_char_boundary(REASON_BYTES_MAX);
        fitting.push_str(&reason[..end]);
        Self {
            refusal: Some(fitting),
            ..self
        }
    }

    /// The bytes of it.
    #[must_use]
    pub fn encode(&self) -> [u8; HELLO_BYTES] {
        let reason = self.refusal.unwrap_or_default();
        let mut raw = RawHello {
            magic: U64::new(MAGIC),
            version: U16::new(self.version),
            kind: if self.refusal.is_some() {
                KIND_REFUSAL
            } else {
                KIND_HELLO
            },
            reserved: [0; 5],
            digest: self.digest,
            resource: raw_name(&self.resource),
            from: raw_name(&self.from),
            to: raw_name(&self.to),
            reason_length: U16::new(u16::try_from(reason.len()).expect("at most 254 bytes")),
            reason: [0; REASON_BYTES_MAX],
            reserved_2: [0; 28],
            checksum: U32::new(0),
        };
        raw.reason[..reason.len()].copy_from_slice(reason.as_bytes());
        let checksum = crc32fast::hash(&raw.as_bytes()[..CHECKSUM_AT]);
        raw.checksum = U32::new(checksum);
        let mut bytes = [0; HELLO_BYTES];
        bytes.copy_from_slice(raw.as_bytes());
        bytes
    }

    /// Reads a hello, whatever it says.
    ///
    /// # Errors
    /// If the bytes are none. A hello of another version is recognised as such, whatever else it holds.
    pub fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Self, HelloError> {
        let raw = RawHello::ref_from_bytes(bytes).map_err(|_| HelloError::NotAHello)?;
        if raw.magic.get() != MAGIC {
            return Err(HelloError::NotAHello);
        }
        if raw.checksum.get() != crc32fast::hash(&bytes[..CHECKSUM_AT]) {
            return Err(HelloError::Checksum);
        }
        if raw.version.get() != WIRE_VERSION {
            return Err(HelloError::Version(raw.version.get()));
        }
        let refusal = match raw.kind {
            KIND_HELLO => None,
            KIND_REFUSAL => Some(reason(raw)?),
            _ => return Err(HelloError::Field("kind")),
        };
        Ok(Self {
            version: raw.version.get(),
            digest: raw.digest,
            resource: name(&raw.resource, "resource")?,
            from: name(&raw.from, "sender")?,
            to: name(&raw.to, "receiver")?,
            refusal,
        })
    }

    /// Checks a hello against the one that fits: same version, resource and digest, from and to whom they should be.
    ///
    /// # Errors
    /// What does not fit, and what to do; or the other's own refusal.
    pub fn check(&self, expected: &Self) -> Result<(), HelloError> {
        if let Some(reason) = self.refusal {
            return Err(HelloError::Refused(reason.to_string()));
        }
        if self.version != expected.version {
            return Err(HelloError::Version(self.version));
        }
        let differs = |theirs: Name, ours: Name| {
            (theirs != ours).then(|| (theirs.to_string(), ours.to_string()))
        };
        if let Some((theirs, ours)) = differs(self.resource, expected.resource) {
            return Err(HelloError::Resource { theirs, ours });
        }
        if let Some((theirs, ours)) = differs(self.to, expected.to) {
            return Err(HelloError::To { theirs, ours });
        }
        if let Some((theirs, ours)) = differs(self.from, expected.from) {
            return Err(HelloError::From { theirs, ours });
        }
        if self.digest != expected.digest {
            return Err(HelloError::Digest);
        }
        Ok(())
    }
}

fn raw_name(name: &Name) -> RawName {
    let mut raw = RawName {
        length: u8::try_from(name.len()).expect("a name has at most 63 bytes"),
        bytes: [0; NAME_BYTES_MAX],
    };
    raw.bytes[..name.len()].copy_from_slice(name.as_bytes());
    raw
}

fn name(raw: &RawName, field: &'static str) -> Result<Name, HelloError> {
    let bytes = raw.bytes.get(..usize::from(raw.length));
    bytes
        .filter(|bytes| {
            bytes
                .iter()
                .all(|&b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        })
        .and_then(|bytes| std::str::from_utf8(bytes).ok())
        .and_then(|text| Name::from(text).ok())
        .ok_or(HelloError::Field(field))
}

/// The reason is shown to people: nothing in it may be a control character.
fn reason(raw: &RawHello) -> Result<Reason, HelloError> {
    let bytes = raw.reason.get(..usize::from(raw.reason_length.get()));
    bytes
        .and_then(|bytes| std::str::from_utf8(bytes).ok())
        .filter(|text| !text.chars().any(char::is_control))
        .and_then(|text| Reason::from(text).ok())
        .ok_or(HelloError::Field("reason"))
}

#[cfg(test)]
mod tests;
