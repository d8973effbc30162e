//! The repository crate against backups that the real `pg_basebackup` took of a real cluster under load.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests fail by panic"
)]

use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use repository::{
    Backup, BackupChoice, BackupFormat, Codec, DecodedLimits, DecodedStore, EntryKind, OpenOptions,
    RestorePoint, Verification, open_repository,
};
use tests::postgres::{BackupOptions, Installation, TestPostgres, installations, run};

/// A cluster with two tablespaces, an unlogged table and pgbench's tables spread over them.
fn cluster(installation: &Installation) -> TestPostgres {
    let mut cluster = TestPostgres::start_new(installation).unwrap();
    cluster.create_tablespace("one").unwrap();
    cluster.create_tablespace("two").unwrap();
    cluster
        .pgbench(
            "postgres",
            &[
                "-i",
                "-q",
                "-s",
                "2",
                "--tablespace=one",
                "--index-tablespace=two",
            ],
        )
        .unwrap();
    let sql =
        "CREATE UNLOGGED TABLE scratch TABLESPACE two AS SELECT generate_series(1, 1000) AS n";
    cluster.psql("postgres", sql).unwrap();
    cluster
}

fn open(repository: &Path, label: &str) -> Arc<dyn Backup> {
    let repository = open_repository(repository, OpenOptions::default()).unwrap();
    repository.open(BackupChoice::Label(label)).unwrap()
}

/// Every file's content in pieces of an odd size equals the file that `place` finds on disk; returns how many there were.
fn compare(backup: &dyn Backup, place: impl Fn(&str) -> PathBuf) -> u64 {
    let mut buffer = vec![0; 100_003];
    let mut count = 0;
    for entry in backup.tree().entries() {
        let path = place(entry.path);
        let EntryKind::File { file, size_bytes } = entry.kind else {
            assert!(path.is_dir(), "{}", entry.path);
            continue;
        };
        let wanted = std::fs::read(&path).unwrap();
        assert_eq!(wanted.len() as u64, size_bytes, "{}", entry.path);
        let mut found = Vec::new();
        loop {
            let read = backup
                .read_at(file, found.len() as u64, &mut buffer)
                .unwrap();
            if read == 0 {
                break;
            }
            found.extend_from_slice(&buffer[..read]);
        }
        assert!(found == wanted, "{} differs", entry.path);
        count += 1;
    }
    assert_eq!(count, backup.tree().file_count());
    count
}

fn files_on_disk(directory: &Path) -> u64 {
    let found = Command::new("find")
        .args(["-L"])
        .arg(directory)
        .args(["-type", "f"])
        .output()
        .unwrap();
    found.stdout.iter().filter(|byte| **byte == b'\n').count() as u64
}

fn check_restore_point(backup: &dyn Backup, format: BackupFormat, major: u32) {
    let point = backup.restore_point();
    assert_eq!((point.format, point.postgresql_major), (format, major));
    assert_eq!(point.verification, Verification::Checksums);
    assert_eq!(point.tablespaces.len(), 2);
    assert!(point.started_at.is_some());
    assert!(point.recoverable.to_lsn.unwrap() > point.recoverable.from_lsn);
    assert_eq!(point.system_identifier.is_some(), major >= 17);
    assert_eq!(
        (point.size_bytes, point.file_count),
        (backup.tree().size_bytes(), backup.tree().file_count())
    );
}

fn verify_all(backup: &dyn Backup) -> repository::VerifyReport {
    backup
        .verify_all(&mut |_| ControlFlow::Continue(()))
        .unwrap()
}

#[test]
fn a_plain_backup_taken_under_load_reads_as_the_files_on_disk() {
    for installation in installations() {
        let cluster = cluster(&installation);
        let repository = tempfile::tempdir().unwrap();
        let directory = repository.path().join("monday");
        {
            let _load = cluster
                .pgbench_in_background("postgres", &["-c", "4", "-T", "60"])
                .unwrap();
            cluster
                .backup(&directory, &BackupOptions::default())
                .unwrap();
        }
        cluster.verify_backup(&directory).unwrap();
        let backup = open(repository.path(), "monday");
        check_restore_point(
            &*backup,
            BackupFormat::PgBasebackupPlain,
            installation.major,
        );
        let count = compare(&*backup, |path| directory.join(path));
        assert_eq!(
            count,
            files_on_disk(&directory) - 1,
            "all but backup_manifest"
        );
        assert!(backup.corrupt_files().is_empty());
        let report = verify_all(&*backup);
        // What has no checksum is WAL and what recovery settings change.
        assert!(
            report.verified_count > 900 && report.unverified_count < 20,
            "{report:?}"
        );

        let relation = cluster
            .psql(
                "postgres",
                "SELECT pg_relation_filepath('pgbench_accounts')",
            )
            .unwrap();
        flip(&directory.join(&relation), 8192 * 3 + 17);
        assert!(cluster.verify_backup(&directory).is_err());
        let backup = open(repository.path(), "monday");
        let report = verify_all(&*backup);
        let names: Vec<_> = report
            .corrupt
            .iter()
            .map(|file| backup.tree().file(*file).unwrap().path)
            .collect();
        assert_eq!(names, [relation.as_str()]);
        let error = backup
            .read_at(report.corrupt[0], 0, &mut [0; 10])
            .unwrap_err();
        assert!(error.is_permanent());
        assert_eq!(error.file(), relation);
    }
}

#[test]
fn a_tar_backup_taken_under_load_reads_as_what_tar_extracts() {
    for installation in installations() {
        let cluster = cluster(&installation);
        for wal in ["stream", "fetch"] {
            let repository = tempfile::tempdir().unwrap();
            let directory = repository.path().join("monday");
            {
                let _load = cluster
                    .pgbench_in_background("postgres", &["-c", "4", "-T", "60"])
                    .unwrap();
                let options = BackupOptions {
                    tar: true,
                    arguments: vec![
                        format!("--wal-method={wal}"),
                        "--manifest-checksums=SHA256".into(),
                    ],
                };
                cluster.backup(&directory, &options).unwrap();
            }
            let backup = open(repository.path(), "monday");
            check_restore_point(&*backup, BackupFormat::PgBasebackupTar, installation.major);
            let extracted = extract(&directory);
            let count = compare(&*backup, |path| extracted.path().join(path));
            assert_eq!(count, files_on_disk(extracted.path()));
            let report = verify_all(&*backup);
            assert!(
                report.verified_count > 900 && report.corrupt.is_empty(),
                "{report:?}"
            );

            let file = backup.tree().find("base/1/1259").unwrap();
            let content = std::fs::read(extracted.path().join(file.path)).unwrap();
            let archive = std::fs::read(directory.join("base.tar")).unwrap();
            let at = archive
                .windows(4096)
                .position(|window| window == &content[..4096])
                .unwrap();
            flip(&directory.join("base.tar"), at as u64 + 5);
            let report = verify_all(&*open(repository.path(), "monday"));
            assert_eq!(report.corrupt.len(), 1);
        }
    }
}

/// What a compressed tar backup is made with: `pg_basebackup --compress=…`, or a tool afterwards where this PostgreSQL lacks the library.
fn compressions(installation: &Installation) -> Vec<(Codec, String)> {
    let configured = run(&mut Command::new(installation.bin.join("pg_config"))).unwrap();
    let configured = String::from_utf8(configured.stdout).unwrap();
    let mut all = Vec::new();
    for (codec, name, server) in [
        (Codec::Gzip, "gzip", "server-gzip:level=1"),
        (Codec::Lz4, "lz4", "server-lz4:level=1"),
        (Codec::Zstd, "zstd", "server-zstd:level=3,workers=2"),
    ] {
        // gzip is there unless it was left out, the others if they were asked for.
        if name == "gzip" || configured.contains(&format!("--with-{name}")) {
            all.push((codec, format!("client-{name}")));
            all.push((codec, server.to_owned()));
        } else {
            all.push((codec, name.to_owned()));
        }
    }
    all
}

/// Takes a tar backup under load, compressed as [`compressions`] says.
fn take_compressed(cluster: &TestPostgres, directory: &Path, compression: &str) {
    let is_tool = !compression.contains('-');
    let mut options = BackupOptions {
        tar: true,
        ..BackupOptions::default()
    };
    if !is_tool {
        options.arguments.push(format!("--compress={compression}"));
    }
    {
        let _load = cluster
            .pgbench_in_background("postgres", &["-c", "4", "-T", "60"])
            .unwrap();
        cluster.backup(directory, &options).unwrap();
    }
    if is_tool {
        let archives = std::fs::read_dir(directory).unwrap().flatten();
        let archives = archives.filter(|file| file.path().extension() == Some("tar".as_ref()));
        for archive in archives {
            // Without -m lz4 would write to its standard output here.
            let many = if compression == "lz4" {
                &["-m"][..]
            } else {
                &[]
            };
            run(Command::new(compression)
                .args(["-q", "--rm"])
                .args(many)
                .arg(archive.path()))
            .unwrap();
        }
    }
}

/// What the archives of a repository's only backup take.
fn stored_bytes(repository: &Path) -> u64 {
    let mut all = 0;
    for entry in std::fs::read_dir(repository.join("monday")).unwrap() {
        let entry = entry.unwrap();
        // Those that are not compressed are not gone through.
        let is_compressed = !matches!(
            entry.path().extension().and_then(|e| e.to_str()),
            None | Some("tar")
        );
        if is_compressed {
            all += entry.metadata().unwrap().len();
        }
    }
    all
}

fn open_with_store(repository: &Path) -> (Arc<dyn Backup>, Arc<DecodedStore>) {
    let store = Arc::new(DecodedStore::new(DecodedLimits::default()));
    let options = OpenOptions {
        decoded: Some(Arc::clone(&store)),
        ..OpenOptions::default()
    };
    let progress = Arc::clone(&options.progress);
    let opened = open_repository(repository, options).unwrap();
    let backup = opened.open(BackupChoice::Newest).unwrap();
    // Each archive has been gone through once.
    let archives = stored_bytes(repository);
    assert_eq!(
        (progress.done_bytes(), progress.total_bytes()),
        (archives, archives)
    );
    (backup, store)
}

#[test]
fn a_compressed_tar_backup_taken_under_load_reads_as_what_tar_extracts() {
    for installation in installations() {
        let cluster = cluster(&installation);
        let accounts = "SELECT pg_relation_filepath('pgbench_accounts')";
        let accounts = cluster.psql("postgres", accounts).unwrap();
        for (codec, compression) in compressions(&installation) {
            let repository = tempfile::tempdir().unwrap();
            let directory = repository.path().join("monday");
            take_compressed(&cluster, &directory, &compression);
            let (backup, store) = open_with_store(repository.path());
            let format = BackupFormat::PgBasebackupCompressedTar(codec);
            check_restore_point(&*backup, format, installation.major);
            check_listed(repository.path(), backup.restore_point());

            let (file, size_bytes) = backup.tree().find_file(&accounts).unwrap();
            assert!(size_bytes > 20 << 20);
            let mut page = [0; 8192];
            let before = store.decoded_bytes();
            backup.read_at(file, size_bytes - 8192, &mut page).unwrap();
            let decoded = store.decoded_bytes() - before;
            assert!(
                (8192..4 << 20).contains(&decoded),
                "{compression}: a far page costs {decoded} bytes"
            );

            let extracted = extract(&directory);
            let count = compare(&*backup, |path| extracted.path().join(path));
            assert_eq!(count, files_on_disk(extracted.path()), "{compression}");
            let wanted = std::fs::File::open(extracted.path().join(&accounts)).unwrap();
            let mut expected = [0; 8192];
            for turn in 0..200_u64 {
                let offset = turn.wrapping_mul(7_919_317) % (size_bytes - 8192);
                backup.read_at(file, offset, &mut page).unwrap();
                wanted.read_exact_at(&mut expected, offset).unwrap();
                assert!(page == expected, "{compression}: {offset} differs");
            }
            let report = verify_all(&*backup);
            assert!(
                report.verified_count > 900 && report.corrupt.is_empty(),
                "{compression}: {report:?}"
            );
        }
    }
}

/// What is listed without decoding the backup is what opening it finds, but for the WAL.
fn check_listed(repository: &Path, opened: &RestorePoint) {
    let listed = open_repository(repository, OpenOptions::default()).unwrap();
    let mut listed = listed.restore_points().unwrap().restore_points.remove(0);
    assert!((900..opened.file_count).contains(&listed.file_count));
    assert!((20 << 20..opened.size_bytes).contains(&listed.size_bytes));
    (listed.file_count, listed.size_bytes) = (opened.file_count, opened.size_bytes);
    assert_eq!(&listed, opened);
}

#[test]
fn damage_in_a_compressed_tar_is_named_and_never_read_as_data() {
    let installation = installations().remove(0);
    let cluster = cluster(&installation);
    for (codec, compression) in compressions(&installation) {
        if compression.starts_with("server") {
            continue;
        }
        let repository = tempfile::tempdir().unwrap();
        let directory = repository.path().join("monday");
        take_compressed(&cluster, &directory, &compression);
        let extracted = extract(&directory);
        let archives = std::fs::read_dir(&directory).unwrap().flatten();
        let archives = archives.map(|archive| archive.file_name().into_string().unwrap());
        let mut archives: Vec<_> = archives.filter(|name| name.contains(".tar.")).collect();
        archives.sort();
        // pg_basebackup leaves the WAL as it is with some.
        assert!(archives.len() >= 3, "{archives:?}");
        let mut refused_count = 0;
        for turn in 0..10_u64 {
            let name = &archives[usize::try_from(turn).unwrap() % archives.len()];
            let archive = directory.join(name);
            let size_bytes = archive.metadata().unwrap().len();
            let at = turn.wrapping_mul(1_234_577_777) % size_bytes;
            flip(&archive, at);
            let opened = open_repository(repository.path(), OpenOptions::default()).unwrap();
            match opened.open(BackupChoice::Newest) {
                Err(error) => {
                    refused_count += 1;
                    let said = error.to_string();
                    assert!(error.is_permanent(), "{codec} {name} {at}: {said}");
                    assert!(said.contains(name.as_str()), "{codec} {name} {at}: {said}");
                }
                // What is shown at all is right, or has a checksum that says otherwise when the file has been read.
                Ok(backup) => compare_sound(&*backup, extracted.path()),
            }
            flip(&archive, at);
            if turn < 4 {
                let whole = std::fs::read(&archive).unwrap();
                std::fs::write(&archive, &whole[..usize::try_from(at).unwrap()]).unwrap();
                let error = opened.open(BackupChoice::Newest).map(drop).unwrap_err();
                let said = error.to_string();
                let is_named = said.contains(name.as_str()) && said.contains("truncated");
                assert!(is_named, "{codec} {name} {at}: {said}");
                std::fs::write(&archive, whole).unwrap();
            }
        }
        assert!(refused_count > 0, "{codec}: nothing was noticed");
        let report = verify_all(&*open(repository.path(), "monday"));
        assert!(report.corrupt.is_empty(), "{codec}: put back");
    }
}

/// Each file is as extracted, or reading it whole is an error that names it.
fn compare_sound(backup: &dyn Backup, extracted: &Path) {
    let mut buffer = vec![0; 1 << 20];
    for entry in backup.tree().entries() {
        let EntryKind::File { file, .. } = entry.kind else {
            continue;
        };
        let mut found = Vec::new();
        let is_whole = loop {
            match backup.read_at(file, found.len() as u64, &mut buffer) {
                Ok(0) => break true,
                Ok(count) => found.extend_from_slice(&buffer[..count]),
                Err(error) => {
                    assert_eq!(error.file(), entry.path, "{error}");
                    break false;
                }
            }
        };
        if is_whole {
            let wanted = std::fs::read(extracted.join(entry.path)).unwrap();
            assert!(found == wanted, "{} differs", entry.path);
        }
    }
}

#[test]
fn links_that_leave_the_repository_are_refused_until_allowed() {
    let installation = installations()
        .into_iter()
        .next()
        .expect("a PostgreSQL is installed");
    let cluster = cluster(&installation);
    let repository = tempfile::tempdir().unwrap();
    cluster
        .backup(&repository.path().join("monday"), &BackupOptions::default())
        .unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let moved = elsewhere.path().join("ts");
    let linked = repository.path().join("monday.tablespace_one");
    run(Command::new("mv").arg(&linked).arg(&moved)).unwrap();
    let links = std::fs::read_dir(repository.path().join("monday/pg_tblspc")).unwrap();
    let link = links
        .flatten()
        .find(|link| std::fs::read_link(link.path()).unwrap() == linked)
        .unwrap();
    std::fs::remove_file(link.path()).unwrap();
    std::os::unix::fs::symlink(&moved, link.path()).unwrap();
    let name = format!("pg_tblspc/{}", link.file_name().to_str().unwrap());
    let error = open_repository(repository.path(), OpenOptions::default())
        .unwrap()
        .open(BackupChoice::Newest)
        .unwrap_err();
    assert_eq!(error.file(), name);
    assert!(
        error.remedy().contains("tablespace_directories"),
        "{}",
        error.remedy()
    );
    let options = OpenOptions {
        tablespace_directories: vec![elsewhere.path().to_path_buf()],
        ..OpenOptions::default()
    };
    let backup = open_repository(repository.path(), options)
        .unwrap()
        .open(BackupChoice::Newest)
        .unwrap();
    assert!(verify_all(&*backup).corrupt.is_empty());
}

/// Unpacks as an administrator would: `base.tar`, the tablespaces below `pg_tblspc/`, the WAL below `pg_wal/`.
fn extract(directory: &Path) -> tempfile::TempDir {
    let extracted = tempfile::tempdir().unwrap();
    for archive in std::fs::read_dir(directory).unwrap().flatten() {
        let name = archive.file_name().into_string().unwrap();
        let Some((stem, extension)) = name.split_once(".tar") else {
            continue;
        };
        let to = match stem {
            "base" => extracted.path().to_path_buf(),
            "pg_wal" => extracted.path().join("pg_wal"),
            oid => extracted.path().join("pg_tblspc").join(oid),
        };
        std::fs::create_dir_all(&to).unwrap();
        let program = match extension {
            "" => None,
            ".gz" => Some("--use-compress-program=gzip"),
            ".lz4" => Some("--use-compress-program=lz4"),
            ".zst" => Some("--use-compress-program=zstd"),
            other => panic!("no program for {other}"),
        };
        run(Command::new("tar")
            .args(program)
            .arg("-xf")
            .arg(archive.path())
            .arg("-C")
            .arg(to))
        .unwrap();
    }
    extracted
}

fn flip(path: &Path, at: u64) {
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}
