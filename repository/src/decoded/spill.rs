//! Pieces that must stay for as long as a backup is open, in a file without a name, within the bounds of the place for
//! decoded bytes. They are compressed there, quickly: pages of PostgreSQL become a quarter or less.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use super::{DecodedStore, Space};
use crate::RepositoryError;

/// The fastest of the ordinary levels.
const LEVEL: i32 = 1;
/// How long to wait for files that are being read to make room.
const ROOM_WAIT: Duration = Duration::from_secs(2);

/// A growing file of pieces.
#[derive(Debug)]
pub(crate) struct Spill {
    /// What the pieces are of, for errors.
    name: String,
    store: Arc<DecodedStore>,
    /// Made when the first piece is kept.
    file: Option<File>,
    space: Space,
    end: u64,
}

/// Where a piece is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SpillPlace {
    offset: u64,
    stored_bytes: u32,
}

impl Spill {
    /// An empty one for pieces of what is called `name`.
    pub(crate) fn new(store: &Arc<DecodedStore>, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            file: None,
            space: Space::new(&store.space),
            store: Arc::clone(store),
            end: 0,
        }
    }

    /// Keeps a piece; refuses it where the place has no room left.
    pub(crate) fn put(&mut self, piece: &[u8]) -> Result<SpillPlace, RepositoryError> {
        let stored = zstd::bulk::compress(piece, LEVEL);
        let stored = stored.map_err(|error| self.store.unusable("compress", error))?;
        let count = stored.len() as u64;
        if !self.store.make_room(&mut self.space, count, ROOM_WAIT) {
            return Err(self.no_room());
        }
        let file = match self.file.take() {
            Some(file) => file,
            None => tempfile::tempfile_in(&self.store.limits.directory)
                .map_err(|error| self.store.unusable("make", error))?,
        };
        let written = self.file.insert(file).write_all_at(&stored, self.end);
        written.map_err(|error| self.store.unusable("write", error))?;
        let place = SpillPlace {
            offset: self.end,
            stored_bytes: u32::try_from(count).unwrap_or(u32::MAX),
        };
        self.end += count;
        Ok(place)
    }

    /// A piece again, which had this size.
    pub(crate) fn get(
        &self,
        place: SpillPlace,
        size_bytes: usize,
    ) -> Result<Vec<u8>, RepositoryError> {
        let mut stored = vec![0; place.stored_bytes as usize];
        let file = self.file.as_ref().ok_or(std::io::ErrorKind::NotFound);
        file.map_err(std::io::Error::from)
            .and_then(|file| file.read_exact_at(&mut stored, place.offset))
            .and_then(|()| zstd::bulk::decompress(&stored, size_bytes))
            .map_err(|error| self.store.unusable("read", error))
    }

    /// How many bytes are kept.
    pub(crate) fn kept_bytes(&self) -> u64 {
        self.end
    }

    fn no_room(&self) -> RepositoryError {
        let max = self.store.limits.disk_bytes_max;
        let (kept, directory) = (self.end, self.store.limits.directory.display());
        RepositoryError::unsupported(
            &self.name,
            format!(
                "needs more room for decoded bytes than there is: {kept} bytes are kept of it, and {directory} may hold {max} of all backups"
            ),
            "raise decoded_bytes_max, or compress backups with gzip or lz4, of which far less has to be kept",
        )
    }
}
