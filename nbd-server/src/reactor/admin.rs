//! Operators' commands on their way through the core.

use replicator::io::{AdminError, AdminResult};
use replicator::types::AdminId;
use tokio::sync::oneshot;

use crate::handle::DataError;

/// Where the answer to a command goes.
pub type AnswerSender = oneshot::Sender<Result<(), DataError>>;

/// Commands that have no answer yet, and answers that have not been given.
#[derive(Debug, Default)]
pub struct Commands {
    next: u64,
    open: Vec<(AdminId, AnswerSender)>,
    /// Answers are given when the snapshot shows what they say.
    answers: Vec<(AnswerSender, Result<(), DataError>)>,
}

impl Commands {
    /// A name for a command.
    pub fn open(&mut self, answer: AnswerSender) -> AdminId {
        self.next += 1;
        let id = AdminId(self.next);
        self.open.push((id, answer));
        id
    }

    /// The core has answered.
    pub fn answered(&mut self, id: AdminId, result: AdminResult) {
        let Some(at) = self.open.iter().position(|(open, _)| *open == id) else {
            return;
        };
        let (_, answer) = self.open.swap_remove(at);
        self.answers.push((answer, result.map_err(data_error)));
    }

    /// An answer that the core has no part in.
    pub fn answer(&mut self, answer: AnswerSender, result: Result<(), DataError>) {
        self.answers.push((answer, result));
    }

    /// Gives all answers.
    pub fn deliver(&mut self) {
        for (answer, result) in self.answers.drain(..) {
            // Whoever asked may have gone.
            let _ = answer.send(result);
        }
    }

    /// Answers everything that is open: the data thread ends.
    pub fn end(&mut self, result: &Result<(), DataError>) {
        self.deliver();
        for (_, answer) in self.open.drain(..) {
            let _ = answer.send(result.clone());
        }
    }
}

/// A refusal.
pub fn refusal(code: u8, message: &str) -> DataError {
    DataError {
        code,
        message: message.to_owned(),
    }
}

fn data_error(error: AdminError) -> DataError {
    let code = match &error {
        AdminError::Failed(_) => 1,
        AdminError::NoQuorum(_) => 10,
        AdminError::OtherPrimary(_) => 11,
        AdminError::NoData(_) => 17,
    };
    DataError {
        code,
        message: error.to_string(),
    }
}
