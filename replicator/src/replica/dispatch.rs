//! What happens to a replica, handed to whoever is concerned: one place that knows all frames, operations and commands.

use super::Replica;
use super::fence::Aim;
use super::leader::DemoteFor;
use super::pending::Pending;
use crate::io::*;
use crate::memory::Memory;
use crate::types::*;
use crate::wire::frame::Frame;

impl<M: Memory> Replica<M> {
    pub(super) fn frame(&mut self, conn: ConnId, frame: Frame, batch: Option<M::Buffer>) {
        let now = self.now;
        let Some(peer) = self.peer_of(conn) else {
            return;
        };
        peer.heard_at = now;
        let node = peer.node;
        self.void_confirmation(node);
        let Some(peer) = self.peer_of(conn) else {
            return;
        };
        if peer.report.is_none() && !matches!(frame, Frame::Report(_)) {
            let reason = DropReason::Protocol("its first frame was no report");
            self.give_up(conn, reason, false);
            return;
        }
        match (frame, batch) {
            (Frame::Report(report), None) => self.got_report(conn, report),
            (Frame::Ask { token }, None) => {
                let report = self.report_to(node, token, Epoch(0));
                self.send(conn, Frame::Report(Box::new(report)));
            }
            (
                Frame::Promise {
                    token,
                    epoch,
                    incarnation,
                },
                None,
            ) => {
                self.got_promise(conn, token, epoch, incarnation);
            }
            (Frame::Fetch { token, after }, None) => self.got_fetch(conn, token, after),
            (Frame::Fetched { token }, batch) => self.got_fetched(conn, token, batch),
            (Frame::Append { epoch, committed }, Some(batch)) => {
                self.got_append(conn, epoch, committed, batch);
            }
            (Frame::Ack { epoch, seq }, None) => self.got_ack(conn, epoch, seq),
            (
                Frame::Heartbeat {
                    epoch,
                    number,
                    committed,
                    tail,
                    lease_ms,
                    settled,
                },
                None,
            ) => {
                self.got_heartbeat(conn, epoch, number, committed, tail, lease_ms);
                self.note_settled(conn, epoch, settled);
            }
            (
                Frame::HeartbeatAck {
                    epoch,
                    number,
                    applied,
                    disks_hang,
                },
                None,
            ) => {
                if let Some(peer) = self.peer_of(conn) {
                    peer.disks_hang = disks_hang;
                }
                self.got_heartbeat_ack(conn, epoch, number, applied);
            }
            (
                Frame::Refused {
                    promised,
                    promised_to: _,
                },
                None,
            ) => self.got_refused(conn, promised),
            (Frame::Demoted { epoch, committed }, None) => self.got_demoted(conn, epoch, committed),
            (Frame::TooFarBehind { journal_floor: _ }, None) => self.got_too_far(conn),
            (Frame::Ping, None) => {}
            (Frame::Config(told), None) => self.got_config(conn, *told),
            (
                Frame::BlocksAsk {
                    token,
                    volume,
                    block,
                    blocks,
                },
                None,
            ) => self.got_blocks_ask(conn, token, volume, block, blocks),
            (Frame::Blocks(blocks), data) => {
                self.got_repair(conn, &blocks, data.as_ref());
            }
            (Frame::Compare(compare), None) => self.got_compare(conn, &compare),
            (Frame::Compared(compared), data) => self.got_compared(conn, compared, data),
            (Frame::Changed(changed), None) => self.got_changed(conn, changed),
            (
                Frame::ResyncAsk {
                    token,
                    staged,
                    committed,
                },
                None,
            ) => self.got_resync_ask(conn, token, staged, committed),
            (Frame::ResyncFrom(from), None) => self.got_resync_from(conn, *from),
            (
                Frame::Staged {
                    epoch,
                    seq,
                    left_bytes,
                    total_bytes,
                },
                None,
            ) => self.got_staged(conn, epoch, seq, (left_bytes, total_bytes)),
            (
                Frame::ChangedAsk {
                    token,
                    volume,
                    group,
                },
                None,
            ) => self.got_changed_ask(conn, token, volume, group),
            (Frame::Renew { token, incarnation }, None) => {
                self.got_renew(conn, token, incarnation);
            }
            (Frame::Renewed { token, refused }, None) => self.got_renewed(conn, token, refused),
            (Frame::Prepare { token, volumes }, None) => self.got_prepare(conn, token, *volumes),
            (Frame::Prepared { token, result }, None) => self.got_prepared(conn, token, result),
            (Frame::Invite(told), None) => self.got_invite(conn, *told),
            (Frame::Fence(fence), None) => self.got_fence(conn, &fence),
            (Frame::Stand { for_ms }, None) => self.got_stand(for_ms),
            (Frame::Verify(verify), None) => self.got_verify(conn, verify),
            _ => {
                let reason = DropReason::Protocol("a frame with a batch that it can not have");
                self.give_up(conn, reason, false);
            }
        }
    }

    pub(super) fn disk_done(&mut self, ticket: Ticket, result: Result<(), DiskError>) {
        match self.pending.take(ticket) {
            Pending::Journal { group } => self.journal_written(group, result),
            Pending::Metadata => self.metadata_written(result),
            Pending::Load { slot } => self.load_done(slot, result),
            Pending::Apply => self.apply_done(result),
            Pending::Page { index } => self.page_written(index, result),
            Pending::Read {
                index,
                generation,
                first,
                blocks,
            } => self.read_done(index, generation, (first, blocks), result),
            Pending::Serve {
                serial,
                first,
                blocks,
            } => self.served(serial, (first, blocks), result),
            Pending::Check {
                serial,
                first,
                blocks,
            } => self.check_was_read(serial, (first, blocks), result),
            Pending::Resync { serial } => self.resync_done(serial, result),
            Pending::Room => self.room_done(result),
            Pending::Fit => self.fit_done(result),
            Pending::Doubts => self.doubts_flushed(result),
            Pending::MergeRead => self.merge_read(result),
            Pending::MergeWrite => self.merge_written(result),
            Pending::Repair { volume, block } => self.repair_written(volume, block, result),
            Pending::Edge {
                index,
                generation,
                which,
            } => {
                self.edge_read(index, generation, which, result);
            }
        }
    }

    pub(super) fn admin(&mut self, id: AdminId, command: AdminCommand) {
        if let Some(reason) = self.failed
            && command != AdminCommand::Drain
        {
            let text = format!("this node has stepped aside: {reason}; mend that and restart it");
            self.out.push_back(Output::AdminReply {
                id,
                result: Err(AdminError::Failed(text)),
            });
            return;
        }
        match command {
            AdminCommand::Promote { .. } | AdminCommand::Force { .. } if self.renewal.is_some() => {
                let text = "this node's data is being given up";
                let result = Err(AdminError::Failed(text.into()));
                self.out.push_back(Output::AdminReply { id, result });
            }
            AdminCommand::Promote { .. } | AdminCommand::Force { .. } if self.is_witness() => {
                self.refuse_promotion(id);
            }
            AdminCommand::Promote { deadline } => self.promote(id, deadline),
            AdminCommand::Force { deadline } => self.force(id, deadline),
            AdminCommand::Demote => {
                self.end_candidacy(Err(AdminError::Failed("demoted meanwhile".into())));
                self.demote(DemoteFor::Operator(id));
            }
            AdminCommand::Connect { peer } => {
                let result = self.connect(peer);
                self.out.push_back(Output::AdminReply { id, result });
            }
            AdminCommand::Disconnect { peer } => {
                let result = self.disconnect(peer);
                self.out.push_back(Output::AdminReply { id, result });
            }
            AdminCommand::Drop { peer, deadline } => self.wish_out(id, peer, deadline),
            AdminCommand::Return { peer, deadline } => self.wish_back(id, peer, deadline),
            AdminCommand::Replace { peer, deadline } => self.wish_new(id, peer, deadline),
            AdminCommand::Invalidate { deadline, insists } => {
                self.invalidate(id, deadline, insists);
            }
            AdminCommand::Resize {
                volume,
                bytes,
                deadline,
            } => {
                let text = format!("{volume} gets {bytes} bytes");
                self.change_volumes(id, deadline, text, |v| v.resized(&volume, bytes));
            }
            AdminCommand::AddVolume {
                volume,
                bytes,
                deadline,
            } => {
                let text = format!("{volume} comes, with {bytes} bytes");
                self.change_volumes(id, deadline, text, |v| v.with(volume, bytes));
            }
            AdminCommand::RemoveVolume { volume, deadline } => {
                let text = format!("{volume} goes");
                self.change_volumes(id, deadline, text, |v| v.without(&volume));
            }
            AdminCommand::ConfirmStopped { peer } => {
                let result = self.confirm_stopped(peer);
                self.out.push_back(Output::AdminReply { id, result });
            }
            AdminCommand::Fence { peer, deadline } => {
                self.begin_fencing(id, Aim::Fence, Some(peer), deadline);
            }
            AdminCommand::Unfence { peer, deadline } => {
                self.begin_fencing(id, Aim::Unfence, Some(peer), deadline);
            }
            AdminCommand::Failover { deadline } => self.failover(id, deadline),
            AdminCommand::SuspendIo { deadline } => self.suspend_io(id, deadline),
            AdminCommand::Verify {
                repair,
                bytes_per_second,
            } => {
                let result = self.verify(repair, bytes_per_second);
                self.out.push_back(Output::AdminReply { id, result });
            }
            AdminCommand::StopVerify => {
                let result = self.stop_verify();
                self.out.push_back(Output::AdminReply { id, result });
            }
            AdminCommand::ResumeIo => {
                let result = self.resume_io();
                self.out.push_back(Output::AdminReply { id, result });
            }
            AdminCommand::Drain => {
                self.end_candidacy(Err(AdminError::Failed("this node is stopping".into())));
                self.end_fencings(&AdminError::Failed("this node is stopping".into()));
                self.demote(DemoteFor::Drain);
                self.drain = Some(id);
                self.applier.urgent = !planted!(DrainBeforeApplied);
            }
        }
    }
}
