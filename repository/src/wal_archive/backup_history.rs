//! The file that PostgreSQL archives when a backup is finished (`<segment>.<offset>.backup`): it says where the backup ends, also of
//! one without a manifest.

use super::names::segment_name;
use crate::Lsn;

/// The name of the file of a backup that began here.
pub(super) fn backup_history_name(timeline: u32, start_lsn: Lsn, segment_bytes: u64) -> String {
    let segment = segment_name(timeline, start_lsn.0 / segment_bytes, segment_bytes);
    format!("{segment}.{:08X}.backup", start_lsn.0 % segment_bytes)
}

/// Where a backup ends that began here; the reason if the file does not say so.
pub(super) fn parse_stop(content: &[u8], start_lsn: Lsn) -> Result<Lsn, String> {
    let text = String::from_utf8_lossy(content);
    let lsn_of = |key: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(key));
        let value = value.ok_or_else(|| format!("has no line {key:?}"))?;
        let lsn = value.split_whitespace().next().unwrap_or_default();
        lsn.parse::<Lsn>()
            .map_err(|_| format!("cannot be read: {key}{lsn}"))
    };
    let start = lsn_of("START WAL LOCATION: ")?;
    let stop = lsn_of("STOP WAL LOCATION: ")?;
    if start != start_lsn {
        return Err(format!(
            "is of a backup that begins at {start}, and not at {start_lsn}"
        ));
    }
    match stop > start {
        true => Ok(stop),
        false => Err(format!(
            "says that it ends at {stop}, and begins at {start}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HISTORY: &str = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n\
        STOP WAL LOCATION: 0/3000138 (file 000000010000000000000003)\nCHECKPOINT LOCATION: 0/2000060\n\
        BACKUP METHOD: streamed\nBACKUP FROM: primary\nSTART TIME: 2026-11-21 04:53:06 UTC\n\
        LABEL: STOP WAL LOCATION: 0/1\nSTART TIMELINE: 1\nSTOP TIME: 2026-11-21 04:53:07 UTC\nSTOP TIMELINE: 1\n";

    #[test]
    fn the_history_of_a_backup_tells_where_it_ends() {
        let start = Lsn(0x200_0028);
        assert_eq!(
            backup_history_name(1, start, 16 << 20),
            "000000010000000000000002.00000028.backup"
        );
        assert_eq!(parse_stop(HISTORY.as_bytes(), start), Ok(Lsn(0x300_0138)));
    }

    #[test]
    fn one_that_does_not_say_it_is_refused() {
        let start = Lsn(0x200_0028);
        for bad in [
            String::new(),
            HISTORY.replace("0/3000138", "x"),
            HISTORY.replace("0/3000138", "0/2000028"),
            HISTORY.replace("0/2000028", "0/2000029"),
            HISTORY.replace("\nSTOP WAL", "\nEND WAL"),
        ] {
            assert!(parse_stop(bad.as_bytes(), start).is_err(), "{bad}");
        }
        assert!(parse_stop(&[0xff; 100], start).is_err());
    }
}
