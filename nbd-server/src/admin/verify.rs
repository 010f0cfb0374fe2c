//! Verifications in a status: the one that is under way, and what the last one came to.

use serde::{Deserialize, Serialize};

/// Verifications.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct VerifyStatus {
    /// The one that is under way.
    pub running: Option<VerifyRun>,
    /// What the last one came to.
    pub last: Option<VerifyResult>,
    /// When all copies were last found sound and equal, or made so.
    pub last_clean: Option<String>,
    /// When the next one begins by itself, on the Primary; null if none does.
    pub next: Option<String>,
}

/// A verification that is under way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VerifyRun {
    /// The node that runs it. Only that one knows how far it is.
    pub by: String,
    /// What it has come to so far.
    pub counts: Option<VerifyCounts>,
    /// Bytes of the volumes that are left.
    pub left_bytes: Option<u64>,
    /// How much of them is done.
    pub percent: Option<f64>,
}

/// What a verification came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VerifyCounts {
    /// What was found was to be mended.
    pub repair: bool,
    /// Bytes of the volumes that were compared.
    pub bytes: u64,
    /// Bytes that went over the wire for it.
    pub wire_bytes: u64,
    /// Blocks of stores that were not what was recorded of them.
    pub bad_blocks: u64,
    /// Blocks of which nodes had recorded different things, or nothing.
    pub differing_blocks: u64,
    /// Blocks of either kind that are as before.
    pub left_blocks: u64,
}

/// What the last verification came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VerifyResult {
    /// When it ended.
    pub ended: String,
    /// The node that ran it.
    pub by: String,
    /// It was not stopped, and its node did not fail.
    pub finished: bool,
    /// All copies are sound and equal.
    pub clean: bool,
    /// Nodes that were not compared in whole.
    pub missed: Vec<String>,
    /// What it found.
    pub counts: VerifyCounts,
    /// The first things that it found, on the node that ran it.
    #[serde(default)]
    pub findings: Vec<VerifyFinding>,
}

/// Something that a verification found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyFinding {
    /// Whose copy it is.
    pub node: String,
    /// The volume.
    pub volume: String,
    /// The block of 4 KiB, counted from 0.
    pub block: u64,
    /// `bad`: the store does not give back what was written; `differs`: something else was recorded than on the nodes that are
    /// right; `unknown`: nothing was recorded.
    pub kind: String,
}
