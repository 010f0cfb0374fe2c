//! What operators, and the programs that act for them, ask for at the wrong moment.

use super::*;
use crate::disk::Fate;

pub(super) fn command(c: &mut Cluster, rng: &mut Rng, command: AdminCommand) -> bool {
    let Some(node) = running(c, rng) else {
        return false;
    };
    c.nodes[node].drained |= command == AdminCommand::Drain;
    c.admin(node, command);
    true
}

pub(super) fn suspend(c: &mut Cluster, rng: &mut Rng) -> bool {
    let time = rng.between(1, 20) * lease(c) / 10;
    let somebody = running(c, rng);
    let Some(node) = c.primary().filter(|_| rng.chance(90)).or(somebody) else {
        return false;
    };
    let deadline = c.deadline(node, time);
    c.admin(node, AdminCommand::SuspendIo { deadline });
    true
}

pub(super) fn resume(c: &mut Cluster, _rng: &mut Rng) -> bool {
    if let Some(node) = c.primary() {
        c.admin(node, AdminCommand::ResumeIo);
    }
    false
}

pub(super) fn promote(c: &mut Cluster, rng: &mut Rng) -> bool {
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

pub(super) fn promote_everywhere(c: &mut Cluster, rng: &mut Rng) -> bool {
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
pub(super) fn force(c: &mut Cluster, rng: &mut Rng) -> bool {
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

pub(super) fn disconnect(c: &mut Cluster, rng: &mut Rng) -> bool {
    let Some((node, peer)) = pair(c, rng).filter(|(n, _)| c.up(*n)) else {
        return false;
    };
    let peer = node_id(peer);
    c.admin(node, AdminCommand::Disconnect { peer });
    true
}

pub(super) fn connect(c: &mut Cluster, rng: &mut Rng) -> bool {
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

pub(super) fn drop_node(c: &mut Cluster, rng: &mut Rng) -> bool {
    let time = rng.between(1, 6) * lease(c);
    let Some((node, peer)) = changing(c, rng) else {
        return false;
    };
    let (deadline, peer) = (c.deadline(node, time), node_id(peer));
    c.admin(node, AdminCommand::Drop { peer, deadline });
    true
}

pub(super) fn return_node(c: &mut Cluster, rng: &mut Rng) -> bool {
    let time = rng.between(1, 6) * lease(c);
    let Some((node, peer)) = changing(c, rng) else {
        return false;
    };
    let (deadline, peer) = (c.deadline(node, time), node_id(peer));
    c.admin(node, AdminCommand::Return { peer, deadline });
    false
}

/// Nodes with new disks are admitted, and some that do not need it.
pub(super) fn replace_node(c: &mut Cluster, rng: &mut Rng) -> bool {
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
pub(super) fn invalidate(c: &mut Cluster, rng: &mut Rng) -> bool {
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
pub(super) fn confirm_stopped(c: &mut Cluster, rng: &mut Rng) -> bool {
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
pub(super) fn fence(c: &mut Cluster, rng: &mut Rng) -> bool {
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
pub(super) fn unfence(c: &mut Cluster, rng: &mut Rng) -> bool {
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

pub(super) fn failover(c: &mut Cluster, rng: &mut Rng) -> bool {
    let time = rng.between(1, 6) * lease(c);
    let Some(node) = running(c, rng) else {
        return false;
    };
    let deadline = c.deadline(node, time);
    c.admin(node, AdminCommand::Failover { deadline });
    true
}
