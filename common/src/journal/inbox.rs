//! The inbox: what came of each command, so that a repeated one changes nothing and gets the same answer.

use jiff::{SignedDuration, Timestamp};
use rusqlite::OptionalExtension;
use uuid::Uuid;

use super::{JournalError, Transaction};

impl Transaction<'_> {
    /// What came of the message when it came first; `None` when it is new.
    pub fn inbox_outcome(&self, id: Uuid) -> Result<Option<String>, JournalError> {
        let mut statement = self
            .sqlite
            .prepare_cached("SELECT outcome FROM inbox WHERE id = ?1")?;
        let outcome = statement.query_row([id.to_string()], |row| row.get(0));
        Ok(outcome.optional()?)
    }

    /// Notes what came of a message. A second note for the same message changes nothing.
    pub fn remember(&self, id: Uuid, outcome: &str) -> Result<(), JournalError> {
        let mut statement = self.sqlite.prepare_cached(
            "INSERT INTO inbox (id, outcome, at) VALUES (?1, ?2, ?3) ON CONFLICT (id) DO NOTHING",
        )?;
        statement.execute((id.to_string(), outcome, self.now_text()))?;
        Ok(())
    }

    /// Forgets messages that came longer ago than any sender repeats them; gives their number.
    pub fn prune_inbox(&self, older_than: SignedDuration) -> Result<usize, JournalError> {
        let before = self
            .env
            .now()
            .checked_sub(older_than)
            .unwrap_or(Timestamp::MIN);
        let mut statement = self
            .sqlite
            .prepare_cached("DELETE FROM inbox WHERE at < ?1")?;
        Ok(statement.execute([text_of(before)])?)
    }

    pub(super) fn now_text(&self) -> String {
        text_of(self.env.now())
    }
}

/// Instants as text of equal length, so that they sort as they follow.
pub(super) fn text_of(at: Timestamp) -> String {
    format!("{at:.6}")
}
