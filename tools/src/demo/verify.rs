//! Reads whole volumes and compares them with the model.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use nbd_server::nbd::NbdError;
use nbd_server::nbd::client::{ClientError, ClientRequest};

use super::connection;
use super::workload::{Tally, Volume};

/// Reads every byte of the volumes through the exports behind `socket` and compares. To be called with no
/// write in flight. What was wrong is in the tally; returns the number of wrong ranges.
pub fn verify(socket: &Path, volumes: &[Arc<Volume>], tally: &Tally) -> Result<usize, VerifyError> {
    const CHUNK: u64 = 1 << 20;
    const DEPTH: usize = 4;
    let mut wrong = 0;
    for volume in volumes {
        let size = volume.oracle().size();
        let (mut connection, _) = connection::open(socket, &volume.name)?;
        let mut pending = BTreeMap::new();
        let mut at = 0;
        while at < size || !pending.is_empty() {
            if at < size && pending.len() < DEPTH {
                let length = CHUNK.min(size - at);
                pending.insert(
                    connection.submit(&ClientRequest::Read {
                        offset: at,
                        len: length as u32,
                    })?,
                    at,
                );
                at += length;
                continue;
            }
            let answer = connection.wait()?;
            let Some(offset) = pending.remove(&answer.cookie) else {
                return Err(ClientError::Protocol("an answer to nothing").into());
            };
            let data = answer.result.map_err(|error| VerifyError::Read {
                volume: volume.name.clone(),
                offset,
                error,
            })?;
            let losses = volume.oracle().settle(offset, &data);
            wrong += losses.len();
            tally.note_checked(&volume.name, data.len() as u64, losses);
        }
        connection.disconnect()?;
    }
    Ok(wrong)
}

/// Why a verification could not be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The connection failed.
    #[error(transparent)]
    Connection(#[from] ClientError),
    /// A read failed.
    #[error("reading {volume} at {offset}: {error}")]
    Read {
        /// The volume.
        volume: String,
        /// Where.
        offset: u64,
        /// NBD's error.
        error: NbdError,
    },
}
