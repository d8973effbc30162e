//! The tables of backups and sessions.

use std::collections::BTreeMap;

use common::messages::{BackupList, BackupListed, ListedRestoreInterval, SessionList};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::human::{self, or_nothing};
use super::table::{Align, Table};

/// The backups, repository by repository with what is to be known of them, then what could not be read.
pub(crate) fn backups(list: &BackupList, zone: &TimeZone) -> String {
    let mut text = String::new();
    if list.backups.is_empty() {
        text += "no backups\n";
    }
    for backups in list.backups.chunk_by(|a, b| a.repository == b.repository) {
        if let Some(first) = backups.first() {
            text += &format!("repository {}\n", first.repository);
        }
        text += &table(backups, zone);
        text += &remarks(backups);
    }
    if list.truncated {
        text += "older backups are not shown; name one repository with --repository\n";
    }
    for problem in &list.problems {
        text += &format!("cannot be read: {problem}\n");
    }
    text
}

/// The backups of one repository. With the longest labels of pgBackRest it is 120 columns wide.
fn table(backups: &[BackupListed], zone: &TimeZone) -> String {
    let mut table = Table::new(&[
        ("BACKUP", Align::Left),
        ("KIND", Align::Left),
        ("FORMAT", Align::Left),
        ("PG", Align::Right),
        ("STARTED", Align::Left),
        ("STOPPED", Align::Left),
        ("SIZE", Align::Right),
        ("RECOVERABLE TO", Align::Left),
    ]);
    for backup in backups {
        table.row([
            backup.label.to_string(),
            or_nothing(backup.kind.map(|kind| kind.name())),
            format_without_kind(backup).to_owned(),
            backup.postgresql_major.to_string(),
            or_nothing(backup.started_at.map(|at| human::time(at, zone))),
            stopped(backup, zone),
            human::size(backup.size_bytes),
            or_nothing(backup.recoverable.as_ref().map(|to| reached(to, zone))),
        ]);
    }
    table.render()
}

/// The kind has a column of its own.
fn format_without_kind(backup: &BackupListed) -> &str {
    let kind = backup.kind.map_or("", |kind| kind.name());
    let format = backup.format.strip_suffix(kind);
    format.unwrap_or(&backup.format).trim_end()
}

/// The time of day is enough where the date is that of the start.
fn stopped(backup: &BackupListed, zone: &TimeZone) -> String {
    let Some(stopped_at) = backup.stopped_at else {
        return human::NOTHING.to_owned();
    };
    let date = |at: Timestamp| at.to_zoned(zone.clone()).date();
    match backup.started_at {
        Some(started_at) if date(started_at) == date(stopped_at) => {
            human::time_of_day(stopped_at, zone)
        }
        _ => human::time(stopped_at, zone),
    }
}

/// Without the WAL itself nobody knows the time of the last commit in it: it was not later than when it was archived.
fn reached(interval: &ListedRestoreInterval, zone: &TimeZone) -> String {
    let archive = interval.archive.as_ref();
    let at = interval
        .to
        .or(archive.and_then(|archive| archive.archived_at));
    at.map_or_else(|| interval.to_lsn.clone(), |at| human::time(at, zone))
}

/// What no column has: what backups stand on, where their WAL has a hole, and why they are slow.
fn remarks(backups: &[BackupListed]) -> String {
    let mut text = String::new();
    for backup in backups {
        if !backup.references.is_empty() {
            let references: Vec<String> =
                backup.references.iter().map(ToString::to_string).collect();
            text += &format!("{} needs {}\n", backup.label, references.join(", "));
        }
    }
    for backup in backups {
        let archive = backup
            .recoverable
            .as_ref()
            .and_then(|to| to.archive.as_ref());
        if let Some(gap) = archive.and_then(|archive| archive.gap.as_ref()) {
            text += &format!(
                "{}: recovery ends before a gap of the archive: {} is missing, the next is {}\n",
                backup.label, gap.first_missing, gap.next
            );
        }
    }
    // Said once for all that are stored alike.
    let mut slow: BTreeMap<&str, Vec<&BackupListed>> = BTreeMap::new();
    for backup in backups {
        if let Some(why) = &backup.slow_layout {
            slow.entry(why).or_default().push(backup);
        }
    }
    for (why, of) in slow {
        text += &match of.as_slice() {
            [one] => format!("{}: {why}\n", one.label),
            several => format!("{} backups: {why}\n", several.len()),
        };
    }
    text
}

/// The sessions, then why some wait or failed.
pub(crate) fn sessions(list: &SessionList, zone: &TimeZone) -> String {
    if list.sessions.is_empty() {
        return "no sessions\n".to_owned();
    }
    let mut table = Table::new(&[
        ("SESSION", Align::Left),
        ("KIND", Align::Left),
        ("STATUS", Align::Left),
        ("STEP", Align::Left),
        ("REPOSITORY", Align::Left),
        ("BACKUP", Align::Left),
        ("TARGET", Align::Left),
        ("PORT", Align::Right),
        ("ATTEMPT", Align::Right),
        ("STARTED", Align::Left),
        ("ENDED", Align::Left),
    ]);
    for session in &list.sessions {
        table.row([
            session.session_id.to_string(),
            session.kind.to_string(),
            session.status.to_string(),
            or_nothing(session.step),
            session.repository.to_string(),
            or_nothing(session.backup.as_ref()),
            session.target.to_string(),
            or_nothing(session.port),
            session.attempt.to_string(),
            human::time(session.started_at, zone),
            or_nothing(session.ended_at.map(|at| human::time(at, zone))),
        ]);
    }
    let mut text = table.render();
    for session in &list.sessions {
        if let Some(problem) = &session.problem {
            text += &format!("{}: {problem}\n", session.session_id);
        }
    }
    if list.truncated {
        text += "older sessions are not shown\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::samples;

    #[test]
    fn backups_are_a_table_for_each_repository_and_what_is_to_be_known_of_them() {
        let list = samples::backup_list();
        let expected = "\
repository main
BACKUP           KIND  FORMAT               PG  STARTED              STOPPED      SIZE  RECOVERABLE TO
base_2026-11-20  full  pg_basebackup plain  15  2026-11-20 01:00:00  -         1.5 GiB  0/2000100
old              -     pg_basebackup tar    14  -                    -        10.0 KiB  -
repository rest
BACKUP                             KIND  FORMAT      PG  STARTED              STOPPED         SIZE  RECOVERABLE TO
20261120-010000F_20261121-230000I  incr  pgBackRest  15  2026-11-21 23:00:00  23:59:59  1023.9 GiB  2026-11-22 01:02:00
20261120-010000F                   full  pgBackRest  15  2026-11-20 01:00:00  01:30:00     1.5 GiB  2026-11-22 01:02:00
20261120-010000F_20261121-230000I needs 20261120-010000F
20261120-010000F: recovery ends before a gap of the archive: 000000010000000000000006 is missing, the next is 000000010000000000000008
2 backups: pages are slow to read at random; set repo-block=y
cannot be read: repository cold: no such directory; mount it, or correct its path in the configuration [unreadable_backup]
";
        let text = backups(&list, &TimeZone::UTC);
        assert_eq!(text, expected);
        let tables = text.lines().filter(|line| line.contains("-11-"));
        for line in tables.filter(|line| !line.contains(": ")) {
            assert!(line.chars().count() <= 120, "{line}");
        }
    }

    #[test]
    fn no_backups_and_no_sessions_are_said_in_words() {
        let mut list = samples::backup_list();
        list.backups.clear();
        list.problems.clear();
        assert_eq!(backups(&list, &TimeZone::UTC), "no backups\n");
        let list = SessionList {
            sessions: Vec::new(),
            truncated: false,
        };
        assert_eq!(sessions(&list, &TimeZone::UTC), "no sessions\n");
    }

    #[test]
    fn sessions_are_an_aligned_table_with_whole_ids_and_reasons() {
        let list = SessionList {
            sessions: samples::sessions(),
            truncated: true,
        };
        let expected = "\
SESSION                               KIND     STATUS                    STEP   REPOSITORY  BACKUP           TARGET  PORT  ATTEMPT  STARTED              ENDED
0190b5a8-7c3a-7def-8123-456789abcdef  publish  Published                 -      main        base_2026-11-20  db1     5433        1  2026-11-21 04:00:00  -
0190b5a8-7c3a-7def-8123-556789abcdef  publish  Waiting for manual retry  start  main        -                db1        -        2  2026-11-21 04:00:00  -
0190b5a8-7c3a-7def-8123-556789abcdef: PostgreSQL on db1 ended with status 1; look at its log, then retry [instance_failed]
older sessions are not shown
";
        assert_eq!(sessions(&list, &TimeZone::UTC), expected);
    }
}
