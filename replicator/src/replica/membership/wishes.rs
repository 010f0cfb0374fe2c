//! What operators want of the membership. A wish is a goal and not a list of steps: each turn compares it with the newest config and
//! makes the one change that comes next.

use super::{Asker, Goal, WISHES_MAX, Wish};
use crate::io::*;
use crate::memory::Memory;
use crate::meta::config::{ClusterConfig, Standing};
use crate::replica::Replica;
use crate::types::*;

/// How a node stands that counts for nothing.
fn out(standing: Standing) -> Standing {
    Standing {
        voter: false,
        member: false,
        joining: false,
        stopped: false,
        ..standing
    }
}

/// A node that gives its data up waits for this long at most.
const PEER_NS: u64 = 30_000_000_000;

impl<M: Memory> Replica<M> {
    /// An operator wants a node to count for nothing.
    pub(in crate::replica) fn wish_out(&mut self, id: AdminId, node: NodeId, deadline: Time) {
        self.wish_out_by(Asker::Operator(id), node, deadline);
    }

    /// A node wants to give its data up, and not to count before that.
    pub(in crate::replica) fn wish_out_for(&mut self, conn: ConnId, token: u64, node: NodeId) {
        let deadline = self.now.after(PEER_NS);
        // That it comes back was to save an operator the trouble; it is over with the life that was meant.
        let nobodys = |w: &Wish| w.node == node && matches!(w.who, Asker::Nobody);
        self.wishes.retain(|w| !nobodys(w));
        self.wish_out_by(Asker::Peer(conn, token), node, deadline);
    }

    fn wish_out_by(&mut self, who: Asker, node: NodeId, deadline: Time) {
        let refused = self.not_changing(node).or_else(|| {
            let entry = *self.entry_of(node)?;
            let next = self.log.config()?.config.with(out(entry))?;
            entry.counts().then(|| self.costs_the_quorum(&next))?
        });
        self.take_wish(who, node, deadline, refused.map_or(Ok(Goal::Out), Err));
    }

    /// An operator wants a node that was dropped to count again.
    pub(in crate::replica) fn wish_back(&mut self, id: AdminId, node: NodeId, deadline: Time) {
        let name = self.name_of(node);
        let there = self.peer(node).and_then(|p| p.incarnation());
        let goal = match (self.not_changing(node), self.entry_of(node)) {
            (Some(error), _) => Err(error),
            (None, None) => Err(AdminError::Failed(format!(
                "{name} was never part of the resource: `replctl replace` admits it"
            ))),
            (None, Some(entry)) if there.is_some_and(|i| i != entry.incarnation) => {
                Err(AdminError::Failed(format!(
                    "{name} has other disks than those that were part of the resource: `replctl replace` admits it"
                )))
            }
            (None, Some(entry)) => Ok(Goal::In(entry.incarnation)),
        };
        self.take_wish(Asker::Operator(id), node, deadline, goal);
    }

    /// An operator wants a node with new disks to count in place of what was there under its name.
    pub(in crate::replica) fn wish_new(&mut self, id: AdminId, node: NodeId, deadline: Time) {
        self.wish_new_by(Asker::Operator(id), node, deadline);
    }

    /// A node that gave its data up is back.
    pub(in crate::replica) fn wish_new_for_nobody(&mut self, node: NodeId) {
        let deadline = self.now.after(PEER_NS);
        self.wish_new_by(Asker::Nobody, node, deadline);
    }

    fn wish_new_by(&mut self, who: Asker, node: NodeId, deadline: Time) {
        let name = self.name_of(node);
        let report = self.peer(node).and_then(|p| p.report.as_ref());
        let there = report.map(|r| (r.incarnation, r.fresh));
        let entry = self.entry_of(node).copied();
        let goal = match (self.not_changing(node), there, entry) {
            (Some(error), ..) => Err(error),
            (None, None, _) if self.meet_again(node) => Err(AdminError::Failed(format!(
                "{name} had another history and was left alone; it is met again now: try again in a moment. If it says so again, run \
                 `replctl invalidate --force` there first"
            ))),
            (None, None, _) => Err(AdminError::Failed(format!(
                "{name} is not connected: create it anew, start repld there, and try again"
            ))),
            (None, Some((i, _)), Some(e)) if i == e.incarnation && !e.joining && !e.counts() => {
                Err(AdminError::Failed(format!(
                    "{name} has the disks that it was dropped with: `replctl return` takes it back"
                )))
            }
            (None, Some((i, _)), Some(e)) if i == e.incarnation => Ok(Goal::In(i)),
            (None, Some((_, false)), _) => Err(AdminError::Failed(format!(
                "{name} is not freshly created: wipe it and create it anew first"
            ))),
            (None, Some((i, true)), entry) => {
                let next = entry.filter(Standing::counts).and_then(|e| {
                    let config = &self.log.config()?.config;
                    config.with(out(e))
                });
                match next.and_then(|next| self.costs_the_quorum(&next)) {
                    Some(error) => Err(error),
                    None => Ok(Goal::In(i)),
                }
            }
        };
        self.take_wish(who, node, deadline, goal);
    }

    fn take_wish(
        &mut self,
        who: Asker,
        node: NodeId,
        deadline: Time,
        goal: Result<Goal, AdminError>,
    ) {
        let contrary = |goal: Goal| {
            let other = |w: &&Wish| w.node == node && w.goal != goal;
            self.wishes.iter().any(|w| other(&w)) || self.wishes.len() >= WISHES_MAX
        };
        let refused = match goal {
            Err(error) => error,
            Ok(goal) if contrary(goal) => {
                AdminError::Failed("another change is under way: wait for its end".into())
            }
            Ok(goal) => {
                self.wishes.push(Wish {
                    who,
                    deadline,
                    node,
                    goal,
                });
                return;
            }
        };
        self.answer_asker(who, Err(refused));
    }

    fn answer_asker(&mut self, who: Asker, result: AdminResult) {
        match who {
            Asker::Operator(id) => self.out.push_back(Output::AdminReply { id, result }),
            Asker::Peer(conn, token) => self.answer_renew(conn, token, &result),
            Asker::Nobody => {}
        }
    }

    fn name_of(&self, node: NodeId) -> String {
        let name = self.config.nodes.get(usize::from(node.0));
        name.map_or_else(|| node.to_string(), ToString::to_string)
    }

    /// The entry of a node in the newest config, whichever life of it that is.
    fn entry_of(&self, node: NodeId) -> Option<&Standing> {
        let name = self.config.nodes.get(usize::from(node.0))?;
        self.log.config()?.config.entry(name)
    }

    /// Whether a node counts, or is to, by the newest config.
    pub(in crate::replica) fn is_part(&self, node: NodeId) -> bool {
        self.entry_of(node).is_some_and(Standing::is_fed)
    }

    /// Why nothing can be changed about a node here.
    fn not_changing(&self, node: NodeId) -> Option<AdminError> {
        if let Some(error) = self.not_primary("the membership is changed") {
            return Some(error);
        }
        if node == self.config.me {
            let text = "this node is Primary: promote another one first, and change it from there";
            return Some(AdminError::Failed(text.into()));
        }
        if self.peer(node).is_none() {
            return Some(AdminError::Failed("this is no peer".into()));
        }
        None
    }

    /// Why something that is done on the Primary can not be done here.
    pub(in crate::replica) fn not_primary(&self, what: &str) -> Option<AdminError> {
        if self.serving() && !self.demoting() && self.drain.is_none() {
            return None;
        }
        let primary = self.following.filter(|_| !self.released);
        Some(match primary {
            Some(following) => AdminError::OtherPrimary(format!(
                "{} is Primary: {what} there",
                self.name_of(following.node)
            )),
            None => AdminError::Failed(format!("this node is not Primary: {what} on the Primary")),
        })
    }

    /// Why a node can not be done without: a config would not have what it takes to go on, or the present one does not.
    fn costs_the_quorum(&self, next: &ClusterConfig) -> Option<AdminError> {
        if next.members() == 0 || next.voters() == 0 {
            return Some(AdminError::NoQuorum("nobody would be left".into()));
        }
        let config = &self.log.config()?.config;
        let without = [config, next].into_iter().all(|c| self.can_vote(c));
        if without && self.can_go_on(next) {
            return None;
        }
        Some(AdminError::NoQuorum(format!(
            "without it there would be no majority: {} data nodes and {} voters would be left, and not enough of them are \
             connected and up to date",
            next.members(),
            next.voters()
        )))
    }

    /// The change that an operator's wish needs next, if one does.
    pub(super) fn change_as_wished(&mut self) -> bool {
        let Some(settled) = self.settled_config() else {
            return false;
        };
        let mut next = None;
        for (index, wish) in self.wishes.iter().enumerate() {
            let name = self.config.nodes[usize::from(wish.node.0)];
            let entry = settled.config.entry(&name);
            let standing = match (wish.goal, entry) {
                (Goal::Out, Some(e)) if e.is_fed() => out(*e),
                (Goal::In(i), Some(e)) if e.incarnation == i && e.is_fed() => continue,
                (Goal::In(incarnation), _) => Standing {
                    joining: true,
                    ..out(Standing::full(name, incarnation, false))
                },
                (Goal::Out, _) => continue,
            };
            let loses = entry.is_some_and(Standing::counts);
            let Some(config) = settled.config.with(standing) else {
                let text = "the resource has as many nodes as it can have".into();
                next = Some((index, Err(AdminError::Failed(text))));
                break;
            };
            let why = match wish.goal {
                Goal::Out => format!("{name} is dropped, until it is returned"),
                Goal::In(_) if loses => {
                    format!(
                        "{name} has new disks: what it was before counts no more, and it is to join"
                    )
                }
                Goal::In(_) => format!("{name} is to join as soon as it has everything"),
            };
            let refused = self.costs_the_quorum(&config).filter(|_| loses);
            next = Some((index, refused.map_or(Ok((config, why)), Err)));
            break;
        }
        match next {
            None => false,
            Some((_, Ok((config, why)))) => self.change_membership(config, &why),
            Some((index, Err(error))) => {
                let who = self.wishes.remove(index).who;
                self.answer_asker(who, Err(error));
                false
            }
        }
    }

    /// Whether a wish has come true, for good.
    fn is_true(&self, wish: &Wish) -> bool {
        let Some(settled) = self.settled_config() else {
            return false;
        };
        let name = self.config.nodes[usize::from(wish.node.0)];
        let entry = settled.config.entry(&name);
        match wish.goal {
            Goal::Out => !entry.is_some_and(Standing::is_fed),
            Goal::In(incarnation) => entry.is_some_and(|e| {
                let data = !self.config.is_witness(wish.node);
                e.incarnation == incarnation && e.voter && e.member == data
            }),
        }
    }

    /// Answers those whose wish has come true, or who have waited long enough.
    pub(super) fn answer_wishes(&mut self) {
        let mut at = 0;
        while let Some(wish) = self.wishes.get(at) {
            let result = if self.is_true(wish) {
                Ok(())
            } else if self.now >= wish.deadline {
                Err(self.why_not_yet(wish))
            } else {
                at += 1;
                continue;
            };
            let who = self.wishes.remove(at).who;
            self.answer_asker(who, result);
        }
    }

    fn why_not_yet(&self, wish: &Wish) -> AdminError {
        let name = self.name_of(wish.node);
        match wish.goal {
            _ if !self.lease_runs() => AdminError::NoQuorum(
                "a majority of the nodes can not be reached: the change is not committed, and may be once they are back".into(),
            ),
            Goal::Out => AdminError::Failed(format!(
                "{name} is not dropped yet: the change waits for a majority; status shows when it is"
            )),
            Goal::In(_) => AdminError::Failed(format!(
                "{name} does not count yet: it is admitted by itself as soon as it has everything; status shows how far it is"
            )),
        }
    }

    /// The reign is over, and with it what was asked of it.
    pub(in crate::replica) fn wishes_lost(&mut self) {
        for wish in std::mem::take(&mut self.wishes) {
            let text = "this node ceased to be Primary meanwhile: ask the next one how it ended";
            self.answer_asker(wish.who, Err(AdminError::Failed(text.into())));
        }
    }

    pub(in crate::replica) fn wishes_timeout(&self) -> Option<Time> {
        self.wishes.iter().map(|w| w.deadline).min()
    }

    /// Why a peer gets no log.
    pub(in crate::replica) fn why_not_fed(&self, node: NodeId) -> String {
        let name = self.name_of(node);
        let there = self.peer(node).and_then(|p| p.incarnation());
        match self.entry_of(node) {
            Some(entry) if there == Some(entry.incarnation) => {
                format!(
                    "{name} was dropped and counts for nothing: `replctl return {name}` takes it back"
                )
            }
            _ => format!(
                "{name} has no standing under its present incarnation (a new or wiped node): it counts for nothing; \
                 `replctl replace {name}` admits it"
            ),
        }
    }
}
