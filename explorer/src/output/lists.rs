//! The tables of backups and sessions.

use common::messages::{BackupList, ListedRestoreInterval, SessionList};
use jiff::tz::TimeZone;

use super::human::{self, or_nothing};
use super::table::{Align, Table};

/// The backups, then what could not be read.
pub(crate) fn backups(list: &BackupList, zone: &TimeZone) -> String {
    let mut text = String::new();
    if list.backups.is_empty() {
        text += "no backups\n";
    } else {
        let mut table = Table::new(&[
            ("REPOSITORY", Align::Left),
            ("BACKUP", Align::Left),
            ("FORMAT", Align::Left),
            ("PG", Align::Right),
            ("STARTED", Align::Left),
            ("SIZE", Align::Right),
            ("FILES", Align::Right),
            ("TABLESPACES", Align::Right),
            ("RECOVERABLE FROM", Align::Left),
            ("TO", Align::Left),
        ]);
        for backup in &list.backups {
            let (from, to) = match &backup.recoverable {
                Some(interval) => (
                    point(&interval.from_lsn, interval.from, zone),
                    point(
                        &interval.to_lsn,
                        interval.to.or(archived_at(interval)),
                        zone,
                    ),
                ),
                None => (human::NOTHING.to_owned(), human::NOTHING.to_owned()),
            };
            table.row([
                backup.repository.to_string(),
                backup.label.to_string(),
                backup.format.clone(),
                backup.postgresql_major.to_string(),
                or_nothing(backup.started_at.map(|at| human::time(at, zone))),
                human::size(backup.size_bytes),
                backup.file_count.to_string(),
                backup.tablespace_count.to_string(),
                from,
                to,
            ]);
        }
        text += &table.render();
    }
    if list.truncated {
        text += "older backups are not shown; name one repository with --repository\n";
    }
    for problem in &list.problems {
        text += &format!("cannot be read: {problem}\n");
    }
    text
}

/// Without the WAL itself nobody knows the time of the last commit in it: it was not later than this.
fn archived_at(interval: &ListedRestoreInterval) -> Option<jiff::Timestamp> {
    interval.archive.as_ref()?.archived_at
}

fn point(lsn: &str, at: Option<jiff::Timestamp>, zone: &TimeZone) -> String {
    match at {
        Some(at) => format!("{} ({lsn})", human::time(at, zone)),
        None => lsn.to_owned(),
    }
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
    fn backups_are_an_aligned_table() {
        let list = samples::backup_list();
        let expected = "\
REPOSITORY  BACKUP           FORMAT               PG  STARTED                  SIZE  FILES  TABLESPACES  RECOVERABLE FROM                 TO
main        base_2026-11-20  pg_basebackup plain  15  2026-11-20 01:00:00   1.5 GiB   1204            1  2026-11-20 01:02:00 (0/2000100)  0/2000100
main        old              pg_basebackup tar    14  -                    10.0 KiB      3            0  -                                -
cannot be read: repository cold: no such directory; mount it, or correct its path in the configuration [unreadable_backup]
";
        assert_eq!(backups(&list, &TimeZone::UTC), expected);
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
