//! Names of files in an archive of WAL, as PostgreSQL gives them.

use std::collections::BTreeSet;

use crate::{Lsn, RepositoryError};

/// Most files of an archive that are looked at.
const NAME_COUNT_MAX: usize = 1 << 22;
/// Most timelines that an archive may have.
const HISTORY_COUNT_MAX: usize = 1 << 12;

/// The files of an archive that matter, by name; the compression and checksum that a format puts behind a name are not in it.
#[derive(Debug, Default)]
pub(crate) struct ArchiveNames {
    segments: BTreeSet<String>,
    /// Of those that are there only as long as they are being received, or were when somebody stopped to receive them.
    partial: BTreeSet<String>,
    histories: BTreeSet<u32>,
}

impl ArchiveNames {
    /// Takes a name in, if it is that of a segment or of a history; others (backup labels) do not matter.
    pub(crate) fn add(&mut self, name: &str) -> Result<(), RepositoryError> {
        if is_segment(name) {
            self.segments.insert(name.to_owned());
        } else if let Some(timeline) = parse_history_name(name) {
            self.histories.insert(timeline);
        }
        self.check_count(name)
    }

    fn check_count(&self, name: &str) -> Result<(), RepositoryError> {
        let segment_count = self.segments.len() + self.partial.len();
        match segment_count > NAME_COUNT_MAX || self.histories.len() > HISTORY_COUNT_MAX {
            true => Err(RepositoryError::unsupported(
                name,
                format!(
                    "is one file too many: the archive has more than {NAME_COUNT_MAX} segments or {HISTORY_COUNT_MAX} timelines"
                ),
                "use a newer backup, or have the archive expired",
            )),
            false => Ok(()),
        }
    }

    /// Takes in the name of a segment of which only a part is there.
    pub(crate) fn add_partial(&mut self, name: &str) -> Result<(), RepositoryError> {
        if is_segment(name) {
            self.partial.insert(name.to_owned());
        }
        self.check_count(name)
    }

    /// The segments, whole or not.
    pub(crate) fn segments(&self) -> impl Iterator<Item = &str> {
        let partial = self.partial.difference(&self.segments);
        self.segments.iter().chain(partial).map(String::as_str)
    }

    /// Whether only a part of a segment is there.
    pub(crate) fn is_partial(&self, name: &str) -> bool {
        self.partial.contains(name) && !self.segments.contains(name)
    }

    pub(crate) fn histories(&self) -> impl Iterator<Item = u32> {
        self.histories.iter().copied()
    }

    /// The first segment of a timeline that may have this position: the archive may also have older ones, even of another cluster.
    pub(crate) fn first_segment_of<'a>(&'a self, timeline: u32, from: Lsn) -> Option<&'a str> {
        let timeline = format!("{timeline:08X}");
        let log = format!("{timeline}{:08X}", from.0 >> 32);
        let first = |of: &'a BTreeSet<String>| of.range(log.clone()..).next();
        let all = [first(&self.segments), first(&self.partial)];
        let first = all.into_iter().flatten().min()?;
        first.starts_with(&timeline).then_some(first)
    }
}

/// Whether it is the name of a segment: 24 hexadecimal digits.
pub(crate) fn is_segment(name: &str) -> bool {
    name.len() == 24 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'))
}

/// Whether a directory of the archive, named by timeline and upper half of the position, may have segments from there on.
pub(crate) fn may_hold(directory: &str, from: Lsn) -> bool {
    let is_one = directory.len() == 16
        && directory
            .bytes()
            .all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
    let log = directory
        .get(8..)
        .and_then(|log| u64::from_str_radix(log, 16).ok());
    is_one && log.is_some_and(|log| log >= from.0 >> 32)
}

/// The timeline of `0000000A.history`.
pub(crate) fn parse_history_name(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(".history")?;
    let is_one = digits.len() == 8
        && digits
            .bytes()
            .all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
    let timeline = is_one
        .then(|| u32::from_str_radix(digits, 16).ok())
        .flatten()?;
    (timeline > 1).then_some(timeline)
}

pub(crate) fn history_name(timeline: u32) -> String {
    format!("{timeline:08X}.history")
}

/// The timeline of a segment, and its number: its position over its size.
pub(super) fn parse_segment(name: &str, segment_bytes: u64) -> Option<(u32, u64)> {
    let part = |range| {
        name.get(range)
            .and_then(|digits| u64::from_str_radix(digits, 16).ok())
    };
    let per_log = (1_u64 << 32) / segment_bytes;
    let (timeline, log, segment) = (part(0..8)?, part(8..16)?, part(16..24)?);
    let timeline = u32::try_from(timeline)
        .ok()
        .filter(|timeline| *timeline > 0)?;
    (segment < per_log).then_some((timeline, log * per_log + segment))
}

/// The name of a segment by its number.
pub(super) fn segment_name(timeline: u32, number: u64, segment_bytes: u64) -> String {
    crate::pg_basebackup::segment_name(
        timeline,
        Lsn(number.saturating_mul(segment_bytes)),
        segment_bytes,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_no_wal_are_left_out() {
        let mut names = ArchiveNames::default();
        for name in [
            "000000010000000000000002",
            "00000002.history",
            "000000010000000000000002.00000028.backup",
            "000000010000000000000002.partial",
            "00000001000000000000000g",
            "00000001000000000000000a",
            "00000001.history",
            "2.history",
            "../../../../../../../etc",
            "",
        ] {
            names.add(name).unwrap();
        }
        assert_eq!(
            names.segments().collect::<Vec<_>>(),
            ["000000010000000000000002"]
        );
        assert_eq!(names.histories().collect::<Vec<_>>(), [2]);
        assert!(names.first_segment_of(1, Lsn(5)).is_some());
        assert!(names.first_segment_of(1, Lsn(1 << 32)).is_none());
        assert!(names.first_segment_of(2, Lsn(5)).is_none());
    }

    #[test]
    fn a_segment_is_partial_only_where_it_is_not_there_whole() {
        let (whole, part) = ("000000010000000000000002", "000000010000000000000003");
        let mut names = ArchiveNames::default();
        names.add(whole).unwrap();
        for name in [whole, part, "x"] {
            names.add_partial(name).unwrap();
        }
        assert_eq!(names.segments().collect::<Vec<_>>(), [whole, part]);
        assert!(names.is_partial(part) && !names.is_partial(whole));
        assert_eq!(names.first_segment_of(1, Lsn(0)), Some(whole));
    }

    #[test]
    fn a_name_and_a_number_are_the_same_segment() {
        for (name, segment_bytes, number) in [
            ("000000010000000000000002", 16 << 20, 2),
            ("0000000A0000000100000000", 16 << 20, 256),
            ("000000010000000100000003", 1 << 30, 7),
            ("0000000100000000000000FF", 1 << 20, 255),
        ] {
            let (timeline, found) = parse_segment(name, segment_bytes).unwrap();
            assert_eq!(found, number);
            assert_eq!(segment_name(timeline, number, segment_bytes), name);
        }
        for bad in ["000000000000000000000002", "000000010000000000000100"] {
            assert_eq!(parse_segment(bad, 16 << 20), None, "{bad}");
        }
    }

    #[test]
    fn directories_before_the_backup_are_not_looked_into() {
        for (directory, expected) in [
            ("0000000100000002", true),
            ("0000000500000003", true),
            ("0000000100000001", false),
            ("00000001", false),
            ("..............00", false),
        ] {
            assert_eq!(
                may_hold(directory, Lsn(2 << 32 | 5)),
                expected,
                "{directory}"
            );
        }
    }
}
