//! The outbox: messages that are owed, in the order in which they were promised.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rusqlite::Row;

use super::{Journal, JournalError, Transaction, unreadable};
use crate::bus::{Destination, OutgoingMessage};

/// How much is owed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OutboxDepth {
    /// Messages not yet relayed.
    pub pending_count: u64,
    /// Messages that no queue takes, kept for people to look at.
    pub parked_count: u64,
    /// When the oldest pending one was promised.
    pub oldest_at: Option<Timestamp>,
}

/// A message of the outbox.
#[derive(Debug, Clone)]
pub(super) struct Owed {
    pub(super) id: i64,
    pub(super) order_key: String,
    pub(super) message: OutgoingMessage,
}

/// Messages of one key that are looked at in one round, so that one long queue does not hide the others.
const PER_KEY_MAX: u32 = 32;
/// Messages that are looked at in one round.
const ROUND_MAX: u32 = 512;

impl Transaction<'_> {
    /// Promises a message. Those of one key (a session) are relayed in order; those without are on their own.
    pub fn enqueue(
        &self,
        order_key: Option<&str>,
        message: &OutgoingMessage,
    ) -> Result<(), JournalError> {
        let (kind, destination) = match &message.destination {
            Destination::Queue(name) => ("queue", name),
            Destination::Commands { routing_key } => ("commands", routing_key),
            Destination::Events { routing_key } => ("events", routing_key),
        };
        let headers = serde_json::to_string(&message.headers)
            .map_err(|e| unreadable("the headers of a message", e))?;
        let order_key = match order_key {
            Some(key) => key.to_owned(),
            None => format!("message {}", message.message_id),
        };
        let mut statement = self.sqlite.prepare_cached(
            "INSERT INTO outbox (order_key, destination_kind, destination, message_id, type_name, correlation_id, reply_to, headers, body, created_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )?;
        statement.execute((
            order_key,
            kind,
            destination,
            &message.message_id,
            &message.type_name,
            &message.correlation_id,
            &message.reply_to,
            headers,
            &message.body,
            self.now_text(),
        ))?;
        self.enqueued.set(true);
        Ok(())
    }

    /// How many messages are owed.
    pub fn outbox_depth(&self) -> Result<OutboxDepth, JournalError> {
        let mut statement = self.sqlite.prepare_cached(
            "SELECT count(*) FILTER (WHERE parked_reason IS NULL), count(parked_reason),
                    min(created_at) FILTER (WHERE parked_reason IS NULL) FROM outbox",
        )?;
        let (pending, parked, oldest): (i64, i64, Option<String>) =
            statement.query_row([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        let count = |n: i64| u64::try_from(n).unwrap_or(0);
        let oldest_at = match oldest {
            Some(text) => Some(
                text.parse()
                    .map_err(|e| unreadable("a time in the outbox", e))?,
            ),
            None => None,
        };
        Ok(OutboxDepth {
            pending_count: count(pending),
            parked_count: count(parked),
            oldest_at,
        })
    }

    pub(super) fn owed(&self) -> Result<Vec<Owed>, JournalError> {
        let mut statement = self.sqlite.prepare_cached(
            "SELECT id, order_key, destination_kind, destination, message_id, type_name, correlation_id, reply_to, headers, body
             FROM (SELECT *, row_number() OVER (PARTITION BY order_key ORDER BY id) AS place
                   FROM outbox WHERE parked_reason IS NULL)
             WHERE place <= ?1 ORDER BY place, id LIMIT ?2",
        )?;
        let rows = statement.query_map((PER_KEY_MAX, ROUND_MAX), owed_of)?;
        rows.map(|row| row?).collect()
    }

    pub(super) fn relayed(&self, ids: &[i64]) -> Result<(), JournalError> {
        let mut statement = self
            .sqlite
            .prepare_cached("DELETE FROM outbox WHERE id = ?1")?;
        for id in ids {
            statement.execute([id])?;
        }
        Ok(())
    }

    pub(super) fn park_owed(&self, id: i64, reason: &str) -> Result<(), JournalError> {
        let mut statement = self
            .sqlite
            .prepare_cached("UPDATE outbox SET parked_reason = ?2 WHERE id = ?1")?;
        statement.execute((id, reason))?;
        Ok(())
    }
}

fn owed_of(row: &Row<'_>) -> Result<Result<Owed, JournalError>, rusqlite::Error> {
    let kind: String = row.get(2)?;
    let name: String = row.get(3)?;
    let headers: String = row.get(8)?;
    let destination = match kind.as_str() {
        "queue" => Destination::Queue(name),
        "commands" => Destination::Commands { routing_key: name },
        "events" => Destination::Events { routing_key: name },
        other => {
            return Ok(Err(unreadable(
                "a message of the outbox",
                format!("destination {other:?}"),
            )));
        }
    };
    let headers: BTreeMap<String, String> = match serde_json::from_str(&headers) {
        Ok(headers) => headers,
        Err(error) => return Ok(Err(unreadable("a message of the outbox", error))),
    };
    Ok(Ok(Owed {
        id: row.get(0)?,
        order_key: row.get(1)?,
        message: OutgoingMessage {
            destination,
            message_id: row.get(4)?,
            type_name: row.get(5)?,
            correlation_id: row.get(6)?,
            reply_to: row.get(7)?,
            headers,
            body: row.get(9)?,
        },
    }))
}

impl Journal {
    /// How many messages are owed.
    pub async fn outbox_depth(&self) -> Result<OutboxDepth, JournalError> {
        self.commit(|t| t.outbox_depth()).await
    }
}
