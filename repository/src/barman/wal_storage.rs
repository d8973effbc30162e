//! The archive of a server of Barman: `wals/`, and what `pg_receivewal` has written in `streaming/`.

use std::io;
use std::sync::Arc;

use super::server::Server;
use crate::wal_archive::{
    ArchiveNames, StoredWal, WalStorage, gone, is_segment, may_hold, name_of,
};
use crate::{Lsn, RepositoryError};

const PARTIAL: &str = ".partial";

/// The archive.
#[derive(Debug)]
pub(super) struct BarmanWal {
    server: Arc<Server>,
}

impl BarmanWal {
    pub(super) fn of(server: &Arc<Server>) -> Self {
        let server = Arc::clone(server);
        Self { server }
    }

    fn stored(&self, path: String, name: &str) -> Result<Option<StoredWal>, RepositoryError> {
        let (path, file) = match self.server.archived(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(|error| RepositoryError::unreadable(&path, "open", error))?,
        };
        let is_partial = path.ends_with(PARTIAL);
        let mut stored = StoredWal::plain(path, file)?;
        stored.is_partial = is_partial;
        stored.recognise(is_segment(name))?;
        Ok(Some(stored))
    }
}

impl WalStorage for BarmanWal {
    fn list(&self, from: Lsn) -> Result<Arc<ArchiveNames>, RepositoryError> {
        let mut found = ArchiveNames::default();
        for name in self.server.names("wals")? {
            if !may_hold(&name, from) {
                found.add(name_of(&name))?;
                continue;
            }
            for file in self.server.names(&format!("wals/{name}"))? {
                if file.starts_with(&name) {
                    found.add(name_of(&file))?;
                }
            }
        }
        for file in self.server.names("streaming")? {
            match file.strip_suffix(PARTIAL) {
                Some(name) => found.add_partial(name)?,
                None => found.add(&file)?,
            }
        }
        Ok(Arc::new(found))
    }

    /// What is streamed becomes archived at any time, under the same name.
    fn open(&self, name: &str) -> Result<StoredWal, RepositoryError> {
        let archived = match is_segment(name) {
            true => format!("wals/{}/{name}", name.get(..16).unwrap_or_default()),
            false => format!("wals/{name}"),
        };
        let streamed = format!("streaming/{name}");
        let partial = format!("{streamed}{PARTIAL}");
        // The first once more: it may have come there while the others were looked at.
        for path in [archived.clone(), streamed, partial, archived.clone()] {
            if let Some(stored) = self.stored(path, name)? {
                return Ok(stored);
            }
        }
        Err(gone(&archived))
    }
}
