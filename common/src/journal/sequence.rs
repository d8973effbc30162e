//! Gapless numbers and the log of what was told, per session.

use jiff::Timestamp;
use rusqlite::OptionalExtension;

use super::{JournalError, Transaction, unreadable};

/// How many log entries are kept for one session: progress of days must not fill the disk.
const LOG_ENTRIES_MAX: u64 = 1_000;

/// One line of a session's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// When.
    pub at: Timestamp,
    /// Its number.
    pub sequence: u64,
    /// The event's type.
    pub event_type: String,
    /// What happened, for people.
    pub text: String,
}

impl Transaction<'_> {
    /// The next number of a key, from 1; given back only if the transaction commits, so there are no gaps.
    pub fn next_sequence(&self, key: &str) -> Result<u64, JournalError> {
        let mut statement = self.sqlite.prepare_cached(
            "INSERT INTO sequence (key, last) VALUES (?1, 1) ON CONFLICT (key) DO UPDATE SET last = last + 1 RETURNING last",
        )?;
        let last: i64 = statement.query_row([key], |row| row.get(0))?;
        u64::try_from(last).map_err(|e| unreadable(format!("the sequence of {key}"), e))
    }

    /// Adds a line to a key's log, and drops lines that are too old to be asked for.
    pub fn append_log(&self, key: &str, entry: &LogEntry) -> Result<(), JournalError> {
        let mut statement = self.sqlite.prepare_cached(
            "INSERT INTO log (key, sequence, at, event_type, text) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?;
        let sequence = i64::try_from(entry.sequence).unwrap_or(i64::MAX);
        let at = super::inbox::text_of(entry.at);
        statement.execute((key, sequence, at, &entry.event_type, &entry.text))?;
        if entry.sequence > LOG_ENTRIES_MAX && entry.sequence.is_multiple_of(100) {
            let keep_from = i64::try_from(entry.sequence - LOG_ENTRIES_MAX).unwrap_or(i64::MAX);
            let mut prune = self
                .sqlite
                .prepare_cached("DELETE FROM log WHERE key = ?1 AND sequence < ?2")?;
            prune.execute((key, keep_from))?;
        }
        Ok(())
    }

    /// The latest lines of a key's log, oldest first.
    pub fn log(&self, key: &str, limit: u32) -> Result<Vec<LogEntry>, JournalError> {
        let mut statement = self.sqlite.prepare_cached(
            "SELECT at, sequence, event_type, text FROM log WHERE key = ?1 ORDER BY sequence DESC LIMIT ?2",
        )?;
        let rows = statement.query_map((key, limit), |row| {
            Ok((
                row.get::<_, String>(0)?,
                row.get::<_, i64>(1)?,
                row.get::<_, String>(2)?,
                row.get::<_, String>(3)?,
            ))
        })?;
        let mut entries = Vec::new();
        for row in rows {
            let (at, sequence, event_type, text) = row?;
            let what = || format!("the log of {key}");
            entries.push(LogEntry {
                at: at.parse().map_err(|e| unreadable(what(), e))?,
                sequence: u64::try_from(sequence).map_err(|e| unreadable(what(), e))?,
                event_type,
                text,
            });
        }
        entries.reverse();
        Ok(entries)
    }

    /// The last number that a key was given; 0 before the first.
    pub fn last_sequence(&self, key: &str) -> Result<u64, JournalError> {
        let mut statement = self
            .sqlite
            .prepare_cached("SELECT last FROM sequence WHERE key = ?1")?;
        let last: Option<i64> = statement.query_row([key], |row| row.get(0)).optional()?;
        u64::try_from(last.unwrap_or(0))
            .map_err(|e| unreadable(format!("the sequence of {key}"), e))
    }
}
