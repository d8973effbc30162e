//! A session as people name it: by its id or by the beginning of its id.

use std::fmt;
use std::str::FromStr;

use common::ids::SessionId;
use common::messages::SessionSummary;
use common::problem::{ErrorCode, Problem};

/// Shortest beginning of an id that is taken, in characters.
const PREFIX_MIN: usize = 4;

/// A session's id or at least its first four characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SessionRef(String);

impl FromStr for SessionRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fits = |b: u8| b == b'-' || b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() < PREFIX_MIN || text.len() > 36 || !text.bytes().all(fits) {
            return Err(format!(
                "a session is named by its id or at least the first {PREFIX_MIN} characters of it, in lower case"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for SessionRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl SessionRef {
    /// The id, when the text is a whole one and needs no looking up.
    pub(crate) fn whole(&self) -> Option<SessionId> {
        self.0.parse().ok()
    }

    /// Finds the one session that is meant.
    pub(crate) fn resolve(&self, sessions: &[SessionSummary]) -> Result<SessionId, Problem> {
        let found: Vec<&SessionSummary> = sessions
            .iter()
            .filter(|session| session.session_id.to_string().starts_with(&self.0))
            .collect();
        match found.as_slice() {
            [one] => Ok(one.session_id),
            [] => Err(Problem::new(
                ErrorCode::UnknownSession,
                format!("no session's id begins with {self}"),
                "look at `explorer sessions --all`",
            )),
            [first, second, ..] => Err(Problem::new(
                ErrorCode::InvalidField,
                format!(
                    "{} sessions begin with {self}, among them {} and {}",
                    found.len(),
                    first.session_id,
                    second.session_id
                ),
                "give more characters of the id",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::samples;

    #[test]
    fn a_session_is_found_by_its_id_or_a_unique_beginning_of_it() {
        let sessions = samples::sessions();
        let first = sessions[0].session_id;
        let resolve = |text: &str| text.parse::<SessionRef>().unwrap().resolve(&sessions);
        assert_eq!(resolve(&first.to_string()), Ok(first));
        assert_eq!(resolve("0190b5a8-7c3a-7def-8123-4567"), Ok(first));
        let many = resolve("0190b5a8").unwrap_err();
        assert_eq!(
            many.to_string(),
            "2 sessions begin with 0190b5a8, among them 0190b5a8-7c3a-7def-8123-456789abcdef and \
             0190b5a8-7c3a-7def-8123-556789abcdef; give more characters of the id [invalid_field]"
        );
        assert_eq!(resolve("ffff").unwrap_err().code, ErrorCode::UnknownSession);
    }

    #[test]
    fn what_cannot_begin_an_id_is_refused() {
        for bad in ["", "019", "main", "0190B5A8", &"0".repeat(37)] {
            assert!(bad.parse::<SessionRef>().is_err(), "{bad:?}");
        }
    }
}
