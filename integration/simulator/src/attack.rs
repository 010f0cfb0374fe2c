//! What goes wrong, as a table: each kind of attack has its own stream of randomness, so that adding one shifts no other,
//! and each life has only some of them, so that they do not always drown each other out (Groce et al., "Swarm testing", 2012).
//!
//! Harm to what is durable (rot, lost and stray writes, lies, wipes, rollbacks) falls on a minority of the members only,
//! chosen per life: a cluster keeps what a majority holds, and nothing can keep more. See `Checks` for the exact rule.

mod disks;
mod operators;

use replicator::io::AdminCommand;
use replicator::{AckPolicy, OnNoQuorum};

use self::disks::*;
use self::operators::*;
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
