//! Opening the backup of a mount, and telling how far that is where it takes long.

use std::sync::Arc;
use std::time::Duration;

use common::messages::{Internal, MountProgress};
use common::problem::{ErrorCode, Problem};
use repository::OpenProgress;

use crate::backup_source::{BackupSource, Wanted};
use crate::maker::place;
use crate::record::MountRecord;
use crate::store::Store;

/// How often recovery-svc is told how far it is.
const TOLD_EVERY: Duration = Duration::from_secs(2);

/// Opens the record's backup unless it is open already.
pub async fn open_backup(
    store: &Store,
    record: &MountRecord,
    source: &mut Option<Arc<BackupSource>>,
) -> Result<Arc<BackupSource>, Problem> {
    if let Some(open) = source {
        return Ok(open.clone());
    }
    let request = &record.request;
    let repository = store.config.repository(&request.repository)?.clone();
    let (label, pinned) = (request.backup.clone(), record.pinned());
    let name = request.repository.clone();
    let mount_point =
        place(store.config.target(&request.target)?, request.session_id).mount_point();
    let shared = store.shared().clone();
    let progress = Arc::new(OpenProgress::default());
    let watched = progress.clone();
    let opening = tokio::task::spawn_blocking(move || {
        let wanted = Wanted {
            name: &name,
            config: &repository,
            label: label.as_ref(),
            pinned: pinned.as_ref(),
            progress,
        };
        BackupSource::open(&wanted, &shared, &mount_point)
    });
    let opened = tokio::select! {
        opened = opening => opened,
        never = tell(store, record, &watched) => match never {},
    };
    let opened = opened.map_err(|error| {
        Problem::new(
            ErrorCode::Internal,
            format!("opening the backup failed: {error}"),
            "report this with the log of mount-svc",
        )
    })??;
    let opened = Arc::new(opened);
    *source = Some(opened.clone());
    Ok(opened)
}

/// Tells how far the opening is, whenever it has advanced.
async fn tell(
    store: &Store,
    record: &MountRecord,
    progress: &OpenProgress,
) -> std::convert::Infallible {
    let mut told_bytes = 0;
    loop {
        tokio::time::sleep(TOLD_EVERY).await;
        let (done_bytes, total_bytes) = (progress.done_bytes(), progress.total_bytes());
        if done_bytes <= told_bytes {
            continue;
        }
        told_bytes = done_bytes;
        let news = MountProgress {
            session_id: record.session_id(),
            epoch: record.request.epoch,
            text: format!(
                "read {} of {} MiB of the backup's compressed archives",
                done_bytes >> 20,
                total_bytes >> 20
            ),
            done_bytes,
            total_bytes,
        };
        store.tell_in_passing(Internal::MountProgress(news)).await;
    }
}
