//! Makes PostgreSQL open its files anew, while it runs, so that the kernel serves those that have become complete.
//!
//! A file that is open through the worker stays so until everybody has closed it. PostgreSQL (15 and later) has all its processes
//! close all files of relations when a database is dropped: so one is made and dropped, which nobody else ever uses. Only when
//! there is something to gain, and not often, because dropping a database is a checkpoint too.

use std::time::Duration;

use common::agent::hand::{InstanceOptions, Request, Response, SessionPlace};
use common::ids::SessionId;
use common::problem::Problem;
use jiff::{SignedDuration, Timestamp};

use crate::hand::{ACT_FOR, LOOK_FOR, unexpected};
use crate::steps::Grip;

/// First version whose DROP DATABASE has everybody close their files.
const MAJOR_MIN: u32 = 15;

/// When it is done next.
#[derive(Debug)]
pub(crate) struct Reopening {
    every: SignedDuration,
    last: Option<Timestamp>,
    // Whether one that a killed service left behind has been looked for.
    has_looked: bool,
}

/// What there is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// Nothing.
    Nothing,
    /// Look for a database that was left behind.
    CleanUp,
    /// Make and drop one.
    Reopen,
}

impl Reopening {
    /// At most once in so many seconds; never if 0.
    pub(crate) fn new(every_s: u32) -> Self {
        Self {
            every: SignedDuration::from_secs(every_s.into()),
            last: None,
            has_looked: false,
        }
    }

    /// What is to be done for an instance of this version with so many files to gain.
    pub(crate) fn due(&mut self, now: Timestamp, version: &str, upgradable: u64) -> Due {
        let is_able = major(version).is_some_and(|major| major >= MAJOR_MIN);
        if self.every.is_zero() || !is_able {
            return Due::Nothing;
        }
        let is_time = self
            .last
            .is_none_or(|last| now.duration_since(last) >= self.every);
        if upgradable > 0 && is_time {
            // Also if it fails: what hinders it will not be gone at the next look.
            self.last = Some(now);
            self.has_looked = true;
            return Due::Reopen;
        }
        if !std::mem::replace(&mut self.has_looked, true) {
            return Due::CleanUp;
        }
        Due::Nothing
    }
}

fn major(version: &str) -> Option<u32> {
    let digits = version.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

/// The name of the throw-away database: a session's own, that nobody else would choose.
fn database(session_id: SessionId) -> String {
    format!(
        "pginstant_reopen_{}",
        session_id.to_string().replace('-', "")
    )
}

/// Does what is due.
pub(crate) async fn carry_out(
    due: Due,
    hand: &Grip<'_>,
    session_id: SessionId,
    place: &SessionPlace,
    instance: &InstanceOptions,
) -> Result<(), Problem> {
    let name = database(session_id);
    let ask = async |sql: String, limit: Duration| {
        let request = Request::Query {
            place: place.clone(),
            instance: instance.clone(),
            database: "postgres".to_owned(),
            sql,
        };
        match hand.ask(request, limit).await? {
            Response::Rows(rows) => Ok(rows),
            other => Err(unexpected("a query", &other)),
        }
    };
    let find = format!("SELECT 1 FROM pg_database WHERE datname = '{name}'");
    let is_left = match due {
        Due::Nothing => return Ok(()),
        Due::CleanUp | Due::Reopen => !ask(find, LOOK_FOR).await?.is_empty(),
    };
    if due == Due::Reopen && !is_left {
        ask(
            format!("CREATE DATABASE {name} TEMPLATE template0"),
            ACT_FOR,
        )
        .await?;
    }
    if due == Due::Reopen || is_left {
        // One that was left behind does as well as a new one.
        ask(format!("DROP DATABASE {name}"), ACT_FOR).await?;
        tracing::info!("PostgreSQL opens its files anew");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_opened_anew_only_for_a_gain_not_often_and_where_it_can_be_done() {
        let at = |s: i64| Timestamp::from_second(1_000_000 + s).unwrap();
        let mut reopening = Reopening::new(600);
        for (second, version, upgradable, expected) in [
            (0, "14.9", 7, Due::Nothing),
            (1, "18.1 (Debian 18.1-1)", 0, Due::CleanUp),
            (2, "18.1", 0, Due::Nothing),
            (3, "18.1", 7, Due::Reopen),
            (4, "18.1", 7, Due::Nothing),
            (602, "18.1", 7, Due::Nothing),
            (603, "18.1", 0, Due::Nothing),
            (700, "18.1", 1, Due::Reopen),
        ] {
            let due = reopening.due(at(second), version, upgradable);
            assert_eq!(due, expected, "{second}");
        }
        assert_eq!(Reopening::new(0).due(at(0), "18.1", 7), Due::Nothing);
    }
}
