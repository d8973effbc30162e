//! The configured repositories: what is in them, for `backups`, and their errors in the contract's words.

use std::sync::Arc;
use std::time::Duration;

use common::config::Secret;
use common::ids::{BackupLabel, RepositoryName};
use common::messages::{
    BackupList, BackupListed, ListedArchive, ListedKind, ListedRestoreInterval, WalGap,
};
use common::problem::{ErrorCode, Problem};
use jiff::Timestamp;
use repository::barman::{open_barman, open_barman_in};
use repository::pgbackrest::{Passphrase, PgBackRestOptions, open_pgbackrest, open_pgbackrest_in};
use repository::{
    BackupFormat, BackupKind, DecodedLimits, DecodedStore, ObjectAccess, ObjectLimits,
    ObjectLocation, OpenOptions, OpenProgress, Repository, RepositoryError, RepositoryErrorKind,
    RestorePoint, ShownWal, Storage, WalPlace, open_repository, open_repository_in,
};

use crate::config::{Config, RepositoryConfig, RepositoryKind};

/// Most backups in one answer.
const LISTED_MAX: usize = 1_000;
/// Most problems in one answer.
const PROBLEMS_MAX: usize = 50;

/// What all backups that are open share, so that it is bounded for all of them together.
#[derive(Debug, Clone)]
pub struct Shared {
    /// The place for decoded bytes.
    pub decoded: Arc<DecodedStore>,
    /// The way to object stores.
    pub objects: Arc<ObjectAccess>,
}

impl Shared {
    /// Made as the configuration says; nothing is started.
    pub fn new(config: &Config) -> Self {
        Self {
            decoded: Arc::new(DecodedStore::new(DecodedLimits {
                directory: config.decoded_directory.clone(),
                disk_bytes_max: config.decoded_bytes_max,
                memory_bytes_max: config.decoded_memory_bytes_max,
            })),
            objects: Arc::new(ObjectAccess::new(ObjectLimits {
                cache_bytes_max: config.object_cache_bytes_max,
                request_count_max: config.object_requests_max,
                retry_for: Duration::from_secs(config.object_retry_s),
            })),
        }
    }
}

/// Opens a configured repository.
pub fn open(
    name: &RepositoryName,
    config: &RepositoryConfig,
    shared: &Shared,
) -> Result<Box<dyn Repository>, Problem> {
    open_telling(name, config, shared, &Arc::default())
}

/// The same; `progress` is told how far it is with what backups that are opened there take long for.
pub fn open_telling(
    name: &RepositoryName,
    config: &RepositoryConfig,
    shared: &Shared,
    progress: &Arc<OpenProgress>,
) -> Result<Box<dyn Repository>, Problem> {
    let reached = config.object_options(name.as_str());
    let objects = |location: &ObjectLocation| {
        let storage = Storage::objects(location, &reached, &shared.objects);
        storage.map_err(|error| problem_of(name, &error))
    };
    let wal_archive = match (&config.wal_archive, config.wal_location(name.as_str())?) {
        (_, Some(location)) => Some(WalPlace::Objects(Arc::new(objects(&location)?))),
        (path, None) => path.clone().map(WalPlace::Directory),
    };
    let options = OpenOptions {
        tablespace_directories: config.tablespace_directories.clone(),
        tablespace_setting: format!("repositories.{name}.tablespace_directories"),
        decoded: Some(Arc::clone(&shared.decoded)),
        wal_archive,
        progress: Arc::clone(progress),
        ..OpenOptions::default()
    };
    let storage = config.location(name.as_str())?;
    let storage = storage.map(|location| objects(&location)).transpose()?;
    let opened = match (config.kind, storage) {
        (RepositoryKind::PgBasebackup, None) => open_repository(&config.path, options),
        (RepositoryKind::PgBasebackup, Some(storage)) => open_repository_in(storage, options),
        (RepositoryKind::PgBackRest, storage) => {
            let pgbackrest = PgBackRestOptions {
                stanza: config.stanza.clone(),
                passphrase: passphrase(config)?,
                passphrase_setting: format!("repositories.{name}.cipher_passphrase_file"),
            };
            match storage {
                None => open_pgbackrest(&config.path, &pgbackrest, options),
                Some(storage) => open_pgbackrest_in(storage, &pgbackrest, options),
            }
        }
        (RepositoryKind::Barman, None) => open_barman(&config.path, options),
        (RepositoryKind::Barman, Some(storage)) => open_barman_in(storage, options),
    };
    opened.map_err(|error| problem_of(name, &error))
}

fn passphrase(config: &RepositoryConfig) -> Result<Option<Passphrase>, Problem> {
    let secret = match &config.cipher_passphrase_file {
        Some(path) => Some(Secret::from_file(path)?),
        None => config.cipher_passphrase.clone(),
    };
    Ok(secret.map(|secret| Passphrase::new(secret.expose())))
}

/// An error of a repository in the contract's words.
pub fn problem_of(name: &RepositoryName, error: &RepositoryError) -> Problem {
    let code = match error.kind() {
        RepositoryErrorKind::UnknownBackup => ErrorCode::UnknownBackup,
        RepositoryErrorKind::Unreadable => ErrorCode::UnreadableBackup,
        RepositoryErrorKind::Refused => ErrorCode::InvalidConfiguration,
        RepositoryErrorKind::Corrupt => ErrorCode::CorruptBackup,
        RepositoryErrorKind::Unsupported => ErrorCode::UnsupportedBackup,
    };
    Problem::new(code, format!("repository {name}: {error}"), error.remedy())
}

/// Lists the backups of one repository or of all. Blocks: looks at every backup's list of files.
pub fn list(
    config: &Config,
    shared: &Shared,
    only: Option<&RepositoryName>,
) -> Result<BackupList, Problem> {
    let mut list = BackupList {
        backups: Vec::new(),
        problems: Vec::new(),
        truncated: false,
    };
    if let Some(name) = only {
        config.repository(name)?;
    }
    for (name, repository) in &config.repositories {
        if only.is_some_and(|only| only != name) {
            continue;
        }
        let found = open(name, repository, shared).and_then(|open| {
            let points = open.restore_points();
            let points = points.map_err(|error| problem_of(name, &error))?;
            Ok((open, points))
        });
        match found {
            Ok((open, mut points)) => {
                list.truncated |= points.truncated || points.restore_points.len() > LISTED_MAX;
                points.restore_points.truncate(LISTED_MAX);
                let archived = archived(name, &*open, &points.restore_points, &mut list.problems);
                for (point, archive) in points.restore_points.iter().zip(archived) {
                    list.backups.extend(listed(name, point, archive.as_ref()));
                }
                list.problems.extend(
                    points
                        .problems
                        .iter()
                        .map(|(label, error)| about(label, problem_of(name, error))),
                );
            }
            Err(problem) => list.problems.push(problem),
        }
    }
    list.truncated |= list.backups.len() > LISTED_MAX;
    list.backups.truncate(LISTED_MAX);
    list.problems.truncate(PROBLEMS_MAX);
    Ok(list)
}

fn about(label: &str, problem: Problem) -> Problem {
    let message = format!("backup {label}: {}", problem.message);
    Problem::new(problem.code, message, problem.remedy)
}

/// What the repository's archive has of WAL for each backup.
fn archived(
    name: &RepositoryName,
    repository: &dyn Repository,
    points: &[RestorePoint],
    problems: &mut Vec<Problem>,
) -> Vec<Option<ShownWal>> {
    let archives = repository.wal_archives(points).unwrap_or_else(|error| {
        problems.push(problem_of(name, &error));
        points.iter().map(|_| Ok(None)).collect()
    });
    let looks = points.iter().zip(archives).map(|(point, archive)| {
        let look = archive.and_then(|archive| match archive {
            Some(archive) => archive.look(),
            None => Ok(None),
        });
        look.unwrap_or_else(|error| {
            problems.push(about(&point.label, problem_of(name, &error)));
            None
        })
    });
    looks.collect()
}

fn listed(
    name: &RepositoryName,
    point: &RestorePoint,
    archive: Option<&ShownWal>,
) -> Option<BackupListed> {
    let ends_at = archive.and_then(ShownWal::end_lsn);
    Some(BackupListed {
        repository: name.clone(),
        // A directory whose name cannot be a label cannot be asked for either.
        label: BackupLabel::new(point.label.clone()).ok()?,
        format: format_of(point),
        kind: Some(kind_of(point)),
        references: point
            .references
            .iter()
            .filter_map(|label| BackupLabel::new(label.clone()).ok())
            .collect(),
        postgresql_major: point.postgresql_major,
        started_at: point.started_at,
        stopped_at: point.stopped_at,
        size_bytes: point.size_bytes,
        file_count: point.file_count,
        tablespace_count: u32::try_from(point.tablespaces.len()).unwrap_or(u32::MAX),
        recoverable: point.recoverable.to_lsn.map(|to| ListedRestoreInterval {
            // Only the backup's end is a consistent state; the WAL that it brings along leads there and no further.
            from_lsn: to.to_string(),
            to_lsn: ends_at.map_or(to, |end| end.max(to)).to_string(),
            from: None,
            to: None,
            archive: archive.and_then(listed_archive),
        }),
        slow_layout: point.slow_layout.as_ref().map(ToString::to_string),
    })
}

fn listed_archive(shown: &ShownWal) -> Option<ListedArchive> {
    Some(ListedArchive {
        last_segment: shown.last_segment()?,
        timeline: shown.target_timeline,
        archived_at: Timestamp::from_second(shown.archived_at_s).ok(),
        gap: shown.gap.as_ref().map(gap_of),
    })
}

/// A hole of an archive in the contract's words.
pub fn gap_of(gap: &repository::WalGap) -> WalGap {
    WalGap {
        first_missing: gap.first_missing.clone(),
        next: gap.next.clone(),
    }
}

fn kind_of(point: &RestorePoint) -> ListedKind {
    match point.kind {
        BackupKind::Full => ListedKind::Full,
        BackupKind::Differential => ListedKind::Diff,
        BackupKind::Incremental => ListedKind::Incr,
    }
}

/// The format, with the kind where a backup may stand on others.
fn format_of(point: &RestorePoint) -> String {
    match (point.format, point.kind) {
        (
            BackupFormat::PgBasebackupPlain
            | BackupFormat::PgBasebackupTar
            | BackupFormat::PgBasebackupCompressedTar(_),
            BackupKind::Full,
        ) => point.format.to_string(),
        (format, _) => format!("{format} {}", kind_of(point).name()),
    }
}
