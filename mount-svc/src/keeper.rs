//! The keeper of one mount: a task that brings the mount to what its record wants and holds it there.
//!
//! What must stay true: an answer to recovery-svc is committed together with the record that it is about; nothing but a
//! release removes a write cache into which somebody may have written.

use std::sync::Arc;
use std::time::Duration;

use common::agent::hand::CacheAfterwards;
use common::messages::{
    Internal, MountFailed, MountLost, MountReady, MountReleased, MountWarning, WarningCode,
};
use common::problem::{ErrorCode, Problem};
use common::telemetry::session_span;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::backup_source::BackupSource;
use crate::maker::{Maker, place};
use crate::opening::open_backup;
use crate::page_server;
use crate::record::{MountRecord, Wanted};
use crate::store::Store;

/// First and longest wait between attempts to reach an agent again.
const RECONNECT_FIRST: Duration = Duration::from_millis(200);
const RECONNECT_MAX: Duration = Duration::from_secs(10);
/// How long a mount may be unreachable (not: known to be gone) before recovery-svc is told that it is lost.
const UNREACHABLE_MAX: Duration = Duration::from_secs(60);

/// Why the keeper stopped serving a mount.
enum Ended {
    /// The record changed, or the service ends.
    Changed,
    /// The mount is gone.
    Lost(Problem),
}

/// Keeps one mount until its record is removed or the service stops.
pub async fn keep(
    store: Arc<Store>,
    mut wanted: watch::Receiver<MountRecord>,
    stop: CancellationToken,
) {
    let span = session_span(wanted.borrow().session_id());
    async move {
        let mut source: Option<Arc<BackupSource>> = None;
        loop {
            let record = wanted.borrow_and_update().clone();
            let step = async {
                match &record.wanted {
                    Wanted::Made => make(&store, &record, &mut source).await,
                    Wanted::Kept(ready) => {
                        hold(&store, &record, ready, &mut source, &mut wanted.clone()).await
                    }
                    Wanted::Dormant => wait_for_change(&mut wanted.clone()).await,
                    Wanted::Released { epoch } => release(&store, &record, *epoch).await,
                }
            };
            let next = tokio::select! {
                () = stop.cancelled() => return,
                next = step => next,
            };
            if next == Next::Gone && store.retire(record.session_id(), &wanted) {
                return;
            }
        }
    }
    .instrument(span)
    .await;
}

/// What the keeper does after a step.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// Look at the record again.
    Again,
    /// The record is removed.
    Gone,
}

async fn wait_for_change(wanted: &mut watch::Receiver<MountRecord>) -> Next {
    match wanted.changed().await {
        Ok(()) => Next::Again,
        Err(_) => Next::Gone,
    }
}

async fn make(store: &Store, record: &MountRecord, source: &mut Option<Arc<BackupSource>>) -> Next {
    // What the mount shows is written down before the target gets to know it: whoever goes on after a crash shows the same.
    let opened = open_backup(store, record, source).await;
    let pinned = match &opened {
        Ok(opened) => store.pin(record, opened.pinned()).await,
        Err(_) => Some(record.clone()),
    };
    let Some(record) = &pinned else {
        return Next::Again;
    };
    let made = match opened {
        Ok(opened) => {
            report_slow_layout(store, record, &opened).await;
            try_make(store, record, &opened).await
        }
        Err(problem) => Err(problem),
    };
    let answer = match made {
        Ok(ready) => {
            tracing::info!(backup = %ready.backup, passthrough = ready.passthrough, "mounted");
            let mut kept = record.clone();
            kept.ever_ready = true;
            kept.wanted = Wanted::Kept(Box::new(ready.clone()));
            (kept, Internal::MountReady(ready))
        }
        Err(problem) => {
            tracing::warn!(error = %problem, "mount");
            let mut dormant = record.clone();
            match undo_make(store, record).await {
                // Nothing is left that was shown: the next attempt may choose anew.
                Ok(()) if !record.ever_ready => {
                    (dormant.backup, dormant.wal) = (None, None);
                    *source = None;
                }
                Ok(()) => {}
                Err(undo) => tracing::warn!(error = %undo, "undo a failed mount"),
            }
            dormant.wanted = Wanted::Dormant;
            let (session_id, epoch) = (record.session_id(), record.request.epoch);
            (
                dormant,
                Internal::MountFailed(MountFailed {
                    session_id,
                    epoch,
                    problem,
                }),
            )
        }
    };
    store.settle(record, Some(answer.0), answer.1).await;
    Next::Again
}

async fn try_make(
    store: &Store,
    record: &MountRecord,
    opened: &BackupSource,
) -> Result<MountReady, Problem> {
    let request = &record.request;
    let target = store.config.target(&request.target)?;
    let place = place(target, request.session_id);
    let maker = Maker::connect(target, place).await?;
    let mut maker = maker.with_hydrate(request.hydrate);
    let status = maker.make(opened.tree(), opened.finish()).await?;
    // Only now is a mount worth anything: pages can be served.
    let passthrough_reason = status.passthrough.clone().err();
    Ok(MountReady {
        session_id: request.session_id,
        epoch: request.epoch,
        backup: opened.label().clone(),
        mount_point: maker.mount_point(),
        data_directory: maker.data_directory(),
        postgresql_major: opened.postgresql_major(),
        end_lsn: opened.end_lsn(),
        wal: opened.wal(),
        size_bytes: opened.size_bytes(),
        tablespaces: opened.tablespaces(),
        passthrough: passthrough_reason.is_none(),
        passthrough_reason,
    })
}

async fn undo_make(store: &Store, record: &MountRecord) -> Result<(), Problem> {
    let target = store.config.target(&record.request.target)?;
    let mut maker = Maker::connect(target, place(target, record.session_id())).await?;
    // A cache that was ever served holds changes: it waits for the retry.
    if record.ever_ready {
        return maker.unmount(CacheAfterwards::Kept).await;
    }
    maker.unmount(CacheAfterwards::Discarded).await?;
    maker.remove().await
}

/// Serves pages and watches the mount until something changes.
async fn hold(
    store: &Store,
    record: &MountRecord,
    ready: &MountReady,
    source: &mut Option<Arc<BackupSource>>,
    wanted: &mut watch::Receiver<MountRecord>,
) -> Next {
    let ended = tokio::select! {
        _ = wanted.changed() => Ended::Changed,
        lost = serve_and_watch(store, record, source) => Ended::Lost(lost),
    };
    let Ended::Lost(problem) = ended else {
        return Next::Again;
    };
    tracing::warn!(error = %problem, "the mount is lost");
    let mut dormant = record.clone();
    dormant.wanted = Wanted::Dormant;
    let lost = MountLost {
        session_id: ready.session_id,
        epoch: ready.epoch,
        problem,
    };
    store
        .settle(record, Some(dormant), Internal::MountLost(lost))
        .await;
    Next::Again
}

/// Runs until the mount is lost.
async fn serve_and_watch(
    store: &Store,
    record: &MountRecord,
    source: &mut Option<Arc<BackupSource>>,
) -> Problem {
    let mut wait = RECONNECT_FIRST;
    let mut unreachable_since = None;
    loop {
        let trouble = match serve_once(store, record, source, &mut unreachable_since).await {
            Ok(()) => {
                wait = RECONNECT_FIRST;
                Problem::new(
                    ErrorCode::TargetUnreachable,
                    "the page channel ended",
                    "wait for the reconnect",
                )
            }
            Err(Trouble::Lost(problem)) => return problem,
            Err(Trouble::Unreachable(problem)) => problem,
        };
        let since = *unreachable_since.get_or_insert_with(tokio::time::Instant::now);
        if since.elapsed() > UNREACHABLE_MAX {
            return trouble;
        }
        tracing::warn!(error = %trouble, "serve pages; trying again");
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(RECONNECT_MAX);
    }
}

/// Why a mount cannot be served now.
enum Trouble {
    /// The agent says that there is no mount.
    Lost(Problem),
    /// The agent or the backup cannot be reached.
    Unreachable(Problem),
}

/// One page channel from attach to its end, with a look at the mount every few seconds.
async fn serve_once(
    store: &Store,
    record: &MountRecord,
    source: &mut Option<Arc<BackupSource>>,
    unreachable_since: &mut Option<tokio::time::Instant>,
) -> Result<(), Trouble> {
    let request = &record.request;
    let target = store
        .config
        .target(&request.target)
        .map_err(Trouble::Unreachable)?;
    let place = place(target, request.session_id);
    let mut maker = Maker::connect(target, place.clone())
        .await
        .map_err(Trouble::Unreachable)?;
    check(&mut maker).await?;
    let opened = open_backup(store, record, source)
        .await
        .map_err(Trouble::Unreachable)?;
    let channel = Maker::attach(target, place)
        .await
        .map_err(Trouble::Unreachable)?;
    *unreachable_since = None;
    let serving = page_server::serve(
        channel,
        opened.clone(),
        opened.finish().hash,
        store.config.page_reads_max,
    );
    tokio::pin!(serving);
    let mut tick = tokio::time::interval(Duration::from_secs(store.config.watch_every_s));
    loop {
        tokio::select! {
            ended = &mut serving => {
                return ended.map_err(|error| Trouble::Unreachable(Problem::new(
                    ErrorCode::TargetUnreachable,
                    format!("the page channel broke: {error}"),
                    "wait for the reconnect",
                )));
            }
            _ = tick.tick() => {
                report_corrupt_files(store, record, &opened).await;
                check(&mut maker).await?;
            }
        }
    }
}

async fn check(maker: &mut Maker) -> Result<(), Trouble> {
    match maker.status().await {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(Trouble::Lost(Problem::new(
            ErrorCode::MountFailed,
            "the mount is gone from the target (agent ended or host restarted)",
            "retry the session: its write cache is kept",
        ))),
        Err(problem) => Err(Trouble::Unreachable(problem)),
    }
}

/// Told again with each attempt, and so once: the session knows what it was told.
async fn report_slow_layout(store: &Store, record: &MountRecord, source: &BackupSource) {
    let Some(text) = source.slow_layout() else {
        return;
    };
    let warning = MountWarning {
        session_id: record.session_id(),
        code: WarningCode::SlowLayout,
        text: Some(format!("backup {}: {text}", source.label())),
    };
    store
        .tell(record.session_id(), Internal::MountWarning(warning))
        .await;
}

async fn report_corrupt_files(store: &Store, record: &MountRecord, source: &BackupSource) {
    for text in source.take_new_corrupt_files() {
        let warning = MountWarning {
            session_id: record.session_id(),
            code: WarningCode::BackupFileCorrupt,
            text: Some(format!("backup {}: {text}", source.label())),
        };
        store
            .tell(record.session_id(), Internal::MountWarning(warning))
            .await;
    }
}

async fn release(store: &Store, record: &MountRecord, epoch: u64) -> Next {
    let problem = try_release(store, record).await.err();
    if let Some(problem) = &problem {
        tracing::warn!(error = %problem, "release the mount");
    } else {
        tracing::info!("released the mount");
    }
    let mut after = record.clone();
    after.wanted = Wanted::Dormant;
    let gone = problem.is_none();
    let released = MountReleased {
        session_id: record.session_id(),
        epoch,
        problem,
    };
    // A release that failed leaves the record: recovery-svc asks again.
    let settled = store
        .settle(
            record,
            (!gone).then_some(after),
            Internal::MountReleased(released),
        )
        .await;
    // Asked again meanwhile, by a recovery-svc that has restarted: it waits for an answer of its own.
    if gone && settled {
        Next::Gone
    } else {
        Next::Again
    }
}

async fn try_release(store: &Store, record: &MountRecord) -> Result<(), Problem> {
    let target = store.config.target(&record.request.target)?;
    let mut maker = Maker::connect(target, place(target, record.session_id())).await?;
    maker.unmount(CacheAfterwards::Discarded).await?;
    maker.remove().await
}
