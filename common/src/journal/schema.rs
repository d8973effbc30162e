//! Opening the file: settings, integrity, schema.

use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;

use super::JournalError;

const VERSION: i64 = 1;
/// How long another reader of the file (an operator's `sqlite3`) is waited for.
const BUSY_FOR: Duration = Duration::from_secs(10);

const TABLES: &str = "
    CREATE TABLE record (
        kind TEXT NOT NULL, id TEXT NOT NULL, body TEXT NOT NULL, ended INTEGER NOT NULL,
        created_at TEXT NOT NULL, updated_at TEXT NOT NULL,
        PRIMARY KEY (kind, id)
    );
    CREATE INDEX record_by_end ON record (kind, ended, id);
    CREATE TABLE inbox (id TEXT PRIMARY KEY, outcome TEXT NOT NULL, at TEXT NOT NULL);
    CREATE INDEX inbox_by_time ON inbox (at);
    CREATE TABLE outbox (
        id INTEGER PRIMARY KEY AUTOINCREMENT, order_key TEXT NOT NULL,
        destination_kind TEXT NOT NULL, destination TEXT NOT NULL,
        message_id TEXT NOT NULL, type_name TEXT NOT NULL, correlation_id TEXT, reply_to TEXT,
        headers TEXT NOT NULL, body BLOB NOT NULL,
        created_at TEXT NOT NULL, parked_reason TEXT
    );
    CREATE INDEX outbox_pending ON outbox (order_key, id) WHERE parked_reason IS NULL;
    CREATE TABLE sequence (key TEXT PRIMARY KEY, last INTEGER NOT NULL);
    CREATE TABLE log (
        key TEXT NOT NULL, sequence INTEGER NOT NULL, at TEXT NOT NULL, event_type TEXT NOT NULL, text TEXT NOT NULL,
        PRIMARY KEY (key, sequence)
    ) WITHOUT ROWID;
";

/// Opens and checks the file; makes the tables in a new one.
pub(super) fn open(path: &Path) -> Result<Connection, JournalError> {
    let damaged = |finding: String| JournalError::Damaged {
        path: path.to_owned(),
        finding,
    };
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_FOR)?;
    let prepared = prepare(&connection);
    match prepared {
        Err(rusqlite::Error::SqliteFailure(failure, text))
            if matches!(
                failure.code,
                rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt
            ) =>
        {
            Err(damaged(text.unwrap_or_else(|| failure.to_string())))
        }
        Err(error) => Err(error.into()),
        Ok(Prepared::Ready) => Ok(connection),
        Ok(Prepared::Damaged(finding)) => Err(damaged(finding)),
        Ok(Prepared::TooNew(found)) => Err(JournalError::TooNew {
            path: path.to_owned(),
            found,
            known: VERSION,
        }),
    }
}

enum Prepared {
    Ready,
    Damaged(String),
    TooNew(i64),
}

fn prepare(connection: &Connection) -> Result<Prepared, rusqlite::Error> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    let finding: String =
        connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if finding != "ok" {
        return Ok(Prepared::Damaged(finding));
    }
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    match found {
        0 => {
            connection.execute_batch(&format!(
                "BEGIN; {TABLES} PRAGMA user_version = {VERSION}; COMMIT;"
            ))?;
            Ok(Prepared::Ready)
        }
        VERSION => Ok(Prepared::Ready),
        _ => Ok(Prepared::TooNew(found)),
    }
}
