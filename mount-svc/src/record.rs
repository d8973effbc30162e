//! What mount-svc remembers of one mount, in its journal.

use common::ids::{BackupLabel, SessionId};
use common::messages::{MountReady, MountRelease, MountRequest};
use repository::ShownWal;
use serde::{Deserialize, Serialize};

/// One mount: what is wanted of it and how far that has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountRecord {
    /// The latest request (its epoch is the one that answers carry).
    pub request: MountRequest,
    /// What is wanted.
    pub wanted: Wanted,
    /// The backup that was chosen when the first request was worked off: a retry must not get a newer one.
    pub backup: Option<BackupLabel>,
    /// What was shown then of the archive of WAL, which grows and is expired: the mount must stay what it was.
    #[serde(default)]
    pub wal: Option<ShownWal>,
    /// Set once users may have written: from then on nothing but a release removes the write cache.
    pub ever_ready: bool,
}

/// What a mount shows, as it was found when its backup was opened first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinned {
    /// The backup.
    pub backup: BackupLabel,
    /// What is shown of the archive of WAL, if anything is.
    pub wal: Option<ShownWal>,
}

/// What is wanted of a mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wanted {
    /// To be made; recovery-svc waits for the answer.
    Made,
    /// Made and answered; to be kept serving.
    Kept(Box<MountReady>),
    /// Failed or lost, and answered; the write cache stays for a retry.
    Dormant,
    /// To be released; recovery-svc waits for the answer.
    Released {
        /// The epoch that the answer carries.
        epoch: u64,
    },
}

impl MountRecord {
    /// The record after a request: an existing mount of the session is made again or simply found, its cache kept.
    pub fn requested(existing: Option<&MountRecord>, request: MountRequest) -> Self {
        Self {
            backup: existing.and_then(|record| record.backup.clone()),
            wal: existing.and_then(|record| record.wal.clone()),
            ever_ready: existing.is_some_and(|record| record.ever_ready),
            wanted: Wanted::Made,
            request,
        }
    }

    /// The record after a release was asked for.
    pub fn released(
        existing: Option<&MountRecord>,
        release: &MountRelease,
        placeholder: MountRequest,
    ) -> Self {
        let mut record = existing
            .cloned()
            .unwrap_or_else(|| Self::requested(None, placeholder));
        record.wanted = Wanted::Released {
            epoch: release.epoch,
        };
        record
    }

    /// What the mount shows; none until its backup was opened.
    pub fn pinned(&self) -> Option<Pinned> {
        let backup = self.backup.clone()?;
        let wal = self.wal.clone();
        Some(Pinned { backup, wal })
    }

    /// The record with what the mount shows, once that is known.
    pub fn with_pinned(mut self, pinned: &Pinned) -> Self {
        self.backup = Some(pinned.backup.clone());
        self.wal.clone_from(&pinned.wal);
        self
    }

    /// The session.
    pub fn session_id(&self) -> SessionId {
        self.request.session_id
    }
}
