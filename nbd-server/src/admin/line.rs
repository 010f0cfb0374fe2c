//! Cuts a stream of bytes into lines, with a bound.

use super::LINE_BYTES_MAX;

/// Why there will be no further line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LineError {
    /// No newline within the bound.
    #[error("a line is longer than {LINE_BYTES_MAX} bytes; send one JSON object per line")]
    TooLong,
}

/// Bytes that were received and are not yet taken as lines.
#[derive(Debug, Default)]
pub struct LineBuffer {
    bytes: Vec<u8>,
    searched: usize,
}

impl LineBuffer {
    /// Adds what was received.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole line, without its newline.
    ///
    /// # Errors
    /// [`LineError::TooLong`] if there is none within the bound.
    pub fn next_line(&mut self) -> Result<Option<Vec<u8>>, LineError> {
        let newline = self.bytes[self.searched..]
            .iter()
            .position(|&byte| byte == b'\n');
        let Some(at) = newline.map(|at| self.searched + at) else {
            self.searched = self.bytes.len();
            return if self.bytes.len() < LINE_BYTES_MAX {
                Ok(None)
            } else {
                Err(LineError::TooLong)
            };
        };
        if at >= LINE_BYTES_MAX {
            return Err(LineError::TooLong);
        }
        let rest = self.bytes.split_off(at + 1);
        let mut line = std::mem::replace(&mut self.bytes, rest);
        line.pop();
        self.searched = 0;
        Ok(Some(line))
    }
}
