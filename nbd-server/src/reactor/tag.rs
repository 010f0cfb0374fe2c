//! What an operation in flight belongs to.

/// The name of an operation on the ring. The numbers are keys of slabs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tag {
    /// The control thread's bell.
    Bell,
    /// A disk operation.
    Disk(u32),
    /// The receive of a client's connection.
    ClientReceive(u32),
    /// The send of a client's connection.
    ClientSend(u32),
    /// The receive of a peer's connection.
    PeerReceive(u32),
    /// The send of a peer's connection.
    PeerSend(u32),
}
