use super::super::info_file::tests::{SealedFile, sealed};
use super::*;
use crate::EntryKind;
use proptest::prelude::*;

const FULL: &str = "20261121-124036F";
const DIFF: &str = "20261121-124036F_20261121-124041D";
const SUM: &str = "0123456789abcdef0123456789abcdef01234567";

type Lines = Vec<(&'static str, &'static str, String)>;

fn usual(label: &str) -> Lines {
    let text = |value: &str| format!("\"{value}\"");
    vec![
        (
            "backup",
            "backup-archive-start",
            text("00000002000000000000000A"),
        ),
        ("backup", "backup-label", text(label)),
        ("backup", "backup-lsn-start", text("0/A000028")),
        ("backup", "backup-lsn-stop", text("0/A000100")),
        ("backup", "backup-timestamp-start", "1795264869".into()),
        ("backup:db", "db-id", "1".into()),
        ("backup:db", "db-system-id", "7710603752845360434".into()),
        ("backup:db", "db-version", text("15")),
        ("target:file:default", "mode", text("0640")),
        ("target:path", "pg_data", "{}".into()),
        ("target:path", "pg_data/base", "{\"mode\":\"0750\"}".into()),
        ("target:path", "pg_tblspc", "{}".into()),
        ("target:path:default", "mode", text("0755")),
    ]
}

fn read(lines: &Lines) -> Result<Manifest, RepositoryError> {
    let mut lines: Vec<_> = lines
        .iter()
        .map(|(section, key, value)| (*section, *key, value.as_str()))
        .collect();
    // Sections stand in the order of their names.
    lines.sort_by_key(|(section, _, _)| *section);
    let text = sealed(&lines);
    read_manifest(text.as_bytes(), "backup.manifest", &Limits::default())
}

fn with(label: &str, more: &[(&'static str, &'static str, &str)]) -> Lines {
    let mut lines = usual(label);
    let more = more.iter();
    lines.extend(more.map(|(section, key, value)| (*section, *key, (*value).to_owned())));
    lines
}

#[test]
fn files_are_placed_where_the_manifest_says() {
    let lines = with(
        DIFF,
        &[
            ("backup", "backup-reference", &format!("\"{FULL},{DIFF}\"")),
            ("backup:option", "option-compress-type", "\"zst\""),
            (
                "backup:target",
                "pg_tblspc/16384",
                r#"{"path":"/ts","tablespace-id":"16384","tablespace-name":"ts","type":"link"}"#,
            ),
            (
                "target:file",
                "pg_data/base/=a=",
                &format!(
                    r#"{{"checksum":"{SUM}","mode":"0600","reference":"{FULL}","repo-size":7,"size":9,"timestamp":5}}"#
                ),
            ),
            (
                "target:file",
                "pg_data/base/b",
                &format!(
                    r#"{{"bi":1,"bim":60,"bni":3,"bno":100,"checksum":"{SUM}","repo-size":90,"size":8192,"timestamp":6}}"#
                ),
            ),
            (
                "target:file",
                "pg_tblspc/16384/PG_15_202209061/5/1",
                r#"{"size":0,"timestamp":7}"#,
            ),
        ],
    );
    let manifest = read(&lines).unwrap();
    let head = &manifest.head;
    assert_eq!(
        (head.label.as_str(), head.kind),
        (DIFF, BackupKind::Differential)
    );
    assert_eq!(head.references, [FULL, DIFF]);
    assert_eq!(head.compression, Compression::Zst);
    assert_eq!(head.wal.timeline(), 2);
    assert_eq!(head.tablespaces[0].location, "/ts");
    assert!(manifest.all_have_checksums);
    let (tree, locations) = manifest.tree.finish().unwrap();
    let shown: Vec<_> = tree
        .entries()
        .map(|entry| {
            let size = match entry.kind {
                EntryKind::Directory => None,
                EntryKind::File { size_bytes, .. } => Some(size_bytes),
            };
            (entry.path, size, entry.mode, entry.modified_at_s)
        })
        .collect();
    assert_eq!(
        shown,
        [
            ("base", None, 0o750, 0),
            ("base/=a=", Some(9), 0o600, 5),
            ("base/b", Some(8192), 0o640, 6),
            ("pg_tblspc", None, 0o700, 0),
            ("pg_tblspc/16384", None, 0o700, 0),
            ("pg_tblspc/16384/PG_15_202209061", None, 0o700, 0),
            ("pg_tblspc/16384/PG_15_202209061/5", None, 0o700, 0),
            ("pg_tblspc/16384/PG_15_202209061/5/1", Some(0), 0o640, 7),
        ]
    );
    let stored = |file: usize| manifest.files[locations[file].source as usize];
    let first = stored(0);
    assert_eq!(
        (first.reference, first.stored_bytes, first.bundle),
        (0, 7, 0)
    );
    assert!(first.has_checksum() && !first.is_in_blocks());
    let second = stored(1);
    assert_eq!(
        (
            second.reference,
            second.bundle,
            second.offset,
            second.stored_bytes
        ),
        (NO_REFERENCE, 3, 100, 90)
    );
    assert_eq!(
        (
            second.map_bytes,
            second.block_bytes,
            second.block_checksum_bytes
        ),
        (60, 8192, 6)
    );
    assert_eq!(stored_name("base/b"), "pg_data/base/b");
    assert_eq!(stored_name("pg_tblspc/16384/x"), "pg_tblspc/16384/x");
}

#[test]
fn older_manifests_name_other_backups_by_files_alone_and_gz_by_a_flag() {
    let file = format!(r#"{{"checksum":"{SUM}","reference":"{FULL}","size":9,"timestamp":5}}"#);
    let lines = with(
        DIFF,
        &[
            ("backup:option", "option-compress", "true"),
            ("target:file", "pg_data/a", &file),
            ("target:file", "pg_data/b", &file),
        ],
    );
    let manifest = read(&lines).unwrap();
    assert_eq!(manifest.head.references, [FULL, DIFF]);
    assert_eq!(manifest.head.compression, Compression::Gz);
    assert!(manifest.files.iter().all(|file| file.reference == 0));
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let sized = |more: &str| format!(r#"{{"size":9,"timestamp":5{more}}}"#);
    let file = "target:file";
    let listed = format!("\"{FULL},{DIFF}\"");
    let table: &[(&'static str, &'static str, String, &str)] = &[
        (file, "pg_data/../a", sized(""), "../a"),
        (file, "elsewhere/a", sized(""), "elsewhere/a"),
        (file, "pg_data", sized(""), "pg_data"),
        (file, "pg_data/a", "{}".into(), "backup.manifest"),
        (file, "pg_data/a", sized(r#","checksum":"0""#), "a"),
        (file, "pg_data/a", sized(r#","mode":"9""#), "a"),
        (file, "pg_data/a", sized(r#","reference":"../../x""#), "a"),
        (
            file,
            "pg_data/a",
            sized(r#","reference":"20261121-124030F""#),
            "a",
        ),
        (file, "pg_data/a", sized(r#","bni":4294967296"#), "a"),
        (file, "pg_data/a", sized(r#","bim":10"#), "a"),
        (file, "pg_data/a", sized(r#","bi":1,"bim":9,"bic":17"#), "a"),
        (file, "pg_data/a", sized(r#","bi":9999999,"bim":9"#), "a"),
        (
            file,
            "pg_data/a",
            sized(r#","bno":18446744073709551615"#),
            "a",
        ),
        (file, "pg_data/pg_tblspc/1/a", sized(""), "pg_tblspc/1/a"),
        (
            "backup",
            "backup-reference",
            format!("\"{FULL}\""),
            "backup.manifest",
        ),
        (
            "backup",
            "backup-reference",
            "\"../x\"".into(),
            "backup.manifest",
        ),
        (
            "backup:option",
            "option-compress-type",
            "\"xz\"".into(),
            "backup.manifest",
        ),
        (
            "backup:option",
            "option-online",
            "false".into(),
            "backup.manifest",
        ),
        (
            "backup:target",
            "pg_tblspc/1",
            r#"{"path":"/","tablespace-id":"2"}"#.into(),
            "backup.manifest",
        ),
    ];
    for (section, key, value, named) in table {
        let mut lines = usual(DIFF);
        if *key != "backup-reference" {
            lines.push(("backup", "backup-reference", listed.clone()));
        }
        lines.push((section, key, value.clone()));
        let error = read(&lines).unwrap_err();
        assert_eq!(error.file(), *named, "{error}");
        assert!(error.is_permanent());
    }
    for missing in ["backup-label", "backup-lsn-start", "db-system-id"] {
        let mut lines = usual(FULL);
        lines.retain(|(_, key, _)| *key != missing);
        assert!(read(&lines).unwrap_err().to_string().contains(missing));
    }
}

proptest! {
    #[test]
    fn no_change_to_a_manifest_makes_it_panic(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let value = format!(r#"{{"bi":1,"bim":60,"bni":3,"bno":100,"checksum":"{SUM}","repo-size":90,"size":8192,"timestamp":6}}"#);
        let mut lines = with(DIFF, &[("target:file", "pg_data/base/b", &value)]);
        lines.sort_by_key(|(section, _, _)| *section);
        let lines: Vec<_> = lines.iter().map(|(section, key, value)| (*section, *key, value.as_str())).collect();
        let mut bytes = sealed(&lines).into_bytes();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let text = String::from_utf8_lossy(&bytes);
        let again = super::super::info_file::sealed_again(&text);
        let _any = manifest_is_sound(&bytes) || manifest_is_sound(again.as_bytes());
    }
}

#[test]
fn a_million_files_take_less_than_300_mib() {
    let mut lines = usual(FULL);
    let count = 1_000_000_u32;
    let value = format!(
        r#"{{"bni":1,"bno":{},"checksum":"{SUM}","checksum-page":true,"size":8192,"timestamp":1795264869}}"#,
        1 << 30
    );
    lines.sort_by_key(|(section, _, _)| *section);
    let defaults = lines.partition_point(|(section, _, _)| *section < "target:file:default");
    let mut file = SealedFile::new();
    for (section, key, text) in &lines[..defaults] {
        file.add(section, key, text);
    }
    for number in 0..count {
        let name = format!("pg_tblspc/16384/PG_15_202209061/{}/{number}", number / 300);
        file.add("target:file", &name, &value);
    }
    for (section, key, text) in &lines[defaults..] {
        file.add(section, key, text);
    }
    let file = file.finish();
    std::fs::write("/proc/self/clear_refs", "5").unwrap(); // the peak begins here
    let before = peak_and_now_kib().1;
    let manifest = read_manifest(file, "backup.manifest", &Limits::default()).unwrap();
    let (tree, locations) = manifest.tree.finish().unwrap();
    let grown_kib = peak_and_now_kib().0.saturating_sub(before);
    println!("{grown_kib} KiB for {count} files");
    assert_eq!(tree.file_count(), u64::from(count));
    assert_eq!(locations.len(), manifest.files.len());
    assert!(grown_kib < 300 << 10, "{grown_kib} KiB");
    assert!(
        grown_kib > 50 << 10,
        "{grown_kib} KiB: nothing was measured"
    );
}

/// Most memory that this process had, and what it has, in KiB.
fn peak_and_now_kib() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let value = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    (value("VmHWM:"), value("VmRSS:"))
}
