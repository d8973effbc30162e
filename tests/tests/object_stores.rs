//! Repositories in an object store, against a real S3 server: what is read there is what is read of the same repository in a directory.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests fail by panic, and print what was tried"
)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use repository::pgbackrest::{Passphrase, PgBackRestOptions, open_pgbackrest, open_pgbackrest_in};
use repository::{
    Backup, BackupChoice, ObjectAccess, ObjectLocation, OpenOptions, Repository,
    RepositoryErrorKind, Storage,
};
use tests::pgbackrest::{Layout, PASSPHRASE, RepositoryKind, STANZA, Stage, Tool};
use tests::postgres::{Installation, installations};
use tests::s3_server::{BUCKET, S3Server, SECRET};
use tests::same_backups::{compare_bytes, entries_with_modes, files};
use tests::tree_hash;

const RETRY_FOR: Duration = Duration::from_secs(60);
/// For what must not be waited for.
const AT_ONCE: Duration = Duration::from_millis(100);

fn postgresql_15() -> Installation {
    let all = installations();
    let found = all.into_iter().find(|found| found.major == 15);
    found.unwrap_or_else(|| panic!("PostgreSQL 15 is not installed; ./test installs it"))
}

fn options(is_encrypted: bool) -> PgBackRestOptions {
    PgBackRestOptions {
        stanza: Some(STANZA.to_owned()),
        passphrase: is_encrypted.then(|| Passphrase::new(PASSPHRASE)),
        passphrase_setting: String::new(),
    }
}

fn open_in(storage: Storage, is_encrypted: bool) -> Box<dyn Repository> {
    open_pgbackrest_in(storage, &options(is_encrypted), OpenOptions::default()).unwrap()
}

fn open(server: &S3Server, prefix: &str, access: &Arc<ObjectAccess>) -> Arc<dyn Backup> {
    let storage = server.storage(prefix, access).unwrap();
    open_in(storage, false).open(BackupChoice::Newest).unwrap()
}

/// A repository of one kind with a backup of a small database.
fn one_backup(tool: &str, kind: RepositoryKind, compression: &str) -> Stage {
    let stage = Stage::new(&Tool::of(tool).unwrap(), &postgresql_15(), &[kind]).unwrap();
    stage
        .cluster()
        .pgbench("postgres", &["-i", "-q", "-s", "2"])
        .unwrap();
    let compression = format!("--compress-type={compression}");
    stage.backup(1, &["--type=full", &compression]).unwrap();
    stage
}

const PLAIN: RepositoryKind = RepositoryKind {
    layout: Layout::Plain,
    is_encrypted: false,
};

/// Every entry's kind, mode, time and bytes, the bytes in order and at random.
fn compare(here: &dyn Backup, there: &dyn Backup, random: &mut StdRng) {
    assert_eq!(entries_with_modes(here), entries_with_modes(there));
    assert_eq!(here.restore_point(), there.restore_point());
    compare_bytes(here, there, random).unwrap();
}

fn compare_repository(stage: &Stage, number: usize, is_encrypted: bool, server: &S3Server) {
    let prefix = format!("somewhere/repository {number}");
    server.put(&stage.repository(number), &prefix).unwrap();
    let before = tree_hash::of(&server.bucket()).unwrap();
    let seed = rand::rng().random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let access = Arc::new(ObjectAccess::default());
    let there = open_in(server.storage(&prefix, &access).unwrap(), is_encrypted);
    let here = stage.repository(number);
    let here = open_pgbackrest(&here, &options(is_encrypted), OpenOptions::default()).unwrap();
    let points = |repository: &dyn Repository| {
        let found = repository.restore_points().unwrap();
        assert!(found.problems.is_empty(), "{:?}", found.problems);
        found.restore_points
    };
    assert_eq!(points(&*here), points(&*there));
    // The newest stands on the others.
    let newest = BackupChoice::Newest;
    let (here, there) = (here.open(newest).unwrap(), there.open(newest).unwrap());
    compare(&*here, &*there, &mut random);
    assert_eq!(before, tree_hash::of(&server.bucket()).unwrap());
}

#[test]
fn every_file_of_a_repository_in_s3_is_read_as_from_its_directory() {
    let kinds = [
        RepositoryKind {
            layout: Layout::Plain,
            is_encrypted: true,
        },
        RepositoryKind {
            layout: Layout::Bundle,
            is_encrypted: false,
        },
    ];
    let tool = Tool::of("bookworm").unwrap();
    assert_eq!(tool.version, (2, 45));
    let stage = Stage::new(&tool, &postgresql_15(), &kinds).unwrap();
    let cluster = stage.cluster();
    cluster
        .pgbench("postgres", &["-i", "-q", "-s", "2", "--tablespace=one"])
        .unwrap();
    for (name, content) in [
        ("=equal=more===", "a"),
        ("ä\" {x} +%41&.gz", "bb"),
        ("empty", ""),
    ] {
        std::fs::write(cluster.data_directory().join(name), content).unwrap();
    }
    let mut chown = std::process::Command::new("chown");
    tests::postgres::run(chown.args(["-R", "postgres"]).arg(cluster.data_directory())).unwrap();
    for (number, compression) in [(1, "gz"), (2, "zst")] {
        let compression = format!("--compress-type={compression}");
        stage
            .backup(number, &["--type=full", &compression])
            .unwrap();
        cluster.pgbench("postgres", &["-t", "100"]).unwrap();
        stage
            .backup(number, &["--type=incr", &compression])
            .unwrap();
    }
    let server = S3Server::start().unwrap();
    compare_repository(&stage, 1, true, &server);
    compare_repository(&stage, 2, false, &server);
}

/// pgBackRest writes into the bucket itself, and both speak TLS with it.
#[test]
fn what_pgbackrest_itself_has_put_into_s3_is_read_as_it_restores_it() {
    let server = S3Server::start().unwrap();
    let front = server.front().unwrap();
    let kind = RepositoryKind {
        layout: Layout::Bundle,
        is_encrypted: true,
    };
    let lines = server.pgbackrest_lines(&front);
    let tool = Tool::of("bookworm").unwrap();
    let stage = Stage::new_in_store(&tool, &postgresql_15(), kind, &lines).unwrap();
    stage
        .cluster()
        .pgbench("postgres", &["-i", "-q", "-s", "1"])
        .unwrap();
    stage
        .back_up(1, &["--type=full", "--compress-type=gz"])
        .unwrap();
    let location = ObjectLocation::parse(&format!("s3://{BUCKET}/pgbackrest"));
    let location = location.unwrap().unwrap();
    let storage = Storage::objects(&location, &server.options_through(&front), &Arc::default());
    let backup = open_in(storage.unwrap(), true)
        .open(BackupChoice::Newest)
        .unwrap();
    let compared = stage.compare_with_restored(1, &*backup).unwrap();
    assert!(compared > 500, "{compared} files");
}

#[test]
fn blocks_and_their_maps_are_read_from_s3_as_from_their_directory() {
    let kind = RepositoryKind {
        layout: Layout::Blocks,
        is_encrypted: true,
    };
    let stage = one_backup("trixie", kind, "zst");
    stage.cluster().pgbench("postgres", &["-t", "100"]).unwrap();
    stage
        .backup(1, &["--type=incr", "--compress-type=zst"])
        .unwrap();
    compare_repository(&stage, 1, true, &S3Server::start().unwrap());
}

#[test]
fn a_page_costs_a_small_piece_of_its_object_and_a_scan_costs_each_piece_once() {
    let stage = one_backup("bookworm", PLAIN, "none");
    let server = S3Server::start().unwrap();
    server.put(&stage.repository(1), "p").unwrap();
    let access = Arc::new(ObjectAccess::default());
    let backup = open(&server, "p", &access);
    let largest = files(&*backup).into_iter().max_by_key(|(_, _, size)| *size);
    let (path, file, size_bytes) = largest.unwrap();
    assert!(size_bytes > 20 << 20, "{path} has {size_bytes} bytes");
    let mut page = [0; 8192];
    for page_number in [1000, 2000, 500] {
        let before = access.fetched_bytes();
        backup.read_at(file, page_number * 8192, &mut page).unwrap();
        let fetched = access.fetched_bytes() - before;
        assert!(
            (8192..=256 << 10).contains(&fetched),
            "{fetched} bytes for a page"
        );
    }
    let before = access.fetched_bytes();
    let mut offset = 0;
    let mut piece = vec![0; 64 << 10];
    while offset < size_bytes {
        offset += backup.read_at(file, offset, &mut piece).unwrap() as u64;
    }
    let fetched = access.fetched_bytes() - before;
    assert!(
        fetched <= size_bytes,
        "{fetched} bytes fetched of {size_bytes}"
    );
}

#[test]
fn what_an_object_store_refuses_is_said_at_once_and_without_its_secrets() {
    let server = S3Server::start().unwrap();
    std::fs::create_dir_all(server.bucket().join("p/backup")).unwrap();
    let wrong = server.write_credentials("wrong", "another-secret").unwrap();
    let open = |location: &str, credentials: Option<&Path>| {
        let mut options = server.options();
        if let Some(path) = credentials {
            options.credentials_file = Some(path.to_owned());
        }
        let location = ObjectLocation::parse(location).unwrap().unwrap();
        let access = S3Server::access(AT_ONCE);
        let storage = Storage::objects(&location, &options, &access)?;
        let pgbackrest = PgBackRestOptions {
            stanza: Some(STANZA.to_owned()),
            ..PgBackRestOptions::default()
        };
        open_pgbackrest_in(storage, &pgbackrest, OpenOptions::default())?.restore_points()
    };
    let inside = format!("s3://{BUCKET}/p");
    for (location, credentials, kind, told) in [
        (
            &*inside,
            Some(wrong.as_path()),
            RepositoryErrorKind::Refused,
            "credentials",
        ),
        (
            "s3://no-such-bucket/p",
            None,
            RepositoryErrorKind::Refused,
            "no such bucket",
        ),
        (
            &*inside,
            None,
            RepositoryErrorKind::Unsupported,
            "no such stanza",
        ),
    ] {
        let error = open(location, credentials).unwrap_err();
        let shown = format!("{error}; {}; {error:?}", error.remedy());
        println!("{shown}");
        assert_eq!(error.kind(), kind, "{shown}");
        assert!(error.is_permanent() && shown.contains(told), "{shown}");
        assert!(
            !shown.contains(SECRET) && !shown.contains("another-secret"),
            "{shown}"
        );
    }
}

#[test]
fn a_store_that_is_away_is_a_temporary_error_that_names_the_object() {
    let mut server = S3Server::start().unwrap();
    server.kill();
    let storage = server.storage("p", &S3Server::access(AT_ONCE)).unwrap();
    let error = open_in(storage, false).restore_points().unwrap_err();
    assert_eq!(error.kind(), RepositoryErrorKind::Unreadable);
    assert!(!error.is_permanent(), "{error}");
    let shown = error.to_string();
    assert!(
        shown.contains(&format!("s3://{BUCKET}/p/backup/{STANZA}")),
        "{shown}"
    );
}

#[test]
fn reads_wait_for_an_object_store_that_is_restarted_and_go_on() {
    let stage = one_backup("bookworm", PLAIN, "zst");
    let mut server = S3Server::start().unwrap();
    server.put(&stage.repository(1), "p").unwrap();
    let here = open_pgbackrest(
        &stage.repository(1),
        &options(false),
        OpenOptions::default(),
    );
    let here = here.unwrap().open(BackupChoice::Newest).unwrap();
    let all = files(&*here);
    let stop = AtomicBool::new(false);
    let read_count = AtomicU64::new(0);
    let wait_for = |count: u64| {
        let began = std::time::Instant::now();
        while read_count.load(Ordering::Relaxed) < count {
            assert!(began.elapsed() < Duration::from_secs(60), "no reads");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    std::thread::scope(|scope| {
        for number in 0..4 {
            let (all, here, server_there) = (
                &all,
                &here,
                server.storage("p", &S3Server::access(RETRY_FOR)),
            );
            let (stop, read_count) = (&stop, &read_count);
            let storage = server_there.unwrap();
            scope.spawn(move || {
                let mut random = StdRng::seed_from_u64(number);
                let there = open_in(storage, false).open(BackupChoice::Newest).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    let (path, file, size_bytes) = &all[random.random_range(0..all.len())];
                    let offset = random.random_range(0..=*size_bytes);
                    let (mut wanted, mut found) = (vec![0; 50_000], vec![0; 50_000]);
                    let count = here.read_at(*file, offset, &mut wanted).unwrap();
                    assert_eq!(
                        there.read_at(*file, offset, &mut found).unwrap(),
                        count,
                        "{path}"
                    );
                    assert!(wanted == found, "{path} at {offset}");
                    read_count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        wait_for(200);
        for _ in 0..3 {
            server.kill();
            std::thread::sleep(Duration::from_millis(700));
            server.start_again().unwrap();
            wait_for(read_count.load(Ordering::Relaxed) + 200);
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn an_object_that_is_replaced_or_removed_under_its_reader_is_an_error_that_names_it() {
    let stage = one_backup("bookworm", PLAIN, "none");
    let server = S3Server::start().unwrap();
    server.put(&stage.repository(1), "p").unwrap();
    let backup = open(&server, "p", &S3Server::access(AT_ONCE));
    let label = backup.restore_point().label.clone();
    let mut large = files(&*backup);
    large.retain(|(_, _, size)| *size > 2 << 20);
    assert!(large.len() >= 2, "{large:?}");
    let object = |path: &str| {
        let inside = format!("p/backup/{STANZA}/{label}/pg_data/{path}");
        (
            server.bucket().join(&inside),
            format!("s3://{BUCKET}/{inside}"),
        )
    };
    let mut page = [0; 8192];
    for (number, (path, file, size_bytes)) in large.iter().take(2).enumerate() {
        let (at, name) = object(path);
        assert_eq!(backup.read_at(*file, 0, &mut page).unwrap(), 8192);
        match number {
            0 => std::fs::write(&at, vec![1; usize::try_from(*size_bytes).unwrap()]).unwrap(),
            _ => std::fs::remove_file(&at).unwrap(),
        }
        let error = backup
            .read_at(*file, size_bytes - 8192, &mut page)
            .unwrap_err();
        let shown = error.to_string();
        println!("{shown}");
        assert!(error.is_permanent(), "{shown}");
        assert!(shown.contains(path) && shown.contains(&name), "{shown}");
        let told = ["has changed", "is not there"][number];
        assert!(shown.contains(told), "{shown}");
    }
    // What was not touched goes on.
    let (_, file, size_bytes) = large.get(2).cloned().unwrap_or_else(|| {
        let mut all = files(&*backup);
        all.retain(|(path, _, size)| *size > 0 && !large.iter().any(|(other, ..)| other == path));
        all.remove(0)
    });
    let mut all = vec![0; usize::try_from(size_bytes).unwrap()];
    assert_eq!(backup.read_at(file, 0, &mut all).unwrap(), all.len());
}
