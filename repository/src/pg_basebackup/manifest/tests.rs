use std::io::Cursor;

use super::*;

/// A manifest with its checksum, of these lines before the last.
fn sealed(body: &str) -> String {
    let digest: String = Sha256::digest(body.as_bytes())
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    format!("{body}\"Manifest-Checksum\": \"{digest}\"}}\n")
}

fn manifest(files: &str) -> String {
    sealed(&format!(
        "{{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": 7575,\n\"Files\": [\n{files}],\n\
         \"WAL-Ranges\": [\n{{ \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000100\" }}\n],\n"
    ))
}

fn read(text: &[u8]) -> Result<(Manifest, Vec<ManifestFile>), RepositoryError> {
    let mut files = Vec::new();
    let manifest = read_manifest(Cursor::new(text), &mut |file| {
        files.push(file);
        Ok(())
    })?;
    Ok((manifest, files))
}

#[test]
fn files_paths_checksums_and_ranges_are_read() {
    let text = manifest(concat!(
        r#"{ "Path": "backup_label", "Size": 225, "Last-Modified": "2026-11-21 04:53:06 GMT", "#,
        r#""Checksum-Algorithm": "CRC32C", "Checksum": "fa340ade" },"#,
        r#"{ "Encoded-Path": "62617365", "Size": 0, "Last-Modified": "x" }"#
    ));
    let (manifest, files) = read(text.as_bytes()).unwrap();
    assert_eq!(
        (manifest.version, manifest.system_identifier),
        (2, Some(7575))
    );
    assert_eq!(manifest.wal_ranges[0].end_lsn, Lsn(0x200_0100));
    assert_eq!(files[0].modified_at, "2026-11-21T04:53:06Z".parse().ok());
    assert_eq!(
        files[0].checksum,
        Checksum::new(Algorithm::Crc32c, vec![0xfa, 0x34, 0x0a, 0xde])
    );
    assert_eq!(
        (files[1].path.as_str(), &files[1].checksum),
        ("base", &None)
    );
}

#[test]
fn a_manifest_that_was_changed_is_refused() {
    let text = manifest(r#"{ "Path": "a", "Size": 5 }"#);
    read(text.as_bytes()).unwrap();
    let error = read(text.replace("5 }", "6 }").as_bytes()).unwrap_err();
    assert_eq!(error.file(), MANIFEST);
    assert!(error.to_string().contains("checksum"), "{error}");
}

#[test]
fn what_is_no_manifest_is_refused() {
    let nested = format!("{}\n\n", "[".repeat(100_000));
    let bodies = [
        manifest(r#"{ "Path": "a" }"#),
        manifest(r#"{ "Path": "a", "Size": -1 }"#),
        manifest(r#"{ "Path": "a", "Size": 1.5 }"#),
        manifest(r#"{ "Path": "a", "Size": 99999999999999999999 }"#),
        manifest(r#"{ "Path": "a", "Size": 1, "Size": 2 }"#),
        manifest(r#"{ "Path": "a", "Encoded-Path": "61", "Size": 1 }"#),
        manifest(r#"{ "Size": 1 }"#),
        manifest(r#"{ "Encoded-Path": "6", "Size": 1 }"#),
        manifest(r#"{ "Encoded-Path": "ff", "Size": 1 }"#),
        manifest(r#"{ "Path": "a", "Size": 1, "Checksum-Algorithm": "MD5", "Checksum": "00" }"#),
        manifest(r#"{ "Path": "a", "Size": 1, "Checksum-Algorithm": "CRC32C", "Checksum": "00" }"#),
        manifest(r#"{ "Path": "a", "Size": 1, "Checksum-Algorithm": "CRC32C" }"#),
        manifest(r#"{ "Path": "a", "Size": 1, "Else": 1 }"#),
        manifest("\"x\""),
        manifest("").replace("Version\": 2", "Version\": 3"),
        manifest("").replace("0/2000100", "0/2000000"),
        sealed("{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [],\n"),
        format!("{}x\n", manifest("")),
        nested,
        "\n{}\n".into(),
        String::new(),
    ];
    for text in bodies {
        let error = read(text.as_bytes()).unwrap_err();
        assert!(error.is_permanent(), "{error}: {text:.200}");
    }
}

proptest::proptest! {
    #[test]
    fn no_bytes_panic_the_reader(text in proptest::collection::vec(proptest::num::u8::ANY, 0..500)) {
        proptest::prop_assert!(read(&text).is_err());
    }
}

#[test]
fn a_manifest_of_300_000_files_is_read_in_seconds() {
    use std::fmt::Write;
    let mut list = String::new();
    for number in 0..300_000 {
        let comma = if number == 0 { "" } else { ",\n" };
        write!(
            list,
            r#"{comma}{{ "Path": "base/5/{number}", "Size": 8192, "Last-Modified": "2026-11-21 04:53:06 GMT", "Checksum-Algorithm": "CRC32C", "Checksum": "fa340ade" }}"#
        )
        .unwrap();
    }
    let text = manifest(&list);
    let begun = std::time::Instant::now();
    let mut count = 0;
    read_manifest(Cursor::new(text.as_bytes()), &mut |_| {
        count += 1;
        Ok(())
    })
    .unwrap();
    // About 1 s in release when the machine has nothing else to do.
    let limit_s = if cfg!(debug_assertions) { 60.0 } else { 5.0 };
    let took_s = begun.elapsed().as_secs_f64();
    assert_eq!(count, 300_000);
    assert!(took_s < limit_s, "{took_s} s");
    println!("{} MB in {took_s:.2} s", text.len() / 1_000_000);
}
