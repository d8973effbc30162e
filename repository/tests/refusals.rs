//! What is refused, by the name of the file that shows why; and that a tree reads the same from a directory and from tar.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests fail by panic"
)]

use std::collections::BTreeMap;
use std::io::{Seek, Write};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use proptest::prelude::*;
use repository::{
    Backup, BackupChoice, DecodedLimits, DecodedStore, EntryKind, OpenOptions, RepositoryError,
    RepositoryErrorKind, Verification, WalPlace, open_repository,
};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

const LABEL: &str = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n\
    CHECKPOINT LOCATION: 0/2000060\nSTART TIME: 2026-11-21 04:53:06 UTC\n";

/// The smallest backup that there is, as files.
fn smallest() -> BTreeMap<String, Vec<u8>> {
    BTreeMap::from([
        ("PG_VERSION".into(), b"15\n".to_vec()),
        ("backup_label".into(), LABEL.into()),
        ("global/pg_control".into(), vec![1; 8192]),
        ("pg_wal/000000010000000000000002".into(), vec![2; 1 << 20]),
    ])
}

fn write(directory: &Path, files: &BTreeMap<String, Vec<u8>>) {
    for (path, content) in files {
        let path = directory.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
}

/// A repository with one plain backup, `b`. A WAL segment of 1 MiB has position 0/2000028 in file 0…020.
fn plain() -> TempDir {
    let repository = tempfile::tempdir().unwrap();
    let mut files = smallest();
    let wal = files.remove("pg_wal/000000010000000000000002").unwrap();
    files.insert("pg_wal/000000010000000000000020".into(), wal);
    files.insert(
        "backup_label".into(),
        LABEL.replace("0002)", "0020)").into(),
    );
    write(&repository.path().join("b"), &files);
    repository
}

/// A manifest of what is in the directory, with changes made to its text before it is sealed.
fn add_manifest(directory: &Path, change: impl Fn(String) -> String) {
    let mut files = Vec::new();
    for path in ["PG_VERSION", "backup_label", "global/pg_control"] {
        let content = std::fs::read(directory.join(path)).unwrap();
        let crc: String = crc32c::crc32c(&content)
            .to_le_bytes()
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        let size = content.len();
        files.push(format!(
            r#"{{ "Path": "{path}", "Size": {size}, "Last-Modified": "2026-11-21 04:53:06 GMT", "Checksum-Algorithm": "CRC32C", "Checksum": "{crc}" }}"#
        ));
    }
    let body = change(format!(
        "{{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n{}],\n\"WAL-Ranges\": [\n\
         {{ \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000100\" }}\n],\n",
        files.join(",\n")
    ));
    let digest: String = Sha256::digest(body.as_bytes())
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    std::fs::write(
        directory.join("backup_manifest"),
        format!("{body}\"Manifest-Checksum\": \"{digest}\"}}\n"),
    )
    .unwrap();
}

fn open(repository: &Path) -> Result<Arc<dyn Backup>, RepositoryError> {
    open_repository(repository, OpenOptions::default())?.open(BackupChoice::Label("b"))
}

#[test]
fn a_small_backup_opens_with_and_without_manifest() {
    let repository = plain();
    let backup = open(repository.path()).unwrap();
    assert_eq!(
        backup.restore_point().verification,
        Verification::Unverified
    );
    add_manifest(&repository.path().join("b"), |text| text);
    let backup = open(repository.path()).unwrap();
    assert_eq!(backup.restore_point().verification, Verification::Checksums);
    assert_eq!(
        backup
            .restore_point()
            .recoverable
            .to_lsn
            .unwrap()
            .to_string(),
        "0/2000100"
    );
}

#[test]
fn a_directory_that_is_itself_a_backup_is_a_repository_of_one() {
    let repository = plain();
    let itself = open_repository(&repository.path().join("b"), OpenOptions::default()).unwrap();
    assert_eq!(
        itself.restore_points().unwrap().restore_points[0].label,
        "b"
    );
    itself.open(BackupChoice::Newest).unwrap();
}

#[test]
fn what_is_no_sound_backup_is_refused_by_the_name_of_the_file() {
    use RepositoryErrorKind::{Corrupt, Unsupported};
    type Damage = fn(&Path);
    let table: &[(&str, RepositoryErrorKind, Damage)] = &[
        ("backup_label", Unsupported, |b| {
            std::fs::remove_file(b.join("backup_label")).unwrap()
        }),
        ("backup_label", Corrupt, |b| {
            add_manifest(b, |text| text);
            std::fs::remove_file(b.join("backup_label")).unwrap();
        }),
        ("global/pg_control", Unsupported, |b| {
            std::fs::remove_file(b.join("global/pg_control")).unwrap()
        }),
        ("backup_manifest.tmp", Unsupported, |b| {
            std::fs::write(b.join("backup_manifest.tmp"), "").unwrap()
        }),
        ("pg_wal/000000010000000000000020", Unsupported, |b| {
            std::fs::remove_file(b.join("pg_wal/000000010000000000000020")).unwrap();
        }),
        ("PG_VERSION", Unsupported, |b| {
            std::fs::write(b.join("PG_VERSION"), "9.6\n").unwrap()
        }),
        ("PG_VERSION", Corrupt, |b| {
            std::fs::write(b.join("PG_VERSION"), "x").unwrap()
        }),
        ("base/1/INCREMENTAL.1259", Corrupt, |b| {
            std::fs::create_dir_all(b.join("base/1")).unwrap();
            std::fs::write(b.join("base/1/INCREMENTAL.1259"), "").unwrap();
        }),
        ("base", Corrupt, |b| {
            symlink("/etc", b.join("base")).unwrap()
        }),
        ("PG_HOSTS", Corrupt, |b| {
            symlink("/etc/hosts", b.join("PG_HOSTS")).unwrap()
        }),
        ("pg_tblspc/1", Unsupported, |b| {
            std::fs::create_dir(b.join("pg_tblspc")).unwrap();
            symlink("/etc", b.join("pg_tblspc/1")).unwrap();
        }),
        ("pg_tblspc/1", Unsupported, |b| {
            std::fs::create_dir(b.join("pg_tblspc")).unwrap();
            symlink("/nowhere", b.join("pg_tblspc/1")).unwrap();
        }),
        ("pg_tblspc/1", Corrupt, |b| {
            std::fs::write(b.join("tablespace_map"), "1 /srv/one\n").unwrap()
        }),
        ("a\\nb", Corrupt, |b| {
            std::fs::write(b.join("a\nb"), "").unwrap()
        }),
        ("extra", Corrupt, |b| {
            add_manifest(b, |text| text);
            std::fs::write(b.join("extra"), "x").unwrap();
        }),
        ("gone", Corrupt, |b| {
            add_manifest(b, |text| text.replace("PG_VERSION", "gone"))
        }),
        ("PG_VERSION", Corrupt, |b| {
            add_manifest(b, |text| text.replace("\"Size\": 3,", "\"Size\": 4,"))
        }),
        ("PG_VERSION", Corrupt, |b| {
            add_manifest(b, |text| {
                text.replacen("[\n", "[\n{ \"Path\": \"PG_VERSION\", \"Size\": 3 },\n", 1)
            })
        }),
        ("../../etc/passwd", Corrupt, |b| {
            add_manifest(b, |text| text.replace("PG_VERSION", "../../etc/passwd"))
        }),
        ("backup_manifest", Corrupt, |b| {
            std::fs::write(b.join("backup_manifest"), "{}\n").unwrap()
        }),
        ("pg_wal/000000010000000000000021", Unsupported, |b| {
            add_manifest(b, |text| text.replace("0/2000100", "0/2100100"))
        }),
    ];
    for (number, (file, kind, damage)) in table.iter().enumerate() {
        let repository = plain();
        damage(&repository.path().join("b"));
        let error = open(repository.path()).map(drop).unwrap_err();
        assert_eq!(
            (error.file(), error.kind()),
            (*file, *kind),
            "case {number}: {error}"
        );
        assert!(error.is_permanent());
        let listed = open_repository(repository.path(), OpenOptions::default())
            .unwrap()
            .restore_points()
            .unwrap();
        assert_eq!(
            (listed.restore_points.len(), listed.problems.len()),
            (0, 1),
            "case {number}"
        );
    }
}

#[test]
fn a_label_cannot_leave_the_repository() {
    let repository = plain();
    let inner = open_repository(&repository.path().join("b/.."), OpenOptions::default()).unwrap();
    for label in ["", ".", "..", "../b", "b/", "c", "b\0"] {
        let error = inner
            .open(BackupChoice::Label(label))
            .map(drop)
            .unwrap_err();
        assert_eq!(
            error.kind(),
            RepositoryErrorKind::UnknownBackup,
            "{label:?}"
        );
    }
}

#[test]
fn a_corrupt_file_fails_the_read_that_completes_it_and_all_after() {
    let repository = plain();
    let directory = repository.path().join("b");
    add_manifest(&directory, |text| text);
    let mut content = vec![1; 8192];
    content[100] = 9;
    std::fs::write(directory.join("global/pg_control"), content).unwrap();
    let backup = open(repository.path()).unwrap();
    let (file, _) = backup.tree().find_file("global/pg_control").unwrap();
    let mut half = [0; 4096];
    assert_eq!(backup.read_at(file, 4096, &mut half).unwrap(), 4096);
    assert!(backup.corrupt_files().is_empty());
    let error = backup.read_at(file, 0, &mut half).unwrap_err();
    assert_eq!(
        (error.file(), error.is_permanent()),
        ("global/pg_control", true)
    );
    assert!(backup.read_at(file, 4096, &mut half).is_err());
    assert_eq!(backup.corrupt_files()[0].file, file);
}

#[test]
fn a_file_that_changes_its_size_while_the_backup_is_open_is_not_read() {
    let repository = plain();
    let backup = open(repository.path()).unwrap();
    let (file, _) = backup.tree().find_file("global/pg_control").unwrap();
    std::fs::write(repository.path().join("b/global/pg_control"), "short").unwrap();
    let error = backup.read_at(file, 0, &mut [0; 10]).unwrap_err();
    assert_eq!(error.kind(), RepositoryErrorKind::Corrupt);
    // Nor is what a link put there meanwhile leads to.
    let (version, _) = backup.tree().find_file("PG_VERSION").unwrap();
    std::fs::remove_file(repository.path().join("b/PG_VERSION")).unwrap();
    symlink("/etc/hosts", repository.path().join("b/PG_VERSION")).unwrap();
    let again = open(repository.path()).map(drop).unwrap_err();
    assert_eq!(again.file(), "PG_VERSION");
    let mut buffer = [0; 3];
    // The descriptor opened before still shows the old content; a new one is refused.
    if backup.read_at(version, 0, &mut buffer).is_ok() {
        assert_eq!(&buffer, b"15\n");
    }
}

#[test]
fn truncated_archives_are_refused_by_name() {
    let repository = plain();
    let (source, tar) = (repository.path().join("b"), repository.path().join("t"));
    std::fs::create_dir(&tar).unwrap();
    let whole = tar.join("base.tar");
    make_tar(&source, &whole);
    let open = || {
        let repository = open_repository(repository.path(), OpenOptions::default()).unwrap();
        repository.open(BackupChoice::Label("t")).map(drop)
    };
    open().unwrap();
    for archive in [
        "16384.tar",
        "16384.tar.gz",
        "16384.tar.lz4",
        "16384.tar.zst",
    ] {
        std::fs::write(tar.join(archive), "").unwrap();
        let error = open().unwrap_err();
        assert_eq!(
            (error.file(), error.kind()),
            (archive, RepositoryErrorKind::Corrupt)
        );
        std::fs::remove_file(tar.join(archive)).unwrap();
    }
    let content = std::fs::read(&whole).unwrap();
    std::fs::remove_file(&whole).unwrap();
    for (program, extension) in [
        ("cat", ""),
        ("gzip", ".gz"),
        ("lz4", ".lz4"),
        ("zstd", ".zst"),
    ] {
        let archive = tar.join(format!("base.tar{extension}"));
        let compressed = pipe(program, &content);
        std::fs::write(&archive, &compressed).unwrap();
        open().unwrap();
        for length in [
            0,
            100,
            512,
            2000,
            compressed.len() / 2,
            compressed.len() - 1,
        ] {
            // Tar fills up with zeros: one of these less does not matter.
            let length = length.min(compressed.len() - 1);
            if extension.is_empty() && length == content.len() - 1 {
                continue;
            }
            std::fs::write(&archive, &compressed[..length]).unwrap();
            let error = open().unwrap_err();
            assert!(
                error.is_permanent() && error.to_string().contains("truncated"),
                "{program} {length}: {error}"
            );
        }
        std::fs::remove_file(&archive).unwrap();
    }
}

#[test]
fn an_archive_with_a_wrong_checksum_gives_the_files_that_are_sound() {
    let repository = plain();
    let (source, tar) = (repository.path().join("b"), repository.path().join("t"));
    let noise: Vec<u8> = (0..2048_u32)
        .flat_map(|n| n.wrapping_mul(n).wrapping_mul(2_654_435_761).to_be_bytes())
        .collect();
    std::fs::write(source.join("global/pg_control"), &noise).unwrap();
    add_manifest(&source, |text| text);
    std::fs::create_dir(&tar).unwrap();
    let manifest = tar.join("backup_manifest");
    std::fs::rename(source.join("backup_manifest"), &manifest).unwrap();
    make_tar(&source, &tar.join("base.tar"));
    let sound = std::fs::read(tar.join("base.tar")).unwrap();
    std::fs::remove_file(tar.join("base.tar")).unwrap();
    let at = sound.windows(64).position(|bytes| bytes == &noise[..64]);
    let mut damaged = sound.clone();
    damaged[at.unwrap() + 5] ^= 1;
    // A stream with the content of one and the checksum of the other.
    let (mut stored, trailer) = (pipe("gzip", &damaged), pipe("gzip", &sound));
    stored.truncate(stored.len() - 8);
    stored.extend(&trailer[trailer.len() - 8..]);
    std::fs::write(tar.join("base.tar.gz"), stored).unwrap();

    let repository = open_repository(repository.path(), OpenOptions::default()).unwrap();
    let backup = repository.open(BackupChoice::Label("t")).unwrap();
    let corrupt = backup.corrupt_files();
    let reasons: Vec<_> = corrupt.iter().map(|found| found.reason.as_str()).collect();
    assert!(
        reasons.len() == 2
            && reasons[0].starts_with("global/pg_control: its content does not have the checksum")
            && reasons[1].starts_with("pg_wal/000000010000000000000020: has no checksum")
            && reasons[1].contains("base.tar.gz"),
        "{reasons:?}"
    );
    for found in &corrupt {
        let error = backup.read_at(found.file, 0, &mut [0; 10]).unwrap_err();
        assert!(error.is_permanent(), "{error}");
    }
    let (label, _) = backup.tree().find_file("backup_label").unwrap();
    assert_eq!(backup.read_at(label, 0, &mut [0; 10]).unwrap(), 10);
    drop(backup);

    std::fs::remove_file(manifest).unwrap();
    let error = repository
        .open(BackupChoice::Label("t"))
        .map(drop)
        .unwrap_err();
    assert_eq!(error.file(), "base.tar.gz", "{error}");
}

#[test]
fn compressed_backups_are_listed_and_the_newest_is_found_by_their_beginning() {
    for zone in ["UTC", "KNOWN-TO-NOBODY"] {
        check_listed_by_beginning(zone);
    }
}

/// An old and damaged backup and a new one; where the label's time is in an unknown zone, the manifest has another.
fn check_listed_by_beginning(zone: &str) {
    let repository = plain();
    let source = repository.path().join("b");
    for (label, hour, is_sound) in [("old", "01", false), ("new", "07", true)] {
        let directory = repository.path().join(label);
        std::fs::create_dir(&directory).unwrap();
        let at = |text: &str| text.replace("04:53", &format!("{hour}:53"));
        let text = LABEL.replace("0002)", "0020)").replace("UTC", zone);
        std::fs::write(source.join("backup_label"), at(&text)).unwrap();
        add_manifest(&source, |text| at(&text));
        let manifest = directory.join("backup_manifest");
        std::fs::rename(source.join("backup_manifest"), manifest).unwrap();
        let archive = directory.join("base.tar");
        // As pg_basebackup has them, the label first.
        let names = ["backup_label", "PG_VERSION", "global", "pg_wal"];
        let mut tar = Command::new("tar");
        tar.arg("-cf")
            .arg(&archive)
            .arg("-C")
            .arg(&source)
            .args(names);
        assert!(tar.status().unwrap().success());
        let mut stored = pipe("gzip", &std::fs::read(&archive).unwrap());
        std::fs::remove_file(&archive).unwrap();
        if !is_sound {
            let end = stored.len() - 5;
            stored[end] ^= 1;
        }
        std::fs::write(directory.join("base.tar.gz"), stored).unwrap();
    }
    std::fs::remove_dir_all(source).unwrap();
    let opened = open_repository(repository.path(), OpenOptions::default()).unwrap();
    let listed = opened.restore_points().unwrap();
    let points = listed.restore_points.iter();
    let points: Vec<_> = points
        .map(|point| {
            (
                point.label.as_str(),
                point.postgresql_major,
                point.file_count,
            )
        })
        .collect();
    assert_eq!(points, [("new", 15, 3), ("old", 15, 3)], "{zone}");
    let newest = opened.open(BackupChoice::Newest).unwrap();
    assert_eq!(newest.restore_point().label, "new");
}

#[test]
fn wal_that_a_backup_lacks_comes_from_the_archive_or_is_missed_by_name() {
    const SEGMENT: &str = "000000010000000000000020";
    let repository = plain();
    let directory = repository.path().join("b");
    std::fs::remove_file(directory.join("pg_wal").join(SEGMENT)).unwrap();
    add_manifest(&directory, |text| text);
    let archive = tempfile::tempdir().unwrap();
    let open = || {
        let options = OpenOptions {
            wal_archive: Some(WalPlace::Directory(archive.path().to_owned())),
            ..OpenOptions::default()
        };
        let opened = open_repository(repository.path(), options).unwrap();
        opened.open(BackupChoice::Label("b"))
    };
    let refused = |wanted: &str| {
        let error = open().map(drop).unwrap_err();
        assert!(error.is_permanent(), "{error}");
        assert!(error.to_string().contains(wanted), "{error}");
    };
    refused("is not in the WAL archive");

    let mut content = vec![2; 1 << 20];
    content[..2].copy_from_slice(&0xD110_u16.to_ne_bytes());
    content[32..36].copy_from_slice(&(1_u32 << 20).to_ne_bytes());
    let segment = archive.path().join(SEGMENT);
    let check = || {
        let backup = open().unwrap();
        let (file, _) = backup
            .tree()
            .find_file(&format!("pg_wal/{SEGMENT}"))
            .unwrap();
        let mut found = vec![0; content.len() + 1];
        assert_eq!(backup.read_at(file, 0, &mut found).unwrap(), content.len());
        assert!(found[..content.len()] == content);
        let ends = backup.restore_point().recoverable.to_lsn.unwrap();
        assert_eq!(ends.to_string(), "0/2000100");
    };
    std::fs::write(&segment, &content[..1000]).unwrap();
    refused("has 1000 bytes, and a WAL segment 1048576");
    std::fs::write(&segment, &content).unwrap();
    check();
    let partial = segment.with_extension("partial");
    std::fs::rename(&segment, &partial).unwrap();
    refused(SEGMENT);
    std::fs::remove_file(&partial).unwrap();
    std::fs::write(segment.with_extension("xz"), pipe("xz", &content)).unwrap();
    check();

    std::fs::remove_file(directory.join("backup_manifest")).unwrap();
    refused("nothing else says where the backup ends");
    let history = archive.path().join(format!("{SEGMENT}.00000028.backup"));
    let ends = |at: &str| {
        format!(
            "START WAL LOCATION: 0/2000028 (file {SEGMENT})\nSTOP WAL LOCATION: {at} (file {SEGMENT})\n"
        )
    };
    std::fs::write(&history, ends("0/2000100")).unwrap();
    check();
    std::fs::write(&history, ends("0/2100100")).unwrap();
    refused("000000010000000000000021");
    std::fs::write(&history, ends("FFFFFFFF/FFFFFFFF")).unwrap();
    refused("has its WAL from 0/2000028 to");
}

#[test]
fn a_compressed_backup_that_is_open_is_shared_until_it_changes() {
    let repository = plain();
    let (source, tar) = (repository.path().join("b"), repository.path().join("t"));
    std::fs::create_dir(&tar).unwrap();
    make_tar(&source, &tar.join("base.tar"));
    let stored = pipe("zstd", &std::fs::read(tar.join("base.tar")).unwrap());
    std::fs::remove_file(tar.join("base.tar")).unwrap();
    std::fs::write(tar.join("base.tar.zst"), &stored).unwrap();
    let options = OpenOptions {
        decoded: Some(Arc::new(DecodedStore::new(DecodedLimits::default()))),
        ..OpenOptions::default()
    };
    let open = |label: &str| {
        let opened = open_repository(repository.path(), options.clone()).unwrap();
        opened.open(BackupChoice::Label(label)).unwrap()
    };
    let first = open("t");
    assert!(Arc::ptr_eq(&first, &open("t")));
    assert!(!Arc::ptr_eq(&open("b"), &open("b")), "a plain one");
    let barrier = std::sync::Barrier::new(4);
    drop(first);
    let together: Vec<_> = std::thread::scope(|scope| {
        let open = || {
            barrier.wait();
            open("t")
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert!(
        together
            .iter()
            .all(|other| Arc::ptr_eq(other, &together[0]))
    );
    std::fs::write(tar.join("base.tar.zst"), &stored).unwrap();
    assert!(!Arc::ptr_eq(&together[0], &open("t")), "it was written");
}

#[test]
fn the_same_archive_compressed_and_not_is_refused() {
    let repository = plain();
    let (source, tar) = (repository.path().join("b"), repository.path().join("t"));
    std::fs::create_dir(&tar).unwrap();
    make_tar(&source, &tar.join("base.tar"));
    std::fs::write(tar.join("base.tar.gz"), "").unwrap();
    let repository = open_repository(repository.path(), OpenOptions::default()).unwrap();
    let error = repository
        .open(BackupChoice::Label("t"))
        .map(drop)
        .unwrap_err();
    assert_eq!(
        (error.file(), error.kind()),
        ("base.tar.gz", RepositoryErrorKind::Unsupported)
    );
    assert!(error.to_string().contains("base.tar,"), "{error}");
}

/// What a program makes of its standard input.
fn pipe(program: &str, input: &[u8]) -> Vec<u8> {
    let mut from = tempfile::tempfile().unwrap();
    from.write_all(input).unwrap();
    from.rewind().unwrap();
    let output = Command::new(program).stdin(from).output().unwrap();
    assert!(output.status.success(), "{program}: {output:?}");
    output.stdout
}

fn make_tar(directory: &Path, archive: &Path) {
    let status = Command::new("tar")
        .arg("-cf")
        .arg(archive)
        .arg("-C")
        .arg(directory)
        .arg(".")
        .status();
    assert!(status.unwrap().success());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn a_tree_is_the_same_from_a_directory_and_from_tar(
        files in proptest::collection::btree_map("d[a-c]{1,60}/(e[a-c]{60}/){0,2}f[a-z0-9_.]{1,60}", proptest::collection::vec(any::<u8>(), 0..3000), 0..20),
        ranges in proptest::collection::vec((any::<prop::sample::Index>(), 0_u64..4000, 0_usize..4000), 20),
    ) {
        let repository = plain();
        let (source, tar) = (repository.path().join("b"), repository.path().join("t"));
        write(&source, &files);
        std::fs::create_dir(&tar).unwrap();
        make_tar(&source, &tar.join("base.tar"));
        let opened = open_repository(repository.path(), OpenOptions::default()).unwrap();
        let plain = opened.open(BackupChoice::Label("b")).unwrap();
        let tar = opened.open(BackupChoice::Label("t")).unwrap();
        prop_assert_eq!(plain.tree().entries().collect::<Vec<_>>(), tar.tree().entries().collect::<Vec<_>>());
        let all: Vec<_> = plain.tree().entries().filter_map(|entry| match entry.kind {
            EntryKind::File { file, .. } => Some(file),
            EntryKind::Directory => None,
        }).collect();
        for (which, offset, length) in ranges {
            let file = *which.get(&all);
            let (mut from_plain, mut from_tar) = (vec![0; length], vec![0; length]);
            let count = plain.read_at(file, offset, &mut from_plain).unwrap();
            prop_assert_eq!(tar.read_at(file, offset, &mut from_tar).unwrap(), count);
            prop_assert_eq!(&from_plain, &from_tar);
            let path = plain.tree().file(file).unwrap().path;
            let content = files.get(path).cloned().unwrap_or_else(|| std::fs::read(source.join(path)).unwrap());
            let start = usize::try_from(offset).unwrap().min(content.len());
            prop_assert_eq!(&from_plain[..count], &content[start..(start + length).min(content.len())]);
        }
    }
}
