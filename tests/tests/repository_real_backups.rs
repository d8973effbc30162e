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
    Backup, BackupChoice, BackupFormat, EntryKind, OpenOptions, Verification, open_repository,
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
        let to = match name.strip_suffix(".tar") {
            None => continue,
            Some("base") => extracted.path().to_path_buf(),
            Some("pg_wal") => extracted.path().join("pg_wal"),
            Some(oid) => extracted.path().join("pg_tblspc").join(oid),
        };
        std::fs::create_dir_all(&to).unwrap();
        run(Command::new("tar")
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
