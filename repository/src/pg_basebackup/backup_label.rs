//! `backup_label`: where recovery of a base backup begins.

use jiff::Timestamp;
use jiff::civil::DateTime;

use crate::{Lsn, RepositoryError};

/// Largest `backup_label` or `tablespace_map` that is read, in bytes: a label is some 300 bytes, and each tablespace one line.
pub const SMALL_FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

const PARENT_LSN: &str = "INCREMENTAL FROM LSN";
const PARENT_TIMELINE: &str = "INCREMENTAL FROM TLI";

/// What `backup_label` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupLabel {
    /// `START WAL LOCATION`: where replay begins.
    pub start_lsn: Lsn,
    /// The WAL file that holds it.
    pub start_wal_file: String,
    /// The timeline of that file.
    pub timeline: u32,
    /// `START TIME`, if its zone leaves no doubt.
    pub started_at: Option<Timestamp>,
    /// Of an incremental backup (PostgreSQL 17 and later): where and on which timeline its parent began.
    pub incremental_from: Option<(Lsn, u32)>,
}

/// Reads the content of a `backup_label`.
pub fn parse_backup_label(content: &[u8]) -> Result<BackupLabel, RepositoryError> {
    let corrupt = |reason: String| RepositoryError::corrupt("backup_label", reason);
    let text = std::str::from_utf8(content).map_err(|_| corrupt("is not UTF-8".into()))?;
    let mut start = None;
    let mut started_at = None;
    let mut parent_lsn = None;
    let mut parent_timeline = None;
    for line in text.lines() {
        let Some((key, value)) = line.split_once(": ") else {
            continue;
        };
        match key {
            "START WAL LOCATION" if start.is_some() => {
                return Err(corrupt("has two START WAL LOCATION lines".into()));
            }
            "START WAL LOCATION" => {
                let parsed = parse_start(value);
                let reason = || corrupt(format!("cannot be read: START WAL LOCATION: {value}"));
                start = Some(parsed.ok_or_else(reason)?);
            }
            "START TIME" => started_at = parse_start_time(value),
            PARENT_LSN => {
                let parsed = value.parse().ok();
                parent_lsn =
                    Some(parsed.ok_or_else(|| corrupt(format!("cannot be read: {key}: {value}")))?);
            }
            PARENT_TIMELINE => {
                let parsed = value.parse().ok().filter(|timeline| *timeline > 0);
                parent_timeline =
                    Some(parsed.ok_or_else(|| corrupt(format!("cannot be read: {key}: {value}")))?);
            }
            // CHECKPOINT LOCATION, BACKUP METHOD, BACKUP FROM, LABEL (which people choose), START TIMELINE: PostgreSQL's business.
            _ => {}
        }
    }
    let (start_lsn, start_wal_file, timeline) =
        start.ok_or_else(|| corrupt("has no START WAL LOCATION line".into()))?;
    let incremental_from = match (parent_lsn, parent_timeline) {
        (Some(lsn), Some(timeline)) => Some((lsn, timeline)),
        (None, None) => None,
        _ => return Err(corrupt("says only half of where its parent began".into())),
    };
    Ok(BackupLabel {
        start_lsn,
        start_wal_file,
        timeline,
        started_at,
        incremental_from,
    })
}

/// The same label for the whole cluster that an incremental backup stands for: PostgreSQL refuses to start with the lines about
/// its parent.
pub(crate) fn without_parent(content: &[u8]) -> Vec<u8> {
    let is_of_parent = |line: &[u8]| {
        [PARENT_LSN, PARENT_TIMELINE].iter().any(|key| {
            line.strip_prefix(key.as_bytes())
                .is_some_and(|rest| rest.starts_with(b": "))
        })
    };
    let lines = content.split_inclusive(|byte| *byte == b'\n');
    lines
        .filter(|line| !is_of_parent(line))
        .flatten()
        .copied()
        .collect()
}

/// `0/2000028 (file 000000010000000000000002)`
fn parse_start(value: &str) -> Option<(Lsn, String, u32)> {
    let (lsn, file) = value.split_once(" (file ")?;
    let file = file.strip_suffix(')')?;
    let plain = file.len() == 24 && file.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
    let timeline = u32::from_str_radix(file.get(..8)?, 16).ok()?;
    (plain && timeline > 0).then_some((lsn.parse().ok()?, file.to_owned(), timeline))
}

/// `2026-11-21 04:53:06 UTC`: local time of `log_timezone`. Abbreviations other than UTC's are ambiguous, so they tell nothing.
fn parse_start_time(value: &str) -> Option<Timestamp> {
    let (local, zone) = value.rsplit_once(' ')?;
    let local: DateTime = local.parse().ok()?;
    let offset_s = match zone {
        "UTC" | "GMT" | "Etc/UTC" | "Z" => 0,
        // Zones without an abbreviation are written as `+03` or `+0530`.
        _ => {
            let (sign, digits) = match zone.split_at_checked(1)? {
                ("+", digits) => (1, digits),
                ("-", digits) => (-1, digits),
                _ => return None,
            };
            let number = |text: &str| text.parse::<i32>().ok().filter(|n| *n < 60);
            let (hours, minutes) = match digits.len() {
                2 => (number(digits)?, 0),
                4 => (number(digits.get(..2)?)?, number(digits.get(2..)?)?),
                _ => return None,
            };
            sign * (hours * 3600 + minutes * 60)
        }
    };
    let offset = jiff::tz::Offset::from_seconds(offset_s).ok()?;
    offset.to_timestamp(local).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: &str = "START WAL LOCATION: 1/2000028 (file 000000030000000100000002)\n\
        CHECKPOINT LOCATION: 1/2000060\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n\
        START TIME: 2026-11-21 04:53:06 UTC\nLABEL: START WAL LOCATION\nSTART TIMELINE: 3\n";

    #[test]
    fn a_label_tells_where_recovery_begins() {
        let label = parse_backup_label(LABEL.as_bytes()).unwrap();
        assert_eq!(label.start_lsn, Lsn(0x1_0200_0028));
        assert_eq!(label.timeline, 3);
        assert_eq!(label.start_wal_file, "000000030000000100000002");
        assert_eq!(label.started_at, "2026-11-21T04:53:06Z".parse().ok());
        assert_eq!(label.incremental_from, None);
    }

    #[test]
    fn the_label_of_an_increment_tells_its_parent_and_is_shown_without() {
        let lines = "INCREMENTAL FROM LSN: 1/1000028\nINCREMENTAL FROM TLI: 2\n";
        let whole = format!("{LABEL}{lines}");
        let label = parse_backup_label(whole.as_bytes()).unwrap();
        assert_eq!(label.incremental_from, Some((Lsn(0x1_0100_0028), 2)));
        assert_eq!(without_parent(whole.as_bytes()), LABEL.as_bytes());
        assert_eq!(without_parent(LABEL.as_bytes()), LABEL.as_bytes());
        for bad in [
            "INCREMENTAL FROM LSN: 1/1000028\n",
            "INCREMENTAL FROM TLI: 2\n",
            "INCREMENTAL FROM LSN: x\nINCREMENTAL FROM TLI: 2\n",
            "INCREMENTAL FROM LSN: 1/1000028\nINCREMENTAL FROM TLI: 0\n",
        ] {
            assert!(
                parse_backup_label(format!("{LABEL}{bad}").as_bytes()).is_err(),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_start_time_is_believed_only_with_a_clear_zone() {
        for (text, wanted) in [
            ("2026-11-21 04:53:06 +03", Some("2026-11-21T01:53:06Z")),
            ("2026-11-21 04:53:06 -0330", Some("2026-11-21T08:23:06Z")),
            ("2026-11-21 04:53:06 GMT", Some("2026-11-21T04:53:06Z")),
            ("2026-11-21 04:53:06 CST", None),
            ("2026-13-21 04:53:06 UTC", None),
            ("x", None),
            ("", None),
            ("2026-11-21 04:53:06 é", None),
        ] {
            assert_eq!(
                parse_start_time(text),
                wanted.map(|t| t.parse().unwrap()),
                "{text}"
            );
        }
    }

    #[test]
    fn a_label_without_a_sound_start_is_refused() {
        for bad in [
            "",
            "START TIME: 2026-11-21 04:53:06 UTC\n",
            "START WAL LOCATION: 0/2000028\n",
            "START WAL LOCATION: 0/2000028 (file 00000001000000000000000)\n",
            "START WAL LOCATION: 0/2000028 (file 00000000000000000000000A)\n",
            "START WAL LOCATION: 0/2000028 (file ../../../../../../etc/ab)\n",
            "START WAL LOCATION: 0 (file 000000010000000000000002)\n",
        ] {
            assert!(parse_backup_label(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(parse_backup_label(&[0xFF]).is_err());
        assert!(parse_backup_label(format!("{LABEL}{LABEL}").as_bytes()).is_err());
    }
}
