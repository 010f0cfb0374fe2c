//! What goes wrong, as a table: each kind of attack has its own stream of randomness, so that adding one shifts no other,
//! and each life has only some of them, so that they do not always drown each other out (Groce et al., "Swarm testing", 2012).
//!
//! Harm to what is durable (rot, lost and stray writes, lies, wipes, rollbacks) falls on a minority of the members only,
//! chosen per life: a cluster keeps what a majority holds, and nothing can keep more. See `Checks` for the exact rule.

use replicator::io::{AdminCommand, DiskError};
use replicator::meta::superblock::copy_offset;
use replicator::types::BLOCK_BYTES_U64;
use replicator::{AckPolicy, OnNoQuorum};

use crate::disk::{EIO, ENOSPC, Fate};
use crate::drive::{JOURNAL, KINDS, META, STORE, SUMS};
use crate::forge::forge_frame;
use crate::harness::*;
use crate::net::Spoil;
use crate::rng::Rng;
use crate::rot::{rot_store, rot_sums};
use crate::verifying::verify;
use crate::volumes::change_volumes;

/// One kind of attack.
pub(crate) struct Attack {
    pub(crate) name: &'static str,
    /// In how many lives of a hundred it is there.
    pub(crate) percent: u64,
    /// The mean time between two of them, in units of the life's own pace.
    pub(crate) mean: u64,
    /// Whether it is one; there may be nothing to attack.
    pub(crate) act: fn(&mut Cluster, &mut Rng) -> bool,
}

const fn attack(
    name: &'static str,
    percent: u64,
    mean: u64,
    act: fn(&mut Cluster, &mut Rng) -> bool,
) -> Attack {
    Attack {
        name,
        percent,
        mean,
        act,
    }
}

/// All of them.
pub(crate) const ATTACKS: &[Attack] = &[
    // Processes and machines.
    attack("kill", 60, 12, |c, rng| crash(c, rng, false)),
    attack("power cut", 60, 12, |c, rng| crash(c, rng, true)),
    attack("long absence", 35, 18, stay_away),
    attack(
        "absence while a backup is restored",
        70,
        10,
        away_for_a_backup,
    ),
    attack("absence while much is written", 100, 10, |c, rng| {
        c.big_percent >= 30 && stay_away(c, rng)
    }),
    attack("blackout", 30, 40, blackout),
    attack("freeze", 50, 10, freeze),
    attack("restart with another config", 25, 25, reconfigure),
    attack("revive", 100, 6, revive),
    // Networks.
    attack("isolate", 50, 12, isolate),
    attack("cut one way", 50, 14, cut),
    attack("split", 30, 20, split),
    attack("heal", 100, 7, heal),
    attack("reset", 50, 9, reset),
    attack("slow link", 40, 15, slow_link),
    attack("damaged frame", 30, 15, damage_frame),
    attack("forged frame", 20, 15, forge_frame),
    // Disks that say so.
    attack("slow disk", 50, 14, slow_disk),
    attack("hanging disk", 30, 20, hang_disk),
    attack("disks recover", 100, 16, disks_recover),
    attack("failing write", 30, 25, failing_write),
    attack("no room to stage", 60, 6, no_room),
    attack("one copy of the superblock rots", 30, 12, rot_superblock),
    // Disks that do not.
    attack("rot in the journal", 14, 20, rot_journal),
    attack("unreadable sectors in the journal", 10, 20, spoil_journal),
    attack("rot in a store", 30, 5, rot_store),
    attack("rot in the checksums", 15, 12, rot_sums),
    attack("lost write", 10, 25, lost_write),
    attack("stray write", 10, 25, stray_write),
    attack("lying journal", 8, 30, lie),
    attack("wiped disks", 8, 40, wipe),
    attack("rolled back disks", 6, 40, roll_back),
    attack("rotten superblock", 4, 60, rot_all_superblocks),
    // Operators.
    attack("promote", 100, 6, promote),
    attack("demote", 50, 18, |c, rng| {
        command(c, rng, AdminCommand::Demote)
    }),
    attack("promote everywhere", 25, 30, promote_everywhere),
    attack("force", 16, 15, force),
    attack("disconnect", 30, 25, disconnect),
    attack("drop", 25, 25, drop_node),
    attack("return", 40, 15, return_node),
    attack("replace", 40, 12, replace_node),
    attack("invalidate", 35, 12, invalidate),
    attack("confirm a stop", 20, 15, confirm_stopped),
    attack("fence", 40, 8, fence),
    attack("unfence", 100, 12, unfence),
    attack("failover", 20, 18, failover),
    attack("connect", 100, 14, connect),
    attack("change of volumes", 30, 8, change_volumes),
    attack("no room for larger volumes", 15, 12, |c, rng| {
        let node = node(c, rng);
        c.nodes[node].no_room = true;
        true
    }),
    attack("suspend-io", 30, 20, suspend),
    attack("resume-io", 100, 8, resume),
    attack("verify", 45, 8, verify),
    attack("drain", 20, 50, |c, rng| {
        command(c, rng, AdminCommand::Drain)
    }),
];

fn lease(c: &Cluster) -> u64 {
    u64::from(c.options.lease_ms) * MS
}

fn node(c: &Cluster, rng: &mut Rng) -> usize {
    rng.index(c.nodes.len())
}

/// A node that runs.
fn running(c: &Cluster, rng: &mut Rng) -> Option<usize> {
    let node = node(c, rng);
    c.up(node).then_some(node)
}

/// Two nodes.
fn pair(c: &Cluster, rng: &mut Rng) -> Option<(usize, usize)> {
    let count = c.nodes.len();
    if count < 2 {
        return None;
    }
    let a = rng.index(count);
    Some((a, (a + 1 + rng.index(count - 1)) % count))
}

/// A node whose durable data may be harmed, and that runs.
fn victim(c: &Cluster, rng: &mut Rng) -> Option<usize> {
    // A node that went on alone is one that the others have lost: that is as much as they can bear.
    if c.victims.is_empty() || c.nodes.iter().any(|n| n.forced) {
        return None;
    }
    let node = rng.pick(&c.victims);
    c.up(node).then_some(node)
}

fn restart_later(c: &mut Cluster, rng: &mut Rng, node: usize, within: u64) {
    let life = c.nodes[node].life;
    let wait = rng.below(within);
    c.after(wait, Event::Restart { node, life });
}

fn crash(c: &mut Cluster, rng: &mut Rng, power: bool) -> bool {
    // The Primary more often than its share.
    let primary = c.primary().filter(|_| rng.chance(30));
    let Some(node) = primary.or_else(|| running(c, rng)) else {
        return false;
    };
    c.crash(node, power);
    let within = 4 * lease(c);
    restart_later(c, rng, node, within);
    true
}

/// A node is away for long, so that the others' journals go on without it.
fn stay_away(c: &mut Cluster, rng: &mut Rng) -> bool {
    let Some(node) = running(c, rng) else {
        return false;
    };
    let power = rng.chance(50);
    c.crash(node, power);
    let time = rng.between(3, 30) * lease(c) / 4;
    c.nodes[node].away_until = c.now + time;
    let life = c.nodes[node].life;
    c.after(time, Event::Restart { node, life });
    true
}

/// A node is away while somebody writes more than a journal holds, at once.
fn away_for_a_backup(c: &mut Cluster, rng: &mut Rng) -> bool {
    let Some(primary) = c.primary() else {
        return false;
    };
    let up = (0..c.options.nodes).filter(|&n| c.up(n)).count();
    let node = rng.index(c.options.nodes);
    if node == primary || !c.up(node) || up <= c.options.nodes.div_ceil(2) {
        return false;
    }
    let power = rng.chance(50);
    c.crash(node, power);
    let time = rng.between(2, 12) * lease(c) / 4;
    c.nodes[node].away_until = c.now + time;
    c.nodes[node].stage_full = rng.chance(40);
    let life = c.nodes[node].life;
    c.after(time, Event::Restart { node, life });
    // More than the ring, in pieces that one batch holds; mostly over and over the same.
    let near = rng.chance(50);
    for _ in 0..rng.between(19, 24) {
        let blocks = rng.between(200, 256);
        let first = if near { 40 } else { rng.below(240) };
        c.write(primary, 0, first, blocks);
    }
    true
}

fn blackout(c: &mut Cluster, rng: &mut Rng) -> bool {
    for node in 0..c.nodes.len() {
        if c.up(node) {
            c.crash(node, true);
            let within = 2 * lease(c);
            restart_later(c, rng, node, within);
        }
    }
    true
}

fn freeze(c: &mut Cluster, rng: &mut Rng) -> bool {
    let Some(node) = running(c, rng) else {
        return false;
    };
    let time = rng.below(3 * lease(c));
    c.freeze(node, time);
    true
}

fn reconfigure(c: &mut Cluster, rng: &mut Rng) -> bool {
    let Some(node) = running(c, rng) else {
        return false;
    };
    let power = rng.chance(50);
    c.crash(node, power);
    let config = &mut c.nodes[node].config;
    match rng.below(4) {
        0 => config.lease_ms = u32::try_from(rng.between(200, 1000)).expect("small"),
        1 => config.ack = rng.pick(&[AckPolicy::Majority, AckPolicy::All]),
        2 => config.on_no_quorum = rng.pick(&[OnNoQuorum::SuspendIo, OnNoQuorum::IoError]),
        _ => config.requests_max = u32::try_from(rng.between(4, 48)).expect("small"),
    }
    let within = lease(c);
    restart_later(c, rng, node, within);
    true
}

/// Somebody looks after the nodes: what has failed or was stopped is started again.
fn revive(c: &mut Cluster, rng: &mut Rng) -> bool {
    let node = node(c, rng);
    if c.up(node) {
        let failed = c.nodes[node].view.failed;
        if failed || c.nodes[node].drained {
            c.crash(node, false);
        }
    }
    let n = &c.nodes[node];
    if !c.up(node) && !n.ruined && n.away_until <= c.now {
        c.restart(node);
    }
    false
}

fn isolate(c: &mut Cluster, rng: &mut Rng) -> bool {
    let primary = c.primary().filter(|_| rng.chance(30));
    let node = primary.unwrap_or_else(|| node(c, rng));
    c.isolate(node);
    true
}

fn cut(c: &mut Cluster, rng: &mut Rng) -> bool {
    let Some((a, b)) = pair(c, rng) else {
        return false;
    };
    c.cut(a, b);
    if rng.chance(40) {
        c.cut(b, a);
    }
    true
}

fn split(c: &mut Cluster, rng: &mut Rng) -> bool {
    let sides = rng.next();
    for a in 0..c.nodes.len() {
        for b in 0..c.nodes.len() {
            if sides >> a & 1 != sides >> b & 1 {
                c.cut(a, b);
            }
        }
    }
    true
}

fn heal(c: &mut Cluster, rng: &mut Rng) -> bool {
    if rng.chance(70) {
        c.heal();
    } else if let Some((a, b)) = pair(c, rng) {
        c.heal_link(a, b);
    }
    false
}

fn reset(c: &mut Cluster, rng: &mut Rng) -> bool {
    let Some((a, b)) = pair(c, rng) else {
        return false;
    };
    c.reset(a, b);
    true
}

fn slow_link(c: &mut Cluster, rng: &mut Rng) -> bool {
    let Some((a, b)) = pair(c, rng) else {
        return false;
    };
    let factor = rng.between(2, 200);
    c.net.slow.insert((a, b), factor);
    true
}

fn damage_frame(c: &mut Cluster, rng: &mut Rng) -> bool {
    let Some((a, b)) = pair(c, rng) else {
        return false;
    };
    let spoil = Spoil {
        batch: rng.chance(70),
        bit: rng.next(),
    };
    c.net.spoil.insert((a, b), spoil);
    true
}

fn slow_disk(c: &mut Cluster, rng: &mut Rng) -> bool {
    let node = node(c, rng);
    c.nodes[node].slow[rng.index(KINDS)] = rng.between(1, 60);
    true
}

fn hang_disk(c: &mut Cluster, rng: &mut Rng) -> bool {
    let node = node(c, rng);
    let time = rng.below(6 * lease(c));
    c.nodes[node].hung_until[rng.index(KINDS)] = c.now + time;
    true
}

fn disks_recover(c: &mut Cluster, _rng: &mut Rng) -> bool {
    for node in &mut c.nodes {
        node.slow = [1; KINDS];
    }
    c.net.slow.clear();
    false
}

fn failing_write(c: &mut Cluster, rng: &mut Rng) -> bool {
    let Some(node) = running(c, rng) else {
        return false;
    };
    let error = rng.pick(&[DiskError::Os(EIO), DiskError::Os(ENOSPC), DiskError::Short]);
    let kind = rng.pick(&[JOURNAL, STORE, META, SUMS]);
    c.nodes[node].next_fate[kind] = Some(Fate::Fails(error));
    true
}

/// The next write to the stage finds no room, if something is being staged.
fn no_room(c: &mut Cluster, rng: &mut Rng) -> bool {
    let node = rng.index(c.options.nodes);
    if !c.up(node) || !c.nodes[node].resyncs {
        return false;
    }
    c.nodes[node].stage_full = true;
    true
}

/// One copy of four, while the node is down: that must not be noticed at all.
fn rot_superblock(c: &mut Cluster, rng: &mut Rng) -> bool {
    let Some(node) = running(c, rng) else {
        return false;
    };
    // A copy that an interrupted update left behind is a fault too, and two are too many.
    if !c.superblock_is_settled(node) || c.nodes[node].hurt {
        return false;
    }
    let power = rng.chance(50);
    c.crash(node, power);
    let block = copy_offset(rng.index(4)) / BLOCK_BYTES_U64;
    let bit = rng.index(4096 * 8);
    c.nodes[node].disks.meta.rot(block, bit);
    c.restart(node);
    true
}

fn rot_journal(c: &mut Cluster, rng: &mut Rng) -> bool {
    let Some(node) = victim(c, rng) else {
        return false;
    };
    let Some(block) = c.some_journal_block(node, rng) else {
        return false;
    };
    let restart = rng.chance(50);
    if restart {
        let power = rng.chance(50);
        c.crash(node, power);
    }
    let n = &mut c.nodes[node];
    (n.hurt, n.may_fail) = (true, true);
    n.disks.journal.rot(block, rng.index(4096 * 8));
    if restart {
        c.restart(node);
    }
    true
}

fn spoil_journal(c: &mut Cluster, rng: &mut Rng) -> bool {
    let Some(node) = victim(c, rng) else {
        return false;
    };
    let Some(block) = c.some_journal_block(node, rng) else {
        return false;
    };
    let n = &mut c.nodes[node];
    (n.hurt, n.may_fail) = (true, true);
    n.disks.journal.spoil(block);
    true
}

fn lost_write(c: &mut Cluster, rng: &mut Rng) -> bool {
    let Some(node) = victim(c, rng) else {
        return false;
    };
    let kind = rng.pick(&[JOURNAL, META]);
    c.nodes[node].next_fate[kind] = Some(Fate::Lost);
    true
}

fn stray_write(c: &mut Cluster, rng: &mut Rng) -> bool {
    let Some(node) = victim(c, rng) else {
        return false;
    };
    let by = rng.between(1, 300);
    c.nodes[node].next_fate[JOURNAL] = Some(Fate::Stray(by));
    true
}

fn lie(c: &mut Cluster, rng: &mut Rng) -> bool {
    let Some(node) = victim(c, rng) else {
        return false;
    };
    c.nodes[node].hurt = true;
    c.nodes[node].disks.journal.lies = true;
    true
}

fn wipe(c: &mut Cluster, rng: &mut Rng) -> bool {
    let Some(node) = victim(c, rng) else {
        return false;
    };
    c.crash(node, true);
    if rng.chance(50) {
        c.wipe_for_a_seed(node, rng);
    } else {
        c.wipe(node);
    }
    let within = lease(c);
    restart_later(c, rng, node, within);
    true
}

fn roll_back(c: &mut Cluster, rng: &mut Rng) -> bool {
    let Some(node) = victim(c, rng) else {
        return false;
    };
    c.crash(node, false);
    match c.nodes[node].snapshot.take() {
        // First a snapshot, and the next time it is put back.
        None => c.nodes[node].snapshot = Some(c.snapshot(node)),
        Some(snapshot) => c.roll_back(node, snapshot),
    }
    let within = lease(c);
    restart_later(c, rng, node, within);
    true
}

fn rot_all_superblocks(c: &mut Cluster, rng: &mut Rng) -> bool {
    let Some(node) = victim(c, rng) else {
        return false;
    };
    c.crash(node, true);
    c.nodes[node].hurt = true;
    for copy in 0..4 {
        if rng.chance(80) {
            let block = copy_offset(copy) / BLOCK_BYTES_U64;
            c.nodes[node].disks.meta.rot(block, rng.index(4096 * 8));
        }
    }
    c.restart(node);
    true
}

fn command(c: &mut Cluster, rng: &mut Rng, command: AdminCommand) -> bool {
    let Some(node) = running(c, rng) else {
        return false;
    };
    c.nodes[node].drained |= command == AdminCommand::Drain;
    c.admin(node, command);
    true
}

fn suspend(c: &mut Cluster, rng: &mut Rng) -> bool {
    let time = rng.between(1, 20) * lease(c) / 10;
    let somebody = running(c, rng);
    let Some(node) = c.primary().filter(|_| rng.chance(90)).or(somebody) else {
        return false;
    };
    let deadline = c.deadline(node, time);
    c.admin(node, AdminCommand::SuspendIo { deadline });
    true
}

fn resume(c: &mut Cluster, _rng: &mut Rng) -> bool {
    if let Some(node) = c.primary() {
        c.admin(node, AdminCommand::ResumeIo);
    }
    false
}

fn promote(c: &mut Cluster, rng: &mut Rng) -> bool {
    // Most operators promote when nobody is Primary.
    if c.primary().is_some() && rng.chance(75) {
        return false;
    }
    let time = rng.between(1, 6) * lease(c);
    let Some(node) = running(c, rng) else {
        return false;
    };
    let deadline = c.deadline(node, time);
    c.admin(node, AdminCommand::Promote { deadline });
    true
}

fn promote_everywhere(c: &mut Cluster, rng: &mut Rng) -> bool {
    for node in 0..c.nodes.len() {
        if c.up(node) && rng.chance(80) {
            let time = rng.between(1, 6) * lease(c);
            let deadline = c.deadline(node, time);
            c.admin(node, AdminCommand::Promote { deadline });
        }
    }
    true
}

/// An operator believes that the others are gone, and mostly is wrong.
fn force(c: &mut Cluster, rng: &mut Rng) -> bool {
    let members = c.options.nodes;
    let node = rng.index(members);
    // A write that is about to get lost is harm to come.
    let doomed = |n: usize| c.nodes[n].next_fate.iter().flatten().any(Fate::harms);
    let lost = |n: &usize| *n == node || c.nodes[*n].hurt || c.nodes[*n].forced || doomed(*n);
    let bearable = (members - 1) / 2;
    // In small clusters nobody is left then, and that is a life too.
    let too_many = (0..members).filter(lost).count() > bearable.max(1);
    if !c.up(node) || c.nodes[node].hurt || doomed(node) || too_many {
        return false;
    }
    let time = rng.between(1, 6) * lease(c);
    c.force(node, time);
    true
}

fn disconnect(c: &mut Cluster, rng: &mut Rng) -> bool {
    let Some((node, peer)) = pair(c, rng).filter(|(n, _)| c.up(*n)) else {
        return false;
    };
    let peer = node_id(peer);
    c.admin(node, AdminCommand::Disconnect { peer });
    true
}

fn connect(c: &mut Cluster, rng: &mut Rng) -> bool {
    let Some((node, peer)) = pair(c, rng).filter(|(n, _)| c.up(*n)) else {
        return false;
    };
    let peer = node_id(peer);
    c.admin(node, AdminCommand::Connect { peer });
    false
}

/// The Primary, mostly, or else somebody, and a peer of it.
fn changing(c: &Cluster, rng: &mut Rng) -> Option<(usize, usize)> {
    let primary = c.primary().filter(|_| rng.chance(90));
    let node = primary.or_else(|| running(c, rng))?;
    let count = c.nodes.len();
    (count > 1).then(|| (node, (node + 1 + rng.index(count - 1)) % count))
}

fn drop_node(c: &mut Cluster, rng: &mut Rng) -> bool {
    let time = rng.between(1, 6) * lease(c);
    let Some((node, peer)) = changing(c, rng) else {
        return false;
    };
    let (deadline, peer) = (c.deadline(node, time), node_id(peer));
    c.admin(node, AdminCommand::Drop { peer, deadline });
    true
}

fn return_node(c: &mut Cluster, rng: &mut Rng) -> bool {
    let time = rng.between(1, 6) * lease(c);
    let Some((node, peer)) = changing(c, rng) else {
        return false;
    };
    let (deadline, peer) = (c.deadline(node, time), node_id(peer));
    c.admin(node, AdminCommand::Return { peer, deadline });
    false
}

/// Nodes with new disks are admitted, and some that do not need it.
fn replace_node(c: &mut Cluster, rng: &mut Rng) -> bool {
    let time = rng.between(1, 6) * lease(c);
    let Some((node, peer)) = changing(c, rng) else {
        return false;
    };
    let wiped = (0..c.nodes.len()).find(|&n| c.nodes[n].wiped && n != node);
    let peer = node_id(wiped.filter(|_| rng.chance(80)).unwrap_or(peer));
    // The world of a node that went on alone has no place for a second one.
    if c.is_exile(node) {
        return false;
    }
    let deadline = c.deadline(node, time);
    c.admin(node, AdminCommand::Replace { peer, deadline });
    true
}

/// An operator gives a node's data up.
fn invalidate(c: &mut Cluster, rng: &mut Rng) -> bool {
    let node = rng.index(c.options.nodes);
    let n = &c.nodes[node];
    if !c.up(node) || n.hurt || n.forced || c.is_exile(node) {
        return false;
    }
    let deadline = c.deadline(node, rng.between(1, 6) * lease(c));
    let insists = false;
    c.admin(node, AdminCommand::Invalidate { deadline, insists });
    true
}

/// An operator makes sure that a node is off, and tells another one; which may be to take over.
fn confirm_stopped(c: &mut Cluster, rng: &mut Rng) -> bool {
    let Some((node, peer)) = pair(c, rng).filter(|(n, _)| c.up(*n)) else {
        return false;
    };
    if c.up(peer) {
        c.crash(peer, false);
        let within = 8 * lease(c);
        restart_later(c, rng, peer, within);
        c.run_for(5 * MS);
    }
    if !c.up(node) || c.up(peer) {
        return true;
    }
    let peer = node_id(peer);
    c.admin(node, AdminCommand::ConfirmStopped { peer });
    if rng.chance(50) {
        let deadline = c.deadline(node, 3 * lease(c));
        c.admin(node, AdminCommand::Promote { deadline });
    }
    true
}

/// The Primary is fenced, mostly, or else somebody, by somebody else; often since something happened to it.
fn fence(c: &mut Cluster, rng: &mut Rng) -> bool {
    let time = rng.between(1, 6) * lease(c);
    let Some((node, peer)) = pair(c, rng).filter(|(n, _)| c.up(*n)) else {
        return false;
    };
    let primary = c.primary().filter(|&p| p != node && rng.chance(70));
    let peer = primary.unwrap_or(peer);
    match rng.below(6) {
        0 => c.isolate(peer),
        1 => c.cut_both(node, peer),
        2 => c.freeze(peer, time / 2),
        3 if c.up(peer) => {
            c.crash(peer, false);
            restart_later(c, rng, peer, time);
        }
        _ => {}
    }
    let (deadline, peer) = (c.deadline(node, time), node_id(peer));
    c.admin(node, AdminCommand::Fence { peer, deadline });
    true
}

/// Somebody who is fenced is let go, or whoever.
fn unfence(c: &mut Cluster, rng: &mut Rng) -> bool {
    let time = rng.between(1, 6) * lease(c);
    let Some(node) = running(c, rng) else {
        return false;
    };
    let view = &c.nodes[node].view;
    let known = view.peers.iter().find(|p| p.fenced).map(|p| p.node);
    let known = known.or_else(|| view.fenced.then(|| node_id(node)));
    let nobody = rng.chance(10).then(|| node_id(rng.index(c.nodes.len())));
    let Some(peer) = known.or(nobody) else {
        return false;
    };
    let deadline = c.deadline(node, time);
    c.admin(node, AdminCommand::Unfence { peer, deadline });
    false
}

fn failover(c: &mut Cluster, rng: &mut Rng) -> bool {
    let time = rng.between(1, 6) * lease(c);
    let Some(node) = running(c, rng) else {
        return false;
    };
    let deadline = c.deadline(node, time);
    c.admin(node, AdminCommand::Failover { deadline });
    true
}
