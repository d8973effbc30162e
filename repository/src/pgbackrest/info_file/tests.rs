use super::*;
use std::fs::File;
use std::io::{BufWriter, Seek, Write};

/// Writes an info file with head and checksum.
pub(crate) struct SealedFile {
    file: BufWriter<File>,
    sum: InfoSum,
    section: String,
}

impl SealedFile {
    pub(crate) fn new() -> Self {
        let mut file = Self {
            file: BufWriter::new(tempfile::tempfile().unwrap()),
            sum: InfoSum::default(),
            section: String::new(),
        };
        file.add("backrest", "backrest-format", "5");
        file.add("backrest", "backrest-version", "\"2.55\"");
        file
    }

    pub(crate) fn add(&mut self, section: &str, key: &str, value: &str) {
        if self.section != section {
            let space = if self.section.is_empty() { "" } else { "\n" };
            writeln!(self.file, "{space}[{section}]").unwrap();
            section.clone_into(&mut self.section);
        }
        writeln!(self.file, "{key}={value}").unwrap();
        self.sum.add(InfoLine {
            section,
            key,
            value,
        });
    }

    pub(crate) fn finish(mut self) -> File {
        let sum = self.sum.finish();
        writeln!(self.file, "\n[backrest]\nbackrest-checksum=\"{sum}\"").unwrap();
        let mut file = self.file.into_inner().unwrap();
        file.rewind().unwrap();
        file
    }
}

/// An info file of these lines, with its head and checksum.
pub(crate) fn sealed(lines: &[(&str, &str, &str)]) -> String {
    let mut file = SealedFile::new();
    for (section, key, value) in lines {
        file.add(section, key, value);
    }
    let mut text = String::new();
    file.finish().read_to_string(&mut text).unwrap();
    text
}

fn lines_of(text: &str) -> Result<Vec<(String, String, String)>, RepositoryError> {
    let mut lines = Vec::new();
    let version = read_info(text.as_bytes(), "backup.info", &mut |line| {
        lines.push((line.section.into(), line.key.into(), line.value.into()));
        Ok(())
    })?;
    assert_eq!(version, "2.55");
    Ok(lines)
}

#[test]
fn a_key_may_hold_whatever_a_file_name_may() {
    let keys = [
        "pg_data/=equal=more===",
        "=",
        "#",
        "[",
        " mail\t",
        "a\\b\"c",
        "x={\"size\":1",
        "pg_data/ä",
        "[a]=[b]",
    ];
    let wanted: Vec<_> = keys.iter().map(|key| ("db", *key, "{\"a\":[1]}")).collect();
    let found = lines_of(&sealed(&wanted)).unwrap();
    let found: Vec<_> = found.iter().map(|(_, key, _)| key.as_str()).collect();
    assert_eq!(found, keys);
}

// Written by pgBackRest 2.55.1.
#[test]
fn the_checksum_is_the_one_that_pgbackrest_writes() {
    let text = include_str!("archive.info");
    let mut count = 0;
    let version = read_info(text.as_bytes(), "archive.info", &mut |_| {
        count += 1;
        Ok(())
    });
    assert_eq!((version.unwrap().as_str(), count), ("2.55.1", 4));
}

#[test]
fn a_file_that_was_changed_can_be_sealed_again() {
    let text = sealed(&[("a", "k", "1"), ("b", "l", "\"x\"")]);
    assert_eq!(sealed_again(&text), text);
    let changed = sealed_again(&text.replace("k=1", "k=2"));
    assert_eq!(lines_of(&changed).unwrap().len(), 2);
}

#[test]
fn a_changed_or_cut_file_is_refused() {
    let text = sealed(&[("a", "k", "1"), ("b", "l", "\"x\"")]);
    assert_eq!(lines_of(&text).unwrap().len(), 2);
    for (from, to) in [("k=1", "k=2"), ("[b]", "[c]"), ("l=", "m=")] {
        assert!(lines_of(&text.replace(from, to)).is_err(), "{from}");
    }
    for length in 0..text.len() {
        assert!(lines_of(&text[..length]).is_err(), "{length}");
    }
    assert!(lines_of(&format!("{text}k=1\n")).is_err());
    let other = text.replace("backrest-format=5", "backrest-format=6");
    assert!(matches!(
        lines_of(&other).unwrap_err(),
        RepositoryError::Unsupported { .. }
    ));
}
