//! The records: the service's own state, one JSON document each.

use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{JournalError, Transaction, unreadable};

/// Names one record.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordKey {
    /// What kind of thing it is: `session`, `mount`.
    pub kind: &'static str,
    /// Which one.
    pub id: String,
}

/// One record as it stands in the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record<T> {
    /// Its id.
    pub id: String,
    /// The document.
    pub body: T,
    /// Whether nothing more will happen to it.
    pub ended: bool,
    /// When it was first written.
    pub created_at: Timestamp,
    /// When it was written last.
    pub updated_at: Timestamp,
}

const COLUMNS: &str = "id, body, ended, created_at, updated_at";

type Raw = (String, String, bool, String, String);

fn raw(row: &Row<'_>) -> Result<Raw, rusqlite::Error> {
    Ok((
        row.get(0)?,
        row.get(1)?,
        row.get(2)?,
        row.get(3)?,
        row.get(4)?,
    ))
}

fn read<T: DeserializeOwned>(kind: &str, raw: Raw) -> Result<Record<T>, JournalError> {
    let (id, body, ended, created_at, updated_at) = raw;
    let what = format!("{kind} {id}");
    let time = |text: String| text.parse().map_err(|e| unreadable(what.clone(), e));
    Ok(Record {
        body: serde_json::from_str(&body).map_err(|e| unreadable(what.clone(), e))?,
        ended,
        created_at: time(created_at)?,
        updated_at: time(updated_at)?,
        id,
    })
}

impl Transaction<'_> {
    /// Writes a record, new or over the old one.
    pub fn put_record<T: Serialize>(
        &self,
        key: &RecordKey,
        body: &T,
        ended: bool,
    ) -> Result<(), JournalError> {
        let body = serde_json::to_string(body)
            .map_err(|e| unreadable(format!("{} {}", key.kind, key.id), e))?;
        let mut statement = self.sqlite.prepare_cached(
            "INSERT INTO record (kind, id, body, ended, created_at, updated_at) VALUES (?1, ?2, ?3, ?4, ?5, ?5)
             ON CONFLICT (kind, id) DO UPDATE SET body = ?3, ended = ?4, updated_at = ?5",
        )?;
        statement.execute((key.kind, &key.id, body, ended, self.now_text()))?;
        Ok(())
    }

    /// Reads a record.
    pub fn record<T: DeserializeOwned>(
        &self,
        key: &RecordKey,
    ) -> Result<Option<Record<T>>, JournalError> {
        let mut statement = self.sqlite.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM record WHERE kind = ?1 AND id = ?2"
        ))?;
        let found = statement.query_row((key.kind, &key.id), raw).optional()?;
        found.map(|raw| read(key.kind, raw)).transpose()
    }

    /// Reads records of a kind, newest ids first (ids of version 7 follow time), at most `limit`; ended ones only when wanted.
    pub fn records<T: DeserializeOwned>(
        &self,
        kind: &'static str,
        include_ended: bool,
        limit: usize,
    ) -> Result<Vec<Record<T>>, JournalError> {
        let mut statement = self.sqlite.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM record WHERE kind = ?1 AND ended <= ?2 ORDER BY created_at DESC, id DESC LIMIT ?3"
        ))?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement.query_map((kind, include_ended, limit), raw)?;
        rows.map(|row| read(kind, row?)).collect()
    }

    /// Removes a record.
    pub fn remove_record(&self, key: &RecordKey) -> Result<(), JournalError> {
        let mut statement = self
            .sqlite
            .prepare_cached("DELETE FROM record WHERE kind = ?1 AND id = ?2")?;
        statement.execute((key.kind, &key.id))?;
        Ok(())
    }
}
