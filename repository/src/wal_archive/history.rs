//! The history of a timeline: which timelines it comes from, and where it left each.

use std::io::Read;

use super::names::history_name;
use super::storage::WalStorage;
use crate::{Lsn, RepositoryError};

/// Largest history that is read: thousands of timelines.
const HISTORY_BYTES_MAX: u64 = 1 << 20;

/// A timeline and what it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct History {
    pub(super) timeline: u32,
    /// The timelines before it, oldest first, each with the position at which it was left.
    pub(super) parents: Vec<(u32, Lsn)>,
}

/// Reads a history of the archive; also its size in bytes.
pub(super) fn read_history(
    storage: &dyn WalStorage,
    timeline: u32,
) -> Result<(History, u64), RepositoryError> {
    let stored = storage.open(&history_name(timeline))?;
    let content = read_small(&stored)?;
    let size_bytes = content.len() as u64;
    let parents = parse(&content, timeline)
        .map_err(|reason| RepositoryError::corrupt(&stored.path, reason))?;
    Ok((History { timeline, parents }, size_bytes))
}

/// The content of a small file of the archive.
pub(super) fn read_small(stored: &super::StoredWal) -> Result<Vec<u8>, RepositoryError> {
    let (decoder, failure) = stored.decoder()?;
    let mut content = Vec::new();
    let read = decoder
        .take(HISTORY_BYTES_MAX + 1)
        .read_to_end(&mut content);
    read.map_err(|error| failure.explain(&stored.path, "the file", &error))?;
    match content.len() as u64 > HISTORY_BYTES_MAX {
        true => Err(RepositoryError::corrupt(
            &stored.path,
            "is far larger than such a file can be",
        )),
        false => Ok(content),
    }
}

/// As PostgreSQL reads it: timeline and position in each line, the rest is for people.
pub(super) fn parse(content: &[u8], timeline: u32) -> Result<Vec<(u32, Lsn)>, String> {
    let text = String::from_utf8_lossy(content);
    let mut parents: Vec<(u32, Lsn)> = Vec::new();
    let lines = text.lines().map(str::trim);
    for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let mut words = line.split_whitespace();
        let parent = words.next().and_then(|word| word.parse::<u32>().ok());
        let left_at = words.next().and_then(|word| word.parse::<Lsn>().ok());
        let (Some(parent), Some(left_at)) = (parent, left_at) else {
            let shown: String = line.chars().take(60).collect();
            return Err(format!("is no history of a timeline: {shown:?}"));
        };
        if parents.last().is_some_and(|(before, _)| *before >= parent) || parent >= timeline {
            return Err(format!("has timeline {parent} in a wrong place"));
        }
        parents.push((parent, left_at));
    }
    match parents.is_empty() {
        true => Err("names no timeline that it comes from".to_owned()),
        false => Ok(parents),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_is_read_as_postgresql_writes_it() {
        let text =
            b"1\t0/3000060\tno recovery target specified\n\n# by hand\n2\t0/5000000\tbefore x\n";
        let expected = vec![(1, Lsn(0x300_0060)), (2, Lsn(0x500_0000))];
        assert_eq!(parse(text, 3), Ok(expected));
    }

    #[test]
    fn what_is_no_history_is_refused() {
        for bad in [
            &b""[..],
            b"\n",
            b"1\n",
            b"x\t0/0\n",
            b"1\t0\n",
            b"3\t0/0\n",
            b"2\t0/1\t\n1\t0/2\n",
            b"2\t0/1\t\n2\t0/2\n",
            b"\xff\xfe\0\0",
        ] {
            assert!(parse(bad, 3).is_err(), "{bad:?}");
        }
    }
}
