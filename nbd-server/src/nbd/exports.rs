//! What a client can choose from, and whether this node serves it at present.

use thiserror::Error;

use super::protocol::STRING_BYTES_MAX;

/// Position of an export in the config, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExportIndex(pub usize);

/// One volume as NBD shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// The volume's name.
    pub name: String,
    /// The volume's size in bytes.
    pub size_bytes: u64,
}

/// All exports in the order of the config, and whether they may be opened now.
///
/// A session borrows it for one step at a time and keeps nothing of it but the size of the export
/// that was chosen, so the owner may change it between steps.
#[derive(Clone, Debug)]
pub struct ExportTable {
    exports: Vec<Export>,
    serving: Result<(), String>,
}

/// Why a table of exports can not be shown to NBD clients.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ExportTableError {
    /// The empty name stands for the only volume, so no volume can have it.
    #[error("an export needs a name")]
    Unnamed,
    /// The protocol does not allow this name.
    #[error("export names have at most {STRING_BYTES_MAX} bytes and no NUL: {0:?}")]
    BadName(String),
    /// Two exports have the same name.
    #[error("two exports have the name {0:?}")]
    Duplicate(String),
    /// Clients handle sizes as signed numbers.
    #[error("export {name:?} has {size_bytes} bytes, which is more than 2^63 - 1")]
    TooLarge {
        /// The export's name.
        name: String,
        /// Its size in bytes.
        size_bytes: u64,
    },
}

impl ExportTable {
    /// A table that refuses to open any export with `reason`, a sentence for the client's user,
    /// until [`set_serving`](Self::set_serving) says otherwise.
    pub fn new(exports: Vec<Export>, reason: impl Into<String>) -> Result<Self, ExportTableError> {
        for (index, export) in exports.iter().enumerate() {
            let name = &export.name;
            if name.is_empty() {
                return Err(ExportTableError::Unnamed);
            }
            if name.len() > STRING_BYTES_MAX || name.contains('\0') {
                return Err(ExportTableError::BadName(name.clone()));
            }
            if exports[..index].iter().any(|earlier| earlier.name == *name) {
                return Err(ExportTableError::Duplicate(name.clone()));
            }
            if i64::try_from(export.size_bytes).is_err() {
                let (name, size_bytes) = (name.clone(), export.size_bytes);
                return Err(ExportTableError::TooLarge { name, size_bytes });
            }
        }
        Ok(Self {
            exports,
            serving: Err(reason.into()),
        })
    }

    /// The volumes have changed: their names and sizes by their ids. A place without a name is no export.
    pub fn set_exports(&mut self, volumes: impl Iterator<Item = Export>) {
        self.exports.clear();
        self.exports.extend(volumes);
    }

    /// Opens the exports, or closes them with the sentence that INFO and GO answer; on a Secondary
    /// it names the Primary. Sessions that are in transmission already do not notice.
    pub fn set_serving(&mut self, serving: Result<(), String>) {
        self.serving = serving;
    }

    /// Whether exports may be opened, or why not.
    pub fn serving(&self) -> Result<(), &str> {
        self.serving.as_ref().copied().map_err(String::as_str)
    }

    /// All exports, in the order of the config.
    pub fn exports(&self) -> impl Iterator<Item = (ExportIndex, &Export)> {
        let all = (0..).map(ExportIndex).zip(&self.exports);
        all.filter(|(_, export)| !export.name.is_empty())
    }

    /// The export that a client means by `name`; the empty name is the only export, if there is
    /// only one.
    pub fn find(&self, name: &str) -> Option<(ExportIndex, &Export)> {
        let mut exports = self.exports();
        if name.is_empty() {
            let only = exports.next();
            return only.filter(|_| exports.next().is_none());
        }
        exports.find(|(_, export)| export.name == name)
    }
}

#[cfg(test)]
mod tests;
