//! Maps of holes for a client. While one is being made the connection takes no other request.

use replicator::io::ClientOp;

use super::{Client, Intake};
use crate::nbd::Extents;
use crate::reactor::engine::{Core, Engine, Progress};
use crate::reactor::holes::{Cover, Question};

/// A BLOCK_STATUS, from the question to the store to the answer.
#[derive(Debug)]
pub(super) struct Status {
    pub(super) job: u32,
    pub(super) offset: u64,
    pub(super) len: u32,
    pub(super) one: bool,
    /// What the store said, once it has.
    pub(super) extents: Option<Box<Extents>>,
}

impl Client {
    pub(super) fn hand_in_status<C: Core>(
        &mut self,
        engine: &mut Engine<C>,
        key: u32,
    ) -> Result<(), Progress> {
        let volume = self.volume;
        let Intake::Status(status) = &mut self.intake else {
            return Ok(());
        };
        let job = status.job;
        if self.mapping {
            return Err(Progress::Waits);
        }
        if status.extents.is_none() {
            let (offset, len, one) = (status.offset, status.len, status.one);
            let mut cover = Cover::new();
            engine.core.unapplied(volume, (offset, len), &mut cover);
            engine.mapper.ask(Question {
                client: key,
                volume,
                offset,
                len,
                one,
                cover,
            });
            self.mapping = true;
            return Err(Progress::Waits);
        }
        // A map is a read of a kind: it is told while the lease runs, which the answer to a flush shows.
        self.hand_in(engine, key, job, (0, 0, 0), ClientOp::Flush)?;
        let extents = match &mut self.intake {
            Intake::Status(status) => status.extents.take(),
            _ => None,
        };
        if let Some(job) = self.jobs.get_mut(job) {
            job.extents = extents;
        }
        self.complete(job);
        Ok(())
    }

    /// The store has been asked.
    pub fn mapped(&mut self, extents: Box<Extents>) {
        self.mapping = false;
        if let Intake::Status(status) = &mut self.intake {
            status.extents = Some(extents);
        }
    }
}
