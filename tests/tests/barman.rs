//! Our reader of Barman's servers against the real Barman: whatever `barman recover` writes, we read.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests fail by panic, and print what was tried"
)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use repository::barman::open_barman;
use repository::{
    Backup, BackupChoice, BackupFormat, BackupKind, OpenOptions, Repository, RepositoryErrorKind,
    Verification,
};
use tests::barman::{PLAIN, RSYNC, Stage, TAR, TAR_GZIP, TAR_LZ4, TAR_ZSTD, of_debian, of_version};
use tests::postgres::{Installation, installations, run};
use tests::{same_files, tree_hash};

fn postgresql(major: u32) -> Installation {
    let all = installations();
    let found = all.into_iter().find(|found| found.major == major);
    found.unwrap_or_else(|| panic!("PostgreSQL {major} is not installed; ./test installs it"))
}

fn random() -> StdRng {
    let seed = std::env::var("PGINSTANT_TEST_SEED").ok();
    let seed = seed.map_or_else(|| rand::rng().random(), |text| text.parse().unwrap());
    println!("again with: PGINSTANT_TEST_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

fn open_server(path: &Path) -> Box<dyn Repository> {
    open_barman(path, OpenOptions::default()).unwrap()
}

fn open(stage: &Stage, server: &str, id: &str) -> Arc<dyn Backup> {
    let server = open_server(&stage.server(server));
    server.open(BackupChoice::Label(id)).unwrap()
}

fn fill(stage: &Stage) {
    let cluster = stage.cluster();
    cluster
        .pgbench("postgres", &["-i", "-q", "-s", "1", "--tablespace=one"])
        .unwrap();
    let sql = "CREATE UNLOGGED TABLE scratch AS SELECT g FROM generate_series(1, 9000) g";
    cluster.psql("postgres", sql).unwrap();
}

/// Every file is as `barman recover` has it, where it has not made its own of it; none is missing.
fn compare(stage: &Stage, server: &str, id: &str, recover: &[&str], random: &mut StdRng) {
    let backup = open(stage, server, id);
    let recovered = stage.recover(server, id, recover).unwrap();
    let data = recovered.path().join("data");
    // What recover changes (archive_command, recovery settings) it keeps beside it as it was. It makes links instead of the map of
    // tablespaces, and what is in pg_wal itself.
    let place = |path: &str| -> Option<PathBuf> {
        let kept = data.join(format!("{path}.origin"));
        let is_of_recover = matches!(
            path,
            "tablespace_map" | "pg_wal/archive_status" | "pg_wal/summaries"
        );
        let place = if kept.exists() { kept } else { data.join(path) };
        (!is_of_recover).then_some(place)
    };
    let mut found = same_files::compare(&*backup, random, place).unwrap();
    let mut wanted = same_files::files_of(&data).unwrap();
    let segments = found
        .iter()
        .filter(|path| path.starts_with("pg_wal/0"))
        .count();
    assert!(segments > 0, "the WAL of backup {id}");
    // recover copies all WAL that there is; manifests and its own files are not a cluster's.
    found.retain(|path| !path.starts_with("pg_wal/"));
    wanted.retain(|path| {
        let is_of_recover = path.ends_with(".origin") || path.starts_with(".barman");
        !is_of_recover && !path.starts_with("pg_wal/") && !path.starts_with("backup_manifest")
    });
    let differs: Vec<_> = found.symmetric_difference(&wanted).collect();
    assert!(differs.is_empty(), "{server} {id}: {differs:?}");
    assert!(backup.corrupt_files().is_empty());
}

fn check_restore_point(backup: &dyn Backup, server: &str, id: &str, kind: BackupKind) {
    let point = backup.restore_point();
    assert_eq!(
        (point.label.as_str(), point.format, point.kind),
        (id, BackupFormat::Barman, kind)
    );
    let verification = match server {
        RSYNC => Verification::Unverified,
        _ => Verification::Checksums,
    };
    assert_eq!(point.verification, verification);
    assert_eq!(point.tablespaces.len(), 1);
    assert!(point.tablespaces[0].location.ends_with("tablespace_one"));
    assert!(point.started_at.unwrap() < point.stopped_at.unwrap());
    assert!(point.recoverable.to_lsn.unwrap() > point.recoverable.from_lsn);
    assert!(point.system_identifier.is_some());
    let tree = backup.tree();
    assert_eq!(
        (point.size_bytes, point.file_count),
        (tree.size_bytes(), tree.file_count())
    );
}

/// Takes a full backup on each of these servers, and compares it; gives their ids.
fn full_backups(stage: &Stage, servers: &[&str], random: &mut StdRng) -> Vec<String> {
    let mut taken = Vec::new();
    for &server in servers {
        stage.cluster().pgbench("postgres", &["-t", "50"]).unwrap();
        let id = stage.backup(server, &[]).unwrap();
        let hash = tree_hash::of(&stage.server(server).join("base")).unwrap();
        check_restore_point(&*open(stage, server, &id), server, &id, BackupKind::Full);
        compare(stage, server, &id, &[], random);
        let now = tree_hash::of(&stage.server(server).join("base")).unwrap();
        assert_eq!(hash, now, "the backup was changed");
        taken.push(id);
    }
    taken
}

#[test]
fn whatever_debians_barman_recovers_is_read_from_its_server() {
    let mut random = random();
    let stage = Stage::new(of_debian(), &postgresql(15)).unwrap();
    fill(&stage);
    // By rsync twice, so that files are linked.
    let taken = full_backups(&stage, &[RSYNC, RSYNC, PLAIN, TAR], &mut random);
    let [older, id, ..] = taken.as_slice() else {
        panic!("{taken:?}");
    };
    let server = open_server(&stage.server(RSYNC));
    let points = server.restore_points().unwrap();
    let labels: Vec<_> = points
        .restore_points
        .iter()
        .map(|point| &point.label)
        .collect();
    assert_eq!(labels, [id, older]);
    assert!(points.problems.is_empty() && !points.truncated);
    assert_eq!(
        server
            .open(BackupChoice::Newest)
            .unwrap()
            .restore_point()
            .label,
        *id
    );
    what_cannot_be_used_is_said(&stage, id);
    wal_is_found_and_checked(&stage, id);
}

/// Compressed by `pg_basebackup` itself; what Barman makes of them it decodes in its place for that.
#[test]
fn compressed_archives_of_each_barman_are_read_from_its_server() {
    let mut random = random();
    // Barman 3.4 lets only the server compress by the younger codecs.
    for (program, servers) in [
        (of_debian(), &[TAR_GZIP][..]),
        (of_version("3.13.3"), &[RSYNC, TAR_GZIP, TAR_LZ4, TAR_ZSTD]),
    ] {
        let stage = Stage::with_servers(program, &postgresql(15), servers).unwrap();
        fill(&stage);
        full_backups(&stage, servers, &mut random);
    }
}

#[test]
fn whatever_todays_barman_recovers_is_read_from_its_server() {
    let mut random = random();
    let stage = Stage::new(of_version("3.19.1"), &postgresql(18)).unwrap();
    for sql in [
        "ALTER SYSTEM SET summarize_wal = on",
        "SELECT pg_reload_conf()",
    ] {
        stage.cluster().psql("postgres", sql).unwrap();
    }
    fill(&stage);
    let taken = full_backups(&stage, &[RSYNC, PLAIN], &mut random);
    let staging = tempfile::Builder::new()
        .prefix("staging-")
        .tempdir_in("/var/tmp")
        .unwrap();
    tests::postgres::give_to_postgres(staging.path()).unwrap();
    let recover = stage.staging(staging.path()).unwrap();
    let recover: Vec<&str> = recover.iter().map(String::as_str).collect();
    let mut references = vec![taken[1].clone()];
    for _ in 0..2 {
        stage.cluster().pgbench("postgres", &["-t", "50"]).unwrap();
        let id = stage.backup(PLAIN, &["--incremental", "latest"]).unwrap();
        let backup = open(&stage, PLAIN, &id);
        check_restore_point(&*backup, PLAIN, &id, BackupKind::Incremental);
        assert_eq!(backup.restore_point().references, references);
        compare(&stage, PLAIN, &id, &recover, &mut random);
        references.push(id);
    }
}

/// Changes `backup.info` to what other backups say there.
fn what_cannot_be_used_is_said(stage: &Stage, id: &str) {
    let server = stage.server(RSYNC);
    let path = [
        server.join(format!("base/{id}/backup.info")),
        server.join(format!("meta/{id}-backup.info")),
    ]
    .into_iter()
    .find(|path| path.exists())
    .unwrap();
    let sound = std::fs::read_to_string(&path).unwrap();
    for (from, to, wanted) in [
        ("status=DONE", "status=FAILED", "status FAILED"),
        ("mode=rsync", "mode=snapshot", "snapshot backup"),
        ("systemid=", "systemid=1", "is WAL of cluster"),
        ("timeline=1", "timeline=2", "and backup.info says"),
    ] {
        std::fs::write(&path, sound.replacen(from, to, 1)).unwrap();
        let repository = open_server(&server);
        let error = repository
            .open(BackupChoice::Label(id))
            .map(drop)
            .unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(wanted) && error.is_permanent(),
            "{to}: {text}"
        );
        let points = repository.restore_points().unwrap();
        assert_eq!(
            (points.restore_points.len(), points.problems.len()),
            (1, 1),
            "{to}"
        );
        assert_eq!(points.problems[0].0, id);
    }
    std::fs::write(
        &path,
        sound.replace("status=DONE", "status=WAITING_FOR_WALS"),
    )
    .unwrap();
    open(stage, RSYNC, id);
    std::fs::write(&path, sound).unwrap();
    for unknown in ["", "..", "../20261121T164723", "latest", "20000101T000000"] {
        let error = open_server(&server)
            .open(BackupChoice::Label(unknown))
            .map(drop);
        assert_eq!(
            error.unwrap_err().kind(),
            RepositoryErrorKind::UnknownBackup,
            "{unknown}"
        );
    }
    let home = server.parent().unwrap();
    let error = open_barman(home, OpenOptions::default())
        .map(drop)
        .unwrap_err();
    assert!(error.to_string().contains("3 servers"), "{error}");
}

/// A segment that is not archived yet is still in `streaming`; one that is damaged is no WAL.
fn wal_is_found_and_checked(stage: &Stage, id: &str) {
    let backup = open(stage, RSYNC, id);
    let entry = backup
        .tree()
        .below("pg_wal")
        .find(|entry| entry.path.starts_with("pg_wal/0"));
    let shown = entry.unwrap().path.to_owned();
    let (file, size_bytes) = backup.tree().find_file(&shown).unwrap();
    let mut wanted = vec![0; usize::try_from(size_bytes).unwrap()];
    backup.read_at(file, 0, &mut wanted).unwrap();

    let name = shown.strip_prefix("pg_wal/").unwrap();
    let archived = stage
        .server(RSYNC)
        .join(format!("wals/{}/{name}", &name[..16]));
    let streamed = stage.server(RSYNC).join("streaming").join(name);
    let stored = std::fs::read(&archived).unwrap();
    assert_eq!(stored[..2], [0x1F, 0x8B]);
    std::fs::remove_file(&archived).unwrap();
    let why_not = || {
        let opened = open_server(&stage.server(RSYNC)).open(BackupChoice::Label(id));
        let error = opened.map(drop).unwrap_err();
        assert!(
            error.is_permanent() && error.file().contains(name),
            "{error}"
        );
        error.to_string()
    };
    assert!(why_not().contains("is not in Barman's archive"));
    std::fs::create_dir_all(streamed.parent().unwrap()).unwrap();
    std::fs::write(&streamed, &wanted).unwrap();
    let backup = open(stage, RSYNC, id);
    let mut found = vec![0; wanted.len()];
    backup.read_at(file, 0, &mut found).unwrap();
    assert!(found == wanted);
    std::fs::remove_file(&streamed).unwrap();

    for program in ["zstd", "lz4", "xz"] {
        let plain = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(plain.path(), &wanted).unwrap();
        let mut command = std::process::Command::new(program);
        let compressed = run(command.args(["-q", "-c"]).arg(plain.path()))
            .unwrap()
            .stdout;
        std::fs::write(&archived, compressed).unwrap();
        let backup = open(stage, RSYNC, id);
        backup.read_at(file, 0, &mut found).unwrap();
        assert!(found == wanted, "{program}");
    }
    // Looks compressed, and is not.
    std::fs::write(&archived, b"\xfd7zXZ\0rest").unwrap();
    why_not();
    std::fs::write(&archived, [7; 100]).unwrap();
    assert!(why_not().contains("is no WAL"));
    std::fs::write(&archived, &wanted[..4096]).unwrap();
    assert!(why_not().contains("has 4096 bytes"));
    std::fs::write(&archived, &stored[..stored.len() / 2]).unwrap();
    let backup = open(stage, RSYNC, id);
    let error = backup
        .read_at(file, size_bytes - 10, &mut [0; 10])
        .unwrap_err();
    assert_eq!(
        (error.kind(), error.file()),
        (RepositoryErrorKind::Corrupt, shown.as_str())
    );
    assert_eq!(backup.corrupt_files()[0].file, file);
    std::fs::write(&archived, stored).unwrap();
    open(stage, RSYNC, id);
}
