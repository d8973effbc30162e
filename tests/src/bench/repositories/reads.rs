//! What reading costs in each layout: one database, backed up in all of them, read by the reader in this process.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use repository::pgbackrest::{Passphrase, PgBackRestOptions, open_pgbackrest};
use repository::{
    Backup, BackupChoice, DecodedLimits, DecodedStore, EntryKind, OpenOptions, open_repository,
};

use super::first_query::{PGBACKREST_OF, processor_count};
use super::{page, scan};
use crate::bench::line::Ledger;
use crate::bench::plan::repositories::{PERCENTILES, page_name, scan_name};
use crate::bench::server::DATABASE;
use crate::bench::stage::Stage;
use crate::pgbackrest::{self, Layout, PASSPHRASE, RepositoryKind, STANZA, Setting, Tool};
use crate::postgres::{BackupOptions, TestPostgres};

/// Tables, so that as many files can be read side by side.
const TABLE_COUNT: u32 = 8;
/// What a row of them takes in its page.
const ROW_BYTES: u32 = 100;
/// Smallest file that counts as one of a table.
const FILE_BYTES_MIN: u64 = 1 << 20;

/// Repositories of pgBackRest, counted from 1.
const KINDS: [RepositoryKind; 3] = [
    kind(Layout::Plain, false),
    kind(Layout::Blocks, false),
    kind(Layout::Plain, true),
];
const ENCRYPTED: usize = 3;

/// Backups of pgBackRest: layout, repository, compression.
const PGBACKREST: [(&str, usize, &str); 6] = [
    ("none", 1, "none"),
    ("gz", 1, "gz"),
    ("lz4", 1, "lz4"),
    ("zst", 1, "zst"),
    ("zst-blocks", 2, "zst"),
    ("encrypted", ENCRYPTED, "none"),
];
/// The one that is no repository of pgBackRest.
const TAR: &str = "tar-gz";

const fn kind(layout: Layout, is_encrypted: bool) -> RepositoryKind {
    RepositoryKind {
        layout,
        is_encrypted,
    }
}

/// The database in one layout.
pub(super) struct Subject {
    /// The layout's name in the lines.
    pub(super) layout: &'static str,
    /// Opens it anew, with nothing decoded.
    pub(super) open: Box<dyn Fn() -> Result<Arc<dyn Backup>>>,
    /// Where a repository of pgBackRest has the files of the data directory.
    pub(super) stored: Option<PathBuf>,
}

/// A file of a table.
#[derive(Debug, Clone)]
pub(super) struct TableFile {
    /// Its path below the data directory.
    pub(super) path: String,
    /// Its size.
    pub(super) size_bytes: u64,
}

pub(in crate::bench) fn measure(stage: &mut Stage, ledger: &mut Ledger) -> Result<()> {
    stage.say("making a database and its backups in each layout");
    let cluster = TestPostgres::start_new(stage.installation())?;
    fill(&cluster, stage.sizes.layout_mib)?;
    let directory = stage.backup("layout-directory");
    cluster.backup(&directory, &BackupOptions::default())?;
    let mut subjects = Vec::new();
    if is_wanted(ledger, TAR) {
        let place = stage.backup("layout-tar");
        let options = BackupOptions {
            tar: true,
            arguments: vec!["--gzip".to_owned()],
        };
        cluster.backup(&place, &options)?;
        let decoded_in = stage.path("");
        subjects.push(Subject {
            layout: TAR,
            open: Box::new(move || {
                let repository = open_repository(&place, options_in(&decoded_in))?;
                Ok(repository.open(BackupChoice::Newest)?)
            }),
            stored: None,
        });
    }
    // It goes when everything is measured, and its repositories with it.
    let _made = of_pgbackrest(stage, ledger, cluster, &mut subjects)?;
    let plain = open_repository(&directory, OpenOptions::default())?;
    let files = table_files(&*plain.open(BackupChoice::Newest)?);
    for round in 1..=stage.sizes.repository_rounds {
        for subject in &subjects {
            stage.say(&format!("round {round}: {}", subject.layout));
            page::measure(stage, ledger, subject, page::Peer::new(&directory, &files))?;
            scan::measure(stage, ledger, subject, &files)?;
        }
    }
    Ok(())
}

/// Whether a line wants this layout.
fn is_wanted(ledger: &Ledger, layout: &str) -> bool {
    let mut pages = PERCENTILES
        .iter()
        .map(|percentile| page_name(layout, *percentile));
    pages.any(|name| ledger.wants(&name)) || ledger.wants(&scan_name(layout))
}

fn of_pgbackrest(
    stage: &Stage,
    ledger: &mut Ledger,
    cluster: TestPostgres,
    subjects: &mut Vec<Subject>,
) -> Result<Option<pgbackrest::Stage>> {
    let mut wanted = PGBACKREST.to_vec();
    wanted.retain(|(layout, ..)| is_wanted(ledger, layout));
    if wanted.is_empty() {
        return Ok(None);
    }
    let tool = match Tool::of(PGBACKREST_OF) {
        Ok(tool) => tool,
        Err(error) => {
            for (layout, ..) in wanted {
                let pages = PERCENTILES.map(|percentile| page_name(layout, percentile));
                for name in pages.into_iter().chain([scan_name(layout)]) {
                    ledger.leave_out(&name, &format!("{error:#}"));
                }
            }
            return Ok(None);
        }
    };
    let setting = Setting {
        cluster,
        parent: &stage.path(""),
    };
    let made = pgbackrest::Stage::of(&tool, setting, &KINDS)?;
    let processes = format!("--process-max={}", processor_count());
    for (layout, number, compression) in wanted {
        let compression = format!("--compress-type={compression}");
        let label = made.backup(number, &["--type=full", &compression, &processes])?;
        let place = made.repository(number);
        let stored = place.join(format!("backup/{STANZA}/{label}/pg_data"));
        let options = PgBackRestOptions {
            stanza: Some(STANZA.to_owned()),
            passphrase: (number == ENCRYPTED).then(|| Passphrase::new(PASSPHRASE)),
            passphrase_setting: String::new(),
        };
        let decoded_in = stage.path("");
        subjects.push(Subject {
            layout,
            open: Box::new(move || {
                let repository = open_pgbackrest(&place, &options, options_in(&decoded_in))?;
                Ok(repository.open(BackupChoice::Label(&label))?)
            }),
            stored: Some(stored),
        });
    }
    Ok(Some(made))
}

/// With a place of its own for what is decoded.
fn options_in(directory: &Path) -> OpenOptions {
    let limits = DecodedLimits {
        directory: directory.to_owned(),
        ..DecodedLimits::default()
    };
    OpenOptions {
        decoded: Some(Arc::new(DecodedStore::new(limits))),
        ..OpenOptions::default()
    }
}

/// Tables of digits at random, which compress as data of people does: to about half.
fn fill(cluster: &TestPostgres, mib: u32) -> Result<()> {
    cluster.psql("postgres", &format!("CREATE DATABASE {DATABASE}"))?;
    let rows = mib * ((1 << 20) / TABLE_COUNT / ROW_BYTES);
    for table in 0..TABLE_COUNT {
        let sql = format!(
            "CREATE TABLE part_{table} AS SELECT g, md5(g::text) || md5((g + {table})::text) AS text \
             FROM generate_series(1, {rows}) g"
        );
        cluster.psql(DATABASE, &sql)?;
    }
    cluster.psql(DATABASE, "CHECKPOINT").map(drop)
}

/// The files of the tables, the largest first.
fn table_files(backup: &dyn Backup) -> Vec<TableFile> {
    let entries = backup.tree().entries();
    let files = entries.filter_map(|entry| match entry.kind {
        EntryKind::File { size_bytes, .. }
            if size_bytes >= FILE_BYTES_MIN && entry.path.starts_with("base/") =>
        {
            Some(TableFile {
                path: entry.path.to_owned(),
                size_bytes,
            })
        }
        EntryKind::File { .. } | EntryKind::Directory => None,
    });
    let mut files: Vec<TableFile> = files.collect();
    files.sort_by_key(|file| std::cmp::Reverse(file.size_bytes));
    files
}

impl TableFile {
    /// Its number in a backup.
    pub(super) fn index_in(&self, backup: &dyn Backup) -> Result<repository::FileIndex> {
        let found = backup.tree().find_file(&self.path);
        let (file, size_bytes) = found.with_context(|| format!("no {}", self.path))?;
        anyhow::ensure!(
            size_bytes == self.size_bytes,
            "{} has {size_bytes} bytes",
            self.path
        );
        Ok(file)
    }
}
