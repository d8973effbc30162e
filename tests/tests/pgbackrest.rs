//! Our reader of pgBackRest's repositories against the real pgBackRest: whatever `pgbackrest restore` writes, we read.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests fail by panic, and print what was tried"
)]

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use repository::pgbackrest::{Passphrase, PgBackRestOptions, open_pgbackrest};
use repository::{
    Backup, BackupChoice, BackupFormat, BackupKind, DecodedLimits, DecodedStore, EntryKind,
    OpenOptions, Repository, Verification,
};
use tests::pgbackrest::{
    Layout, PASSPHRASE, RepositoryKind, STANZA, Stage, Tool, rewrite_as_2_36, state_of,
};
use tests::postgres::{Installation, installations};

fn postgresql(major: u32) -> Installation {
    let all = installations();
    let found = all.into_iter().find(|found| found.major == major);
    found.unwrap_or_else(|| panic!("PostgreSQL {major} is not installed; ./test installs it"))
}

fn seed() -> u64 {
    let seed = std::env::var("PGINSTANT_TEST_SEED").ok();
    let seed = seed.map_or_else(|| rand::rng().random(), |text| text.parse().unwrap());
    println!("again with: PGINSTANT_TEST_SEED={seed}");
    seed
}

fn open_repository(stage: &Stage, number: usize, is_encrypted: bool) -> Box<dyn Repository> {
    open_repository_with(stage, number, is_encrypted, OpenOptions::default())
}

fn open_repository_with(
    stage: &Stage,
    number: usize,
    is_encrypted: bool,
    open_options: OpenOptions,
) -> Box<dyn Repository> {
    let options = PgBackRestOptions {
        stanza: Some(STANZA.to_owned()),
        passphrase: is_encrypted.then(|| Passphrase::new(PASSPHRASE)),
        passphrase_setting: "repositories.main.cipher_passphrase_file".to_owned(),
    };
    open_pgbackrest(&stage.repository(number), &options, open_options).unwrap()
}

fn open(stage: &Stage, number: usize, is_encrypted: bool, label: &str) -> Arc<dyn Backup> {
    open_repository(stage, number, is_encrypted)
        .open(BackupChoice::Label(label))
        .unwrap()
}

/// Tables of several sizes, a tablespace, and files with names that are hard to write down.
fn fill(stage: &Stage) {
    let cluster = stage.cluster();
    cluster
        .pgbench("postgres", &["-i", "-q", "-s", "1", "--tablespace=one"])
        .unwrap();
    let sql = "CREATE TABLE wide AS SELECT g, repeat(md5(g::text), 20) AS text FROM generate_series(1, 9000) g";
    cluster.psql("postgres", sql).unwrap();
    let sql = "CREATE UNLOGGED TABLE scratch AS SELECT g FROM generate_series(1, 9000) g";
    cluster.psql("postgres", sql).unwrap();
    let data = cluster.data_directory();
    for (name, content) in [
        ("=equal=more===", "a"),
        ("[brackets]", "bb"),
        ("ä\"\\ {x}.gz", "ccc"),
        ("empty", ""),
    ] {
        std::fs::write(data.join(name), content).unwrap();
    }
    let elsewhere = cluster.socket_directory();
    std::fs::write(elsewhere.join("linked.conf"), "# linked\n").unwrap();
    std::os::unix::fs::symlink(elsewhere.join("linked.conf"), data.join("linked.conf")).unwrap();
    std::fs::create_dir(elsewhere.join("conf.d")).unwrap();
    std::fs::write(elsewhere.join("conf.d/a.conf"), "# in a linked directory\n").unwrap();
    std::os::unix::fs::symlink(elsewhere.join("conf.d"), data.join("conf.d")).unwrap();
    let sockets = elsewhere.parent().unwrap();
    tests::postgres::run(
        std::process::Command::new("chown")
            .args(["-R", "postgres"])
            .arg(sockets),
    )
    .unwrap();
}

/// Changes some blocks of some files; all of them reach the disk.
fn change(stage: &Stage, divisor: u32) {
    let sql = format!(
        "UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid % {divisor} = 0; \
         CREATE TABLE new_{divisor} AS SELECT g FROM generate_series(1, 5000) g; CHECKPOINT"
    );
    for statement in sql.split("; ") {
        stage.cluster().psql("postgres", statement).unwrap();
    }
}

/// What `pgbackrest restore` itself writes into `pg_control` (checkpoint position and checksum, since 2.51).
fn without_what_restore_changes(path: &str, mut content: Vec<u8>) -> Vec<u8> {
    if path == "global/pg_control" {
        content[32..40].fill(0);
        content[288..296].fill(0); // the checksum is at 288 in PostgreSQL 15, at 292 in 18
    }
    content
}

fn read_in_pieces(backup: &dyn Backup, path: &str, piece: usize) -> Vec<u8> {
    let (file, _) = backup.tree().find_file(path).unwrap();
    let mut buffer = vec![0; piece];
    let mut found = Vec::new();
    loop {
        let read = backup
            .read_at(file, found.len() as u64, &mut buffer)
            .unwrap();
        if read == 0 {
            return found;
        }
        found.extend_from_slice(&buffer[..read]);
    }
}

/// Every file: its size, mode, time and content, read at random and in order.
fn compare(stage: &Stage, repository: usize, backup: &dyn Backup, random: &mut StdRng) {
    let label = &backup.restore_point().label;
    let restored = stage.restore(repository, label).unwrap();
    let data = restored.path().join("data");
    let mut seen = BTreeSet::new();
    for entry in backup.tree().entries() {
        let at = data.join(entry.path);
        let EntryKind::File { file, size_bytes } = entry.kind else {
            assert!(at.is_dir(), "{}", entry.path);
            continue;
        };
        if entry.path == "tablespace_map" {
            continue; // restore makes the links instead
        }
        let is_archived = entry.path.starts_with("pg_wal/") && !at.exists();
        let wanted = if is_archived {
            let segment = entry.path.rsplit('/').next().unwrap();
            stage.wal(repository, segment).unwrap()
        } else {
            let metadata = at
                .metadata()
                .unwrap_or_else(|error| panic!("{}: {error}", entry.path));
            assert_eq!(
                entry.mode,
                metadata.permissions().mode() & 0o7777,
                "{}",
                entry.path
            );
            // restore writes this one anew, for its settings of recovery; here it has none to add.
            if entry.path != "postgresql.auto.conf" {
                assert_eq!(entry.modified_at_s, metadata.mtime(), "{}", entry.path);
            }
            seen.insert(entry.path.to_owned());
            std::fs::read(&at).unwrap()
        };
        assert_eq!(size_bytes, wanted.len() as u64, "{}", entry.path);
        let wanted = without_what_restore_changes(entry.path, wanted);
        for _ in 0..4 {
            let offset = random.random_range(0..=wanted.len());
            let length = random.random_range(1..200_000);
            let mut buffer = vec![0; length];
            let count = backup.read_at(file, offset as u64, &mut buffer).unwrap();
            let end = wanted.len().min(offset + length);
            assert_eq!(count, end - offset, "{}", entry.path);
            if entry.path != "global/pg_control" {
                assert!(
                    buffer[..count] == wanted[offset..end],
                    "{offset}..{end} of {} in {label} differs",
                    entry.path
                );
            }
        }
        let found = read_in_pieces(backup, entry.path, 100_003);
        let found = without_what_restore_changes(entry.path, found);
        assert!(found == wanted, "{} in {label} differs", entry.path);
    }
    // The map older versions restore too, where the links lead to the new places already; the signal they write themselves.
    let mut wanted = files_below(&data);
    for name in ["tablespace_map", "recovery.signal"] {
        wanted.remove(name);
    }
    let other: Vec<_> = seen.symmetric_difference(&wanted).collect();
    assert!(other.is_empty(), "{label}: {other:?}");
    let report = backup
        .verify_all(&mut |_| ControlFlow::Continue(()))
        .unwrap();
    assert_eq!(
        report.verified_count,
        backup.tree().file_count(),
        "{report:?}"
    );
    assert!(report.corrupt.is_empty() && backup.corrupt_files().is_empty());
}

fn files_below(directory: &Path) -> BTreeSet<String> {
    let mut find = std::process::Command::new("find");
    find.arg("-L")
        .arg(directory)
        .args(["-type", "f", "-printf", "%P\n"]);
    let found = tests::postgres::run(&mut find).unwrap();
    let text = String::from_utf8(found.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn check_restore_point(backup: &dyn Backup, kind: BackupKind, references: &[String], major: u32) {
    let point = backup.restore_point();
    assert_eq!(point.format, BackupFormat::PgBackRest);
    assert_eq!((point.kind, &*point.references), (kind, references));
    assert_eq!(point.postgresql_major, major);
    assert_eq!(point.verification, Verification::Checksums);
    assert_eq!(point.tablespaces.len(), 1);
    assert!(point.started_at.unwrap() <= point.stopped_at.unwrap());
    assert!(point.recoverable.to_lsn.unwrap() > point.recoverable.from_lsn);
    assert!(point.system_identifier.is_some());
    assert!(backup.tree().find_file("backup_label").is_some());
}

const LAYOUTS: [Layout; 3] = [Layout::Plain, Layout::Bundle, Layout::Blocks];
const COMPRESSIONS: [&str; 5] = ["none", "gz", "lz4", "zst", "bz2"];

/// Six repositories: each layout, clear and encrypted.
fn kinds() -> Vec<RepositoryKind> {
    let all = LAYOUTS.into_iter().flat_map(|layout| {
        [false, true].map(|is_encrypted| RepositoryKind {
            layout,
            is_encrypted,
        })
    });
    all.collect()
}

/// Takes and compares a full backup, a differential one, and an incremental one of that, as many as are asked for.
fn compare_set(
    stage: &Stage,
    number: usize,
    kind: RepositoryKind,
    compression: &str,
    count: usize,
) {
    let mut random = StdRng::seed_from_u64(seed());
    let is_decoded = kind.is_encrypted || compression != "none";
    let is_slow = is_decoded && kind.layout != Layout::Blocks;
    let compression = format!("--compress-type={compression}");
    let types = [
        ("--type=full", BackupKind::Full),
        ("--type=diff", BackupKind::Differential),
        ("--type=incr", BackupKind::Incremental),
    ];
    let mut taken = Vec::new();
    for (step, (argument, backup_kind)) in (0..).zip(types.into_iter().take(count)) {
        if step > 0 {
            stage
                .cluster()
                .psql("postgres", "DROP TABLE IF EXISTS new_300, new_700")
                .unwrap();
            change(stage, if step == 1 { 300 } else { 700 });
        }
        // The last of a set brings its WAL along; for the others it is in the archive.
        let copy = if step == 2 {
            "--archive-copy"
        } else {
            "--no-archive-copy"
        };
        let label = stage
            .backup(number, &[argument, &compression, copy])
            .unwrap();
        println!("{kind:?} {compression} {label}");
        let backup = open(stage, number, kind.is_encrypted, &label);
        check_restore_point(&*backup, backup_kind, &taken, 15);
        let slow = backup.restore_point().slow_layout.as_ref();
        assert_eq!(slow.is_some(), is_slow, "{slow:?}");
        taken.push(label);
    }
    stage.archiving_is_done().unwrap();
    let before = state_of(&stage.repository(number)).unwrap();
    for label in &taken {
        let backup = open(stage, number, kind.is_encrypted, label);
        compare(stage, number, &*backup, &mut random);
    }
    let after = state_of(&stage.repository(number)).unwrap();
    // The cluster runs, and may archive more; nothing else comes, and nothing that was there changes.
    let archive = format!("{}/archive/", stage.repository(number).display());
    let of_backups = |state: &BTreeSet<String>| -> Vec<String> {
        let all = state.iter();
        all.filter(|line| !line.starts_with(&archive))
            .cloned()
            .collect()
    };
    assert_eq!(of_backups(&before), of_backups(&after));
    let archived = before.iter().filter(|line| line.contains(" f "));
    assert_eq!(archived.clone().find(|line| !after.contains(*line)), None);
    assert!(archived.count() > 0);
}

#[test]
fn whatever_pgbackrest_restores_is_read_from_its_repository() {
    let stage = Stage::new(&Tool::of("trixie").unwrap(), &postgresql(15), &kinds()).unwrap();
    fill(&stage);
    // Which compression and how many backups of a set; PGINSTANT_TEST_PGBACKREST_ALL has every combination.
    let some: [&[(&str, usize)]; 6] = [
        &[("none", 2)],
        &[("gz", 2)],
        &[("lz4", 2), ("bz2", 1)],
        &[("zst", 1), ("none", 1)],
        &[("none", 2), ("bz2", 1)],
        &[("lz4", 1), ("none", 1), ("gz", 1), ("zst", 3)],
    ];
    let all = COMPRESSIONS.map(|compression| (compression, 3));
    let is_all = std::env::var_os("PGINSTANT_TEST_PGBACKREST_ALL").is_some();
    for ((number, kind), some) in (1..).zip(kinds()).zip(some) {
        for (compression, count) in if is_all { &all[..] } else { some } {
            compare_set(&stage, number, kind, compression, *count);
        }
    }
}

/// The place for decoded files has room for the two largest of them, and no more.
#[test]
fn a_file_that_had_to_make_room_is_read_again_from_its_middle() {
    let kinds = [false, true].map(|is_encrypted| RepositoryKind {
        layout: Layout::Plain,
        is_encrypted,
    });
    let stage = Stage::new(&Tool::of("trixie").unwrap(), &postgresql(15), &kinds).unwrap();
    fill(&stage);
    let mut random = StdRng::seed_from_u64(seed());
    for (number, kind) in (1..).zip(kinds) {
        for compression in ["gz", "lz4", "bz2"] {
            let compress = format!("--compress-type={compression}");
            let label = stage.backup(number, &["--type=full", &compress]).unwrap();
            let store = Arc::new(DecodedStore::new(DecodedLimits {
                disk_bytes_max: 32 << 20,
                memory_bytes_max: 4 << 20,
                ..DecodedLimits::default()
            }));
            let options = OpenOptions {
                decoded: Some(Arc::clone(&store)),
                ..OpenOptions::default()
            };
            let repository = open_repository_with(&stage, number, kind.is_encrypted, options);
            let backup = repository.open(BackupChoice::Label(&label)).unwrap();
            let large: Vec<_> = backup
                .tree()
                .entries()
                .filter_map(|entry| match entry.kind {
                    EntryKind::File { file, size_bytes } if size_bytes > 5 << 20 => {
                        Some((file, entry.path.to_owned()))
                    }
                    _ => None,
                })
                .collect();
            assert!(large.len() >= 2, "{large:?}");
            let contents: Vec<_> = large
                .iter()
                .map(|(_, path)| read_in_pieces(&*backup, path, 100_003))
                .collect();
            assert_eq!(store.decoded_bytes(), 0, "so far from the beginning");
            let mut decoded_max = 0;
            for _ in 0..60 {
                let which = random.random_range(0..large.len());
                let offset = random.random_range(0..contents[which].len());
                let mut buffer = vec![0; random.random_range(1..20_000)];
                let before = store.decoded_bytes();
                let count = backup
                    .read_at(large[which].0, offset as u64, &mut buffer)
                    .unwrap();
                let wanted = &contents[which][offset..];
                assert!(
                    buffer[..count] == wanted[..wanted.len().min(buffer.len())],
                    "{compression} {offset} of {}",
                    large[which].1
                );
                // A segment of WAL that is zeros to its end is one stretch.
                if !large[which].1.starts_with("pg_wal/") {
                    decoded_max = decoded_max.max(store.decoded_bytes() - before);
                }
            }
            println!("{compression}: {decoded_max} bytes decoded for a read at most");
            // Two stretches at most; a block of bzip2 may be longer than a megabyte of pages that are alike.
            assert!((1..12 << 20).contains(&decoded_max), "{compression}");
            compare(&stage, number, &*backup, &mut random);
        }
    }
}

#[test]
fn a_file_of_bzip2_that_was_read_forwards_is_read_at_random_without_being_decoded_whole_again() {
    let kind = RepositoryKind {
        layout: Layout::Plain,
        is_encrypted: false,
    };
    let stage = Stage::new(&Tool::of("trixie").unwrap(), &postgresql(15), &[kind]).unwrap();
    fill(&stage);
    let label = stage
        .backup(1, &["--type=full", "--compress-type=bz2"])
        .unwrap();
    let store = Arc::new(DecodedStore::new(DecodedLimits::default()));
    let options = OpenOptions {
        decoded: Some(Arc::clone(&store)),
        ..OpenOptions::default()
    };
    let repository = open_repository_with(&stage, 1, false, options);
    let backup = repository.open(BackupChoice::Label(&label)).unwrap();
    let entries = backup.tree().entries();
    let largest = entries.filter_map(|entry| match entry.kind {
        EntryKind::File { file, size_bytes } if !entry.path.starts_with("pg_wal/") => {
            Some((size_bytes, file, entry.path.to_owned()))
        }
        _ => None,
    });
    let (size_bytes, file, path) = largest.max_by_key(|(size_bytes, ..)| *size_bytes).unwrap();
    assert!(size_bytes > 8 << 20, "{path} has {size_bytes} bytes");
    let content = read_in_pieces(&*backup, &path, 100_003);
    assert_eq!(store.decoded_bytes(), 0, "so far forwards");
    let mut page = [0; 8192];
    let middle = content.len() / 2;
    backup.read_at(file, middle as u64, &mut page).unwrap();
    assert!(page[..] == content[middle..middle + page.len()]);
    let decoded = store.decoded_bytes();
    assert!((1..size_bytes).contains(&decoded), "{decoded}");
}

#[test]
fn repositories_of_an_older_pgbackrest_are_read_and_its_beta_of_blocks_is_refused_by_name() {
    let kind = |layout, is_encrypted| RepositoryKind {
        layout,
        is_encrypted,
    };
    let kinds = [
        kind(Layout::Plain, true),
        kind(Layout::Bundle, false),
        kind(Layout::Blocks, false),
    ];
    let tool = Tool::of("bookworm").unwrap();
    assert_eq!(tool.version, (2, 45));
    let stage = Stage::new(&tool, &postgresql(15), &kinds).unwrap();
    fill(&stage);
    compare_set(&stage, 1, kinds[0], "gz", 1);
    compare_set(&stage, 2, kinds[1], "zst", 2);
    let label = stage
        .backup(3, &["--type=full", "--beta", "--repo3-block"])
        .unwrap();
    let error = open_repository(&stage, 3, false)
        .open(BackupChoice::Newest)
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains(&label) && text.contains("pgBackRest 2.45"),
        "{text}"
    );
    assert!(error.is_permanent() && error.remedy().contains("2.46"));
}

/// Its lists of references, checksums of what is stored and bundles came later.
#[test]
fn a_repository_as_pgbackrest_2_36_wrote_it_is_read_as_a_younger_one_restores_it() {
    let kind = RepositoryKind {
        layout: Layout::Plain,
        is_encrypted: false,
    };
    let stage = Stage::new(&Tool::of("bookworm").unwrap(), &postgresql(15), &[kind]).unwrap();
    fill(&stage);
    let mut labels = Vec::new();
    for argument in ["--type=full", "--type=diff", "--type=incr"] {
        labels.push(stage.backup(1, &[argument, "--compress-type=gz"]).unwrap());
        change(&stage, 300 + u32::try_from(labels.len()).unwrap());
    }
    rewrite_as_2_36(&stage, 1).unwrap();
    let manifest = format!("backup/{STANZA}/{}/backup.manifest", labels[2]);
    let manifest = std::fs::read_to_string(stage.repository(1).join(manifest)).unwrap();
    assert!(manifest.contains("\"2.36\"") && manifest.contains("\"reference\""));
    assert!(!manifest.contains("backup-reference") && !manifest.contains("\"rck\""));
    let mut random = StdRng::seed_from_u64(seed());
    let kinds = [
        BackupKind::Full,
        BackupKind::Differential,
        BackupKind::Incremental,
    ];
    for (number, (label, kind)) in labels.iter().zip(kinds).enumerate() {
        let backup = open(&stage, 1, false, label);
        check_restore_point(&*backup, kind, &labels[..number], 15);
        compare(&stage, 1, &*backup, &mut random);
    }
}

#[test]
fn repositories_of_todays_pgbackrest_are_read_before_and_after_an_upgrade_of_the_cluster() {
    let kinds = [
        RepositoryKind {
            layout: Layout::Blocks,
            is_encrypted: true,
        },
        RepositoryKind {
            layout: Layout::Plain,
            is_encrypted: false,
        },
    ];
    let tool = Tool::of("forky").unwrap();
    let mut stage = Stage::new(&tool, &postgresql(15), &kinds).unwrap();
    fill(&stage);
    compare_set(&stage, 1, kinds[0], "zst", 3);
    compare_set(&stage, 2, kinds[1], "gz", 1);
    let older = open_repository(&stage, 1, true)
        .restore_points()
        .unwrap()
        .restore_points;
    stage.upgrade_to(&postgresql(18), &kinds).unwrap();
    fill(&stage);
    let mut random = StdRng::seed_from_u64(seed());
    for (number, kind) in (1..).zip(kinds) {
        let label = stage.backup(number, &["--type=full"]).unwrap();
        let repository = open_repository(&stage, number, kind.is_encrypted);
        let backup = repository.open(BackupChoice::Newest).unwrap();
        assert_eq!(backup.restore_point().label, label);
        check_restore_point(&*backup, BackupKind::Full, &[], 18);
        compare(&stage, number, &*backup, &mut random);
    }
    let all = open_repository(&stage, 1, true).restore_points().unwrap();
    assert!(all.problems.is_empty() && !all.truncated);
    assert_eq!(all.restore_points[1..], older);
    assert_eq!(older.len(), 3);
    let newest = &older[0];
    let backup = open(&stage, 1, true, &newest.label);
    check_restore_point(&*backup, BackupKind::Incremental, &newest.references, 15);
    compare(&stage, 1, &*backup, &mut random);
}
