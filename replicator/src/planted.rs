//! Bugs that a test can switch on, one at a time, to prove that the simulator finds them. Each is an idea that somebody
//! could have had, at the one place in the core where it would be had: `if planted!(AckOnReceipt) { .. }`. Without the
//! feature `planted` there is no bug, no switch and no test of one: the macro is the constant `false`.

/// Whether this bug is switched on.
#[cfg(not(feature = "planted"))]
macro_rules! planted {
    ($bug:ident) => {
        false
    };
}

/// Whether this bug is switched on.
#[cfg(feature = "planted")]
macro_rules! planted {
    ($bug:ident) => {
        $crate::planted::is_planted($crate::planted::Bug::$bug)
    };
}

#[cfg(feature = "planted")]
macro_rules! bugs {
    ($($promise:literal { $($(#[$idea:meta])+ $bug:ident,)+ })+) => {
        /// A bug: the wrong idea that it is.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum Bug {
            $($($(#[$idea])+ $bug,)+)+
        }

        impl Bug {
            /// All of them, by promise.
            pub const ALL: &[Self] = &[$($(Self::$bug,)+)+];

            /// Its name, as the command line has it.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $($(Self::$bug => stringify!($bug),)+)+
                }
            }

            /// The number of the promise that it breaks first.
            #[must_use]
            pub fn promise(self) -> u8 {
                match self {
                    $($(Self::$bug => $promise,)+)+
                }
            }
        }
    };
}

#[cfg(feature = "planted")]
bugs! {
    1 {
        /// The Primary counts its own copy from the moment that it exists, not from when it is durable (N3).
        CountOwnBeforeDurable,
        /// A follower acknowledges what it received, not what its journal has (N3).
        AckOnReceipt,
        /// Records of an earlier epoch are committed by counting copies, without this epoch's record (N4).
        CommitByCounting,
        /// One copy fewer than a majority is enough.
        CommitWithOneLess,
        /// A log that ends before a record known to be acknowledged was torn, what else (S3).
        CutAcknowledged,
    }
    2 {
        /// A follower takes a record that it has a number for as the one that it has (N1, N2).
        SameNumberSameRecord,
        /// A large write is appended at once, while records that were admitted before it are still in the open batch.
        LargeWriteOvertakes,
        /// After a promotion the overlay is made from the log's end backwards, so that older data covers newer.
        OverlayBackwards,
    }
    3 {
        /// What is durable is applied, whether it is committed or not (N5).
        ApplyUncommitted,
        /// What is committed is applied before a restart would know that it is.
        AppliedBeforeKnown,
        /// The applied floor moves when the writes to the stores have ended, without a flush.
        FloorBeforeFlush,
        /// Ring space is free again as soon as its records are applied, before the superblock says so.
        RecycledTooEarly,
        /// A follower believes the Primary's committed floor also of records that it has not compared (N6).
        UnverifiedFloor,
        /// Within an apply zeroes come first, and then the writes.
        ZeroesFirst,
        /// A resync brings the newest that there is, whether it is committed or not (C2).
        ResyncUncommitted,
        /// A node whose stores are no image is fed from where its log ends (C3).
        InconsistentFed,
        /// Who gives his data up stays who he was (C4, S3).
        SameIncarnation,
        /// A target in resync is not told of changes that the Primary's stores lack yet (C2).
        GroupMissed,
        /// The superblock keeps the table of volumes that the node was created with.
        TableForgotten,
        /// A store has room for a larger volume as soon as it is long enough, whatever is there, and what peers say of it.
        RoomAsItIs,
    }
    4 {
        /// A follower takes records and heartbeats of an epoch below the one that it promised (N2).
        StaleEpochHeard,
        /// A voter promises without waiting for the old Primary's lease (L2).
        NoLeaseWait,
        /// An epoch is promised again to whoever asks (P1).
        TwoGrants,
        /// A promise is told before it is durable (S2).
        GrantBeforeDurable,
        /// After a restart the promise is what the log shows, not what the superblock says (S1).
        ForgottenPromise,
        /// The promise of a node with blank disks counts like that of the node whose place it took (P2, S3).
        BlankGrantCounts,
        /// A candidate with enough promises reigns with the log that it has (P3).
        SkipFetch,
        /// A forced promotion takes an epoch and goes on alone, in the history that the others are in (D2).
        ForkKeepsHistory,
        /// A node that goes on alone serves before its superblock says so (D2).
        ForkServesEarly,
        /// A witness confirms a config that it has received (N2).
        ConfigAckOnReceipt,
        /// A witness is told the config as soon as the Primary has the record (M4).
        WitnessToldEarly,
        /// A change of the membership is committed by the voters of the new config alone (M3).
        OldVotersForgotten,
        /// While a change is pending its own rule is enough for what is written (M2).
        NewRuleTooEarly,
        /// What was dropped hears of it at once, before anybody else has it (M4).
        DroppedToldEarly,
        /// The lease is that of the newest config alone, while a change is pending (L1).
        LeaseOfNewAlone,
        /// A fence lasts until the next promotion: whoever asks then is promised (F1).
        FencedIsPromised,
        /// The rules of before fall away as soon as a change is committed, whether a restart would know that or not (M3).
        FloorNotKept,
    }
    5 {
        /// The lease is tested when a request comes, not when its answer is released (L1).
        AnswerPastLease,
        /// A read gets the newest data, whether it is committed or not (N5).
        UncommittedRead,
        /// A map of holes asks the store alone.
        MapForgetsUnapplied,
        /// The lease is counted from when a heartbeat's answer came, not from when it was sent (L1).
        LeaseFromReceipt,
    }
    6 {
        /// At start a batch is taken for whole if its header is.
        ScanTrustsPayload,
        /// The newest copy of the superblock counts, alone and unchecked.
        LoneSuperblock,
        /// What comes from a peer was checked there.
        PeerBatchTrusted,
        /// What is read back from the journal was checked when it was written.
        LoadTrusted,
        /// What is read from a store was checked when it was written.
        SumsUnchecked,
        /// The floor moves before the checksums of what was applied are on the disk.
        SumsAfterFloor,
        /// A block from a peer is taken in place of a bad one whatever it holds.
        RepairTrusted,
        /// Copies are compared as they are, whether or not the nodes have applied the same records.
        VerifyUnaligned,
        /// What a verification compares is what was recorded of the blocks; nobody reads them.
        VerifyTrustsTable,
    }
    7 {
        /// A record commits when every connected peer has it, also under `ack = "majority"`.
        CommitWaitsForAll,
        /// A read of what was just written waits until every connected peer has that.
        ReadsWaitForAll,
        /// Peers are fed in step: none gets more than a window beyond what the slowest has acknowledged.
        FeedsInStep,
    }
    8 {
        /// An apply gives all its writes to the disk at once.
        UnboundedApply,
        /// Requests are taken also when there is no memory for them.
        CapacityForgetsMemory,
        /// The memory of a read whose client is gone is never given back.
        LeakedRead,
        /// A peer is sent whatever there is, however little it has acknowledged.
        WindowIgnored,
        /// What a peer has not acknowledged counts from the beginning of the journal, once that has gone past it.
        WindowFromJournal,
    }
    9 {
        /// A frame's body is taken as it came.
        BodyUnchecked,
        /// A peer's records are about blocks that exist.
        RecordsUnchecked,
        /// A peer sends no record of an epoch after the one that it speaks in.
        LaterEpochTaken,
        /// A peer acknowledges what it was sent.
        AckUnchecked,
        /// A peer's epochs and records have numbers that one can count on from.
        NumbersUnchecked,
    }
    10 {
        /// A drain is answered when the reign is over and no apply runs, whatever is still to be applied.
        DrainBeforeApplied,
        /// What is written to the stores in a drain needs no flush: nothing comes after it.
        DrainWithoutFlush,
        /// Writes are held for an operator: what was admitted before gets to the stores by itself.
        HoldBeforeApplied,
        /// What is written large or not in whole blocks is admitted in spite of a hold: only small writes are held.
        HoldForgetsParked,
        /// A trim is a hint, so that no store needs to hear of it.
        TrimIsAHint,
    }
}

#[cfg(feature = "planted")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Switches a bug on for all replicas of this thread, in place of the one before.
#[cfg(feature = "planted")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

#[cfg(feature = "planted")]
pub(crate) fn is_planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}
