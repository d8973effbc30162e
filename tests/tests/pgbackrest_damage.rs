//! Damaged, incomplete and closed repositories of pgBackRest: never wrong data, always an error that names what is wrong.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests fail by panic"
)]

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use repository::pgbackrest::{Passphrase, PgBackRestOptions, open_pgbackrest};
use repository::{
    Backup, BackupChoice, EntryKind, OpenOptions, Repository, RepositoryError, RepositoryErrorKind,
};
use tests::pgbackrest::{Layout, PASSPHRASE, RepositoryKind, STANZA, Stage, Tool};
use tests::postgres::installations;

const CLEAR_PLAIN: usize = 1;
const CLEAR_BLOCKS: usize = 2;
const ENCRYPTED_BLOCKS: usize = 3;

/// Three repositories, and a full and a differential backup in some of them; returns the labels of the latter.
fn stage(used: &[usize]) -> (Stage, BTreeMap<usize, String>) {
    let all = installations();
    let postgresql = all.iter().find(|found| found.major == 15);
    let postgresql = postgresql.expect("PostgreSQL 15 is not installed; ./test installs it");
    let kind = |layout, is_encrypted| RepositoryKind {
        layout,
        is_encrypted,
    };
    let kinds = [
        kind(Layout::Plain, false),
        kind(Layout::Blocks, false),
        kind(Layout::Blocks, true),
    ];
    let stage = Stage::new(&Tool::of("trixie").unwrap(), postgresql, &kinds).unwrap();
    stage
        .cluster()
        .pgbench("postgres", &["-i", "-q", "-s", "1"])
        .unwrap();
    let compressions = [
        "--compress-type=gz",
        "--compress-type=none",
        "--compress-type=zst",
    ];
    let mut labels = BTreeMap::new();
    let used = || {
        (1..)
            .zip(compressions)
            .filter(move |(number, _)| used.contains(number))
    };
    for (number, compression) in used() {
        stage.backup(number, &["--type=full", compression]).unwrap();
    }
    let sql = "UPDATE pgbench_accounts SET abalance = 1 WHERE aid % 300 = 0";
    stage.cluster().psql("postgres", sql).unwrap();
    stage.cluster().psql("postgres", "CHECKPOINT").unwrap();
    for (number, compression) in used() {
        let label = stage.backup(number, &["--type=diff", compression]);
        labels.insert(number, label.unwrap());
    }
    (stage, labels)
}

fn repository(
    path: &Path,
    passphrase: Option<&str>,
) -> Result<Box<dyn Repository>, RepositoryError> {
    let options = PgBackRestOptions {
        stanza: None,
        passphrase: passphrase.map(Passphrase::new),
        passphrase_setting: "cipher_passphrase_file".to_owned(),
    };
    open_pgbackrest(path, &options, OpenOptions::default())
}

fn open(
    stage: &Stage,
    number: usize,
    label: &str,
) -> Result<std::sync::Arc<dyn Backup>, RepositoryError> {
    let passphrase = (number == ENCRYPTED_BLOCKS).then_some(PASSPHRASE);
    repository(&stage.repository(number), passphrase)?.open(BackupChoice::Label(label))
}

fn read(backup: &dyn Backup, path: &str) -> Result<Vec<u8>, RepositoryError> {
    let (file, size_bytes) = backup.tree().find_file(path).unwrap();
    let mut content = vec![0; usize::try_from(size_bytes).unwrap() + 1];
    let mut done = 0;
    // In pieces, so that a file is in the middle when it is found to be damaged.
    loop {
        let end = content.len().min(done + 300_000);
        match backup.read_at(file, done as u64, &mut content[done..end])? {
            0 => break,
            count => done += count,
        }
    }
    content.truncate(done);
    Ok(content)
}

fn paths(backup: &dyn Backup) -> Vec<String> {
    let files = backup
        .tree()
        .entries()
        .filter(|entry| matches!(entry.kind, EntryKind::File { .. }));
    files.map(|entry| entry.path.to_owned()).collect()
}

fn contents(backup: &dyn Backup) -> BTreeMap<String, Vec<u8>> {
    let read_one = |path: String| {
        let content = read(backup, &path).unwrap();
        (path, content)
    };
    paths(backup).into_iter().map(read_one).collect()
}

/// Every file of the repository that is not empty.
fn stored_files(repository: &Path) -> Vec<PathBuf> {
    let mut find = Command::new("find");
    find.arg(repository)
        .args(["-type", "f", "-size", "+0", "-print"]);
    let found = tests::postgres::run(&mut find).unwrap();
    let text = String::from_utf8(found.stdout).unwrap();
    let mut all: Vec<_> = text.lines().map(PathBuf::from).collect();
    all.sort();
    all
}

fn flip(path: &Path, at: u64, bit: u8) {
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ (1 << bit)], at).unwrap();
}

#[test]
fn a_flipped_bit_anywhere_in_a_repository_is_never_read_as_data() {
    let seed = std::env::var("PGINSTANT_TEST_SEED").ok();
    let seed = seed.map_or_else(|| rand::rng().random(), |text| text.parse().unwrap());
    println!("again with: PGINSTANT_TEST_SEED={seed}");
    let flips = std::env::var("PGINSTANT_TEST_PGBACKREST_FLIPS").ok();
    let flips: usize = flips.map_or(15, |text| text.parse().unwrap());
    let mut random = StdRng::seed_from_u64(seed);
    let (stage, labels) = stage(&[CLEAR_PLAIN, CLEAR_BLOCKS, ENCRYPTED_BLOCKS]);
    let mut refused_count = 0;
    for (number, label) in &labels {
        let wanted = contents(&*open(&stage, *number, label).unwrap());
        let files = stored_files(&stage.repository(*number));
        for _ in 0..flips {
            // Half of them in the largest files, where the data is.
            let path = match random.random_bool(0.5) {
                true => files
                    .iter()
                    .max_by_key(|path| path.metadata().unwrap().len())
                    .unwrap(),
                false => &files[random.random_range(0..files.len())],
            };
            let at = random.random_range(0..path.metadata().unwrap().len());
            let bit = random.random_range(0..8);
            let what = format!("bit {bit} of byte {at} of {}", path.display());
            flip(path, at, bit);
            match open(&stage, *number, label) {
                Err(error) => {
                    println!("{what}: {error}");
                    assert!(!error.file().is_empty() && !error.remedy().is_empty());
                    refused_count += 1;
                }
                Ok(backup) => {
                    assert_eq!(paths(&*backup).len(), wanted.len(), "{what}");
                    let mut bad_count = 0;
                    for (path, content) in &wanted {
                        match read(&*backup, path) {
                            Ok(found) => assert!(found == *content, "{what}: {path} differs"),
                            Err(error) => {
                                println!("{what}: {error}");
                                assert_eq!(error.file(), path);
                                assert_eq!(error.kind(), RepositoryErrorKind::Corrupt);
                                bad_count += 1;
                            }
                        }
                    }
                    assert_eq!(backup.corrupt_files().len(), bad_count, "{what}");
                    refused_count += bad_count.min(1);
                }
            }
            flip(path, at, bit);
        }
    }
    assert!(refused_count > 0, "no flip hit anything that is read");
}

/// One sentence, which names the file and holds each of these words.
fn says(error: &RepositoryError, words: &[&str]) {
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "{text:?} does not say {word:?}");
    }
    assert!(!text.contains('\n') && !error.remedy().is_empty());
}

fn largest_below(directory: &Path) -> PathBuf {
    let files = stored_files(directory).into_iter();
    files
        .max_by_key(|path| path.metadata().unwrap().len())
        .unwrap()
}

#[test]
fn what_is_missing_cut_or_closed_is_said_in_one_sentence_that_names_it() {
    let (stage, labels) = stage(&[CLEAR_PLAIN]);
    let encrypted = stage.repository(ENCRYPTED_BLOCKS);
    let opened = |passphrase| {
        repository(&encrypted, passphrase)
            .unwrap()
            .open(BackupChoice::Newest)
    };
    says(
        &opened(Some("wrong")).unwrap_err(),
        &["backup.info", "passphrase is another"],
    );
    says(
        &opened(None).unwrap_err(),
        &["backup.info", "is encrypted", "no passphrase"],
    );
    let clear = repository(&stage.repository(CLEAR_PLAIN), Some("any")).unwrap();
    let error = clear.open(BackupChoice::Newest).unwrap_err();
    says(&error, &["backup.info", "not encrypted"]);

    let label = &labels[&CLEAR_PLAIN];
    let full = label.split('_').next().unwrap();
    let directory = stage.repository(CLEAR_PLAIN);
    let backups = directory.join("backup").join(STANZA);
    let clear = repository(&directory, None).unwrap();
    says(
        &clear.open(BackupChoice::Label("monday")).unwrap_err(),
        &["no backup \"monday\""],
    );

    // A WAL segment that recovery needs.
    let archive = directory.join("archive").join(STANZA).join("15-1");
    let aside = directory.join("aside");
    std::fs::rename(&archive, &aside).unwrap();
    says(
        &clear.open(BackupChoice::Label(label)).unwrap_err(),
        &["WAL archive", "archive/main/15-1"],
    );
    std::fs::rename(&aside, &archive).unwrap();

    // A stored file that is cut.
    let open_label = || clear.open(BackupChoice::Label(label));
    let stored = largest_below(&backups.join(full));
    let content = std::fs::read(&stored).unwrap();
    let name = stored
        .strip_prefix(backups.join(full).join("pg_data"))
        .unwrap();
    let name = name
        .to_str()
        .unwrap()
        .strip_suffix(".gz")
        .unwrap()
        .to_owned();
    std::fs::write(&stored, &content[..content.len() / 2]).unwrap();
    let full_backup = clear.open(BackupChoice::Label(full)).unwrap();
    says(
        &read(&*full_backup, &name).unwrap_err(),
        &[&name, full, "in the manifest"],
    );
    let corrupt = full_backup.corrupt_files();
    assert!(corrupt.len() == 1 && corrupt[0].reason.starts_with(&name));
    std::fs::write(&stored, &content).unwrap();

    // A manifest that is cut, and its copy.
    let manifest = backups.join(label).join("backup.manifest");
    let content = std::fs::read(&manifest).unwrap();
    std::fs::write(&manifest, &content[..content.len() / 2]).unwrap();
    drop(open_label().unwrap()); // the copy is whole
    let copy = backups.join(label).join("backup.manifest.copy");
    std::fs::write(&copy, &content[..content.len() / 2]).unwrap();
    says(
        &open_label().unwrap_err(),
        &[label, "backup.manifest", "cut off"],
    );
    std::fs::write(&manifest, &content).unwrap();

    // A backup on which another stands, removed while that one is mounted, and when it is opened.
    let mounted = open_label().unwrap();
    std::fs::rename(backups.join(full), &aside).unwrap();
    let gone = paths(&*mounted)
        .into_iter()
        .filter_map(|path| read(&*mounted, &path).err());
    let gone: Vec<_> = gone.collect();
    assert!(gone.len() > 100, "{}", gone.len());
    for error in &gone {
        says(error, &[full, "expired"]);
        assert!(error.is_permanent());
    }
    says(
        &open_label().unwrap_err(),
        &[label, full, "not in the repository"],
    );

    // A second stanza.
    std::fs::create_dir(directory.join("backup/other")).unwrap();
    std::fs::copy(
        backups.join("backup.info"),
        directory.join("backup/other/backup.info"),
    )
    .unwrap();
    says(
        &repository(&directory, None).unwrap_err(),
        &["several stanzas: main, other"],
    );
}

/// Takes the block map of one file out of the manifest, as pgBackRest 2.46 did, and makes its checksum right again.
const LOSE_MAP: &str = r#"
import hashlib, json, re, sys
path, name = sys.argv[1:]
section, sections = None, {}
lines = open(path).read().split("\n[backrest]\nbackrest-checksum=")[0].splitlines()
for number, line in enumerate(lines):
    if re.fullmatch(r"\[.*\]", line):
        section = line[1:-1]
    elif line:
        key, value = line.split("=", 1)
        if key == name:
            value = re.sub(r'"bi[cm]?":\d+,', "", value)
            lines[number] = f"{key}={value}"
        sections.setdefault(section, []).append(json.dumps(key) + ":" + value)
text = "{" + ",".join('"%s":{%s}' % (s, ",".join(v)) for s, v in sections.items()) + "}"
text_sum = hashlib.sha1(text.encode()).hexdigest()
open(path, "w").write("\n".join(lines) + f'\n\n[backrest]\nbackrest-checksum="{text_sum}"\n')
"#;

#[test]
fn a_block_map_that_pgbackrest_2_46_lost_is_recognised_by_name() {
    let (stage, labels) = stage(&[CLEAR_BLOCKS]);
    let label = &labels[&CLEAR_BLOCKS];
    let full = label.split('_').next().unwrap();
    let place = stage
        .repository(CLEAR_BLOCKS)
        .join("backup")
        .join(STANZA)
        .join(full);
    let stored = largest_below(&place.join("pg_data"));
    let stored = stored.to_str().unwrap().strip_suffix(".pgbi").unwrap();
    let name = Path::new(stored)
        .strip_prefix(&place)
        .unwrap()
        .to_str()
        .unwrap();
    let mut python = Command::new("python3");
    python
        .args(["-c", LOSE_MAP])
        .arg(place.join("backup.manifest"))
        .arg(name);
    tests::postgres::run(&mut python).unwrap();
    let backup = open(&stage, CLEAR_BLOCKS, full).unwrap();
    let path = name.strip_prefix("pg_data/").unwrap();
    says(
        &read(&*backup, path).unwrap_err(),
        &[path, "2.46", "lost the block map"],
    );
}
