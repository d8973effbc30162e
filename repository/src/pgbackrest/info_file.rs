//! The syntax that `backup.info`, `archive.info` and `backup.manifest` share: sections of `key=JSON` lines with a SHA-1
//! over all of them at the end (`info/info.c` and `common/ini.c` of pgBackRest).
//!
//! A file is read as a stream: a manifest may have a million lines.

use std::io::{BufRead, BufReader, Read};

use serde::de::{DeserializeOwned, IgnoredAny};
use sha1::{Digest, Sha1};

use crate::RepositoryError;

/// The only format number there is so far.
const FORMAT: u64 = 5;
/// Longest line, in bytes: the longest are lists of a file's bad pages.
const LINE_BYTES_MAX: u64 = 16 << 20;

/// One `key=value` line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InfoLine<'a> {
    /// The section it is in, without brackets.
    pub section: &'a str,
    /// Its key; it may hold any character.
    pub key: &'a str,
    /// Its value, as JSON.
    pub value: &'a str,
}

/// What takes the lines, in the file's order; an error ends the reading.
pub type OnLine<'a> = dyn FnMut(InfoLine<'_>) -> Result<(), RepositoryError> + 'a;

impl InfoLine<'_> {
    /// The value, as what it should be.
    pub(crate) fn parse<T: DeserializeOwned>(&self, file: &str) -> Result<T, RepositoryError> {
        serde_json::from_str(self.value).map_err(|error| {
            let (section, key) = (self.section, self.key);
            RepositoryError::corrupt(file, format!("[{section}] {key}: {error}"))
        })
    }
}

/// Reads a whole info file and hands every line outside of `[backrest]` on. What was handed on counts only if this
/// returns without an error: the checksum is at the file's end. Returns the version of pgBackRest that wrote it.
pub fn read_info(
    source: impl Read,
    file: &str,
    on_line: &mut OnLine<'_>,
) -> Result<String, RepositoryError> {
    let corrupt = |reason: String| RepositoryError::corrupt(file, reason);
    let mut reader = BufReader::with_capacity(1 << 18, source);
    let mut raw = Vec::new();
    let mut section = String::new();
    let mut sum = InfoSum::default();
    let mut head = Head::default();
    for number in 1_u64.. {
        raw.clear();
        let mut limited = (&mut reader).take(LINE_BYTES_MAX);
        let count = limited.read_until(b'\n', &mut raw);
        let count = count.map_err(|error| RepositoryError::unreadable(file, "read", error))?;
        if count == 0 {
            break;
        }
        let Some(line) = raw.strip_suffix(b"\n") else {
            return Err(corrupt(format!(
                "line {number} has no end: the file is cut off"
            )));
        };
        let line = std::str::from_utf8(line)
            .map_err(|_| corrupt(format!("line {number} is not UTF-8")))?;
        if head.checksum.is_some() && !line.is_empty() {
            return Err(corrupt("has lines after its checksum".into()));
        }
        if line.is_empty() {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            section.clear();
            section.push_str(name);
            continue;
        }
        let (key, value) = split_entry(line)
            .ok_or_else(|| corrupt(format!("line {number} is no key=value: {line}")))?;
        let line = InfoLine {
            section: &section,
            key,
            value,
        };
        if section != "backrest" {
            sum.add(line);
            on_line(line)?;
        } else if head.take(line, file)? {
            sum.add(line);
        }
    }
    head.check(sum, file)
}

/// The lines of an info file with the checksum that they should have, for fuzzing.
pub fn sealed_again(text: &str) -> String {
    let end = text
        .rfind("\n[backrest]\nbackrest-checksum=")
        .unwrap_or(text.len());
    let text = text.get(..end).unwrap_or_default();
    let mut sum = InfoSum::default();
    let mut section = "";
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            section = name;
        } else if let Some((key, value)) = split_entry(line) {
            let line = InfoLine {
                section,
                key,
                value,
            };
            sum.add(line);
        }
    }
    let sum = sum.finish();
    format!("{text}\n[backrest]\nbackrest-checksum=\"{sum}\"\n")
}

/// Finds the `=` behind the key: the first one whose rest is JSON.
fn split_entry(line: &str) -> Option<(&str, &str)> {
    // No key is longer than a path, so more tries would only serve an attacker.
    const TRIES_MAX: usize = 4096;
    line.match_indices('=')
        .take(TRIES_MAX)
        .filter(|(at, _)| *at > 0)
        .map(|(at, _)| (line.get(..at), line.get(at + 1..)))
        .find_map(|(key, rest)| {
            let (key, rest) = (key?, rest?);
            let first = *rest.as_bytes().first()?;
            let may_be = matches!(first, b'{' | b'"' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n');
            let is_json = may_be && serde_json::from_str::<IgnoredAny>(rest).is_ok();
            is_json.then_some((key, rest))
        })
}

/// What `[backrest]` says.
#[derive(Debug, Default)]
struct Head {
    format: Option<u64>,
    version: Option<String>,
    checksum: Option<String>,
}

impl Head {
    /// Takes a line of `[backrest]`; returns whether the checksum covers it.
    fn take(&mut self, line: InfoLine<'_>, file: &str) -> Result<bool, RepositoryError> {
        match line.key {
            "backrest-checksum" => self.checksum = Some(line.parse(file)?),
            "backrest-format" => {
                let format = line.parse(file)?;
                if format != FORMAT {
                    return Err(RepositoryError::unsupported(
                        file,
                        format!(
                            "is of format {format}, and only format {FORMAT} of pgBackRest is known"
                        ),
                        "use a newer pginstant",
                    ));
                }
                self.format = Some(format);
            }
            "backrest-version" => self.version = Some(line.parse(file)?),
            _ => {}
        }
        Ok(line.key != "backrest-checksum")
    }

    fn check(self, sum: InfoSum, file: &str) -> Result<String, RepositoryError> {
        let corrupt = |reason: &str| RepositoryError::corrupt(file, reason);
        let wanted = self
            .checksum
            .ok_or_else(|| corrupt("has no checksum at its end: the file is cut off"))?;
        if sum.finish() != wanted {
            return Err(corrupt("does not have the checksum at its end"));
        }
        if self.format.is_none() {
            return Err(corrupt("does not say its format"));
        }
        self.version
            .ok_or_else(|| corrupt("does not say which pgBackRest wrote it"))
    }
}

/// The checksum of an info file: SHA-1 over its sections as if they were one JSON object.
#[derive(Debug, Default)]
struct InfoSum {
    hasher: Sha1,
    section: Option<String>,
    escaped: String,
}

impl InfoSum {
    fn add(&mut self, line: InfoLine<'_>) {
        if self.section.as_deref() == Some(line.section) {
            self.hasher.update(b",");
        } else {
            let opening: &[u8] = match self.section {
                None => b"{\"",
                Some(_) => b"},\"",
            };
            self.hasher.update(opening);
            self.hasher.update(line.section);
            self.hasher.update(b"\":{");
            self.section = Some(line.section.to_owned());
        }
        self.escaped.clear();
        for c in line.key.chars() {
            let name = match c {
                '"' | '\\' => c,
                '\n' => 'n',
                '\r' => 'r',
                '\t' => 't',
                '\u{8}' => 'b',
                '\u{c}' => 'f',
                _ => {
                    self.escaped.push(c);
                    continue;
                }
            };
            self.escaped.extend(['\\', name]);
        }
        self.hasher.update(b"\"");
        self.hasher.update(&self.escaped);
        self.hasher.update(b"\":");
        self.hasher.update(line.value);
    }

    fn finish(mut self) -> String {
        self.hasher.update(b"}}");
        let digest = self.hasher.finalize();
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
#[path = "info_file/tests.rs"]
pub(crate) mod tests;
