//! Identifiers. Each is its own type, checked where it enters, so that a name that arrived in a
//! message can be used as a path component, a queue name or a label without a second look.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Why a text is not an identifier of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a valid {kind}: {rule}")]
pub struct InvalidId {
    /// What the text was meant to be, for example `session id`.
    pub kind: &'static str,
    /// The text itself, cut to 80 characters.
    pub value: String,
    /// The rule that it breaks.
    pub rule: &'static str,
}

fn invalid(kind: &'static str, value: &str, rule: &'static str) -> InvalidId {
    InvalidId {
        kind,
        value: value.chars().take(80).collect(),
        rule,
    }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schemars(with = "Uuid")]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps a UUID of version 4 or 7 (RFC 9562); other versions carry host facts or hashes and are refused.
            pub fn new(uuid: Uuid) -> Result<Self, InvalidId> {
                match uuid.get_version_num() {
                    4 | 7 => Ok(Self(uuid)),
                    _ => Err(invalid($kind, &uuid.to_string(), "a UUID of version 7 (or 4) is wanted")),
                }
            }

            /// The UUID itself.
            pub fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                // One spelling only: ids are compared as text by other languages and used as directory names.
                let rule = "36 lower-case characters of a UUID are wanted";
                let uuid = Uuid::try_parse(text).map_err(|_| invalid($kind, text, rule))?;
                if uuid.hyphenated().to_string() != text {
                    return Err(invalid($kind, text, rule));
                }
                Self::new(uuid)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }
    };
}

uuid_id!(
    /// One publish, mount or (later) instant recovery. Equal to the id of the command that began it,
    /// so that whoever sent the command knows the session at once and a repeated command cannot begin a second one.
    SessionId, "session id"
);
uuid_id!(
    /// One command or query: the CloudEvents `id` that its sender chose.
    CommandId, "command id"
);
uuid_id!(
    /// One event or answer of ours: its CloudEvents `id`.
    EventId, "event id"
);

impl From<CommandId> for SessionId {
    fn from(id: CommandId) -> SessionId {
        SessionId(id.0)
    }
}

impl From<SessionId> for CommandId {
    fn from(id: SessionId) -> CommandId {
        CommandId(id.0)
    }
}

macro_rules! name_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, max $max:literal, extra $extra:literal, rule $rule:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schemars(with = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks and wraps a text.
            pub fn new(text: impl Into<String>) -> Result<Self, InvalidId> {
                let text = text.into();
                let mut bytes = text.bytes();
                let first_fits = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
                let rest_fits = bytes.all(|b| b.is_ascii_alphanumeric() || $extra.contains(&b));
                if first_fits && rest_fits && text.len() <= $max {
                    Ok(Self(text))
                } else {
                    Err(invalid($kind, &text, $rule))
                }
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
    };
}

name_id!(
    /// A mount server; part of the names of its queues.
    ServerName, "server name", max 63, extra b"._-",
    rule "1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or digit"
);
name_id!(
    /// A repository, as the mount server's configuration calls it.
    RepositoryName, "repository name", max 63, extra b"._-",
    rule "1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or digit"
);
name_id!(
    /// A target, as the mount server's configuration calls it: host, OS user and how to reach it.
    TargetName, "target name", max 63, extra b"._-",
    rule "1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or digit"
);
name_id!(
    /// One backup of a repository, unique in it.
    BackupLabel, "backup label", max 128, extra b"._:+-",
    rule "1 to 128 letters, digits, '.', '_', ':', '+' or '-', beginning with a letter or digit"
);
name_id!(
    /// An operating system user name.
    OsUser, "OS user name", max 32, extra b"._-$",
    rule "1 to 32 letters, digits, '.', '_', '-' or '$', beginning with a letter, digit or '_'"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_could_leave_its_directory_or_queue_is_refused() {
        for bad in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "a b",
            "-rf",
            "é",
            "a\n",
            "a\0",
            &"a".repeat(64),
        ] {
            assert!(ServerName::new(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "db1.example.com", "pg_15-main", "0"] {
            assert!(ServerName::new(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn a_session_id_has_one_spelling() {
        let id = "0190b5a8-7c3a-7def-8123-456789abcdef";
        assert_eq!(id.parse::<SessionId>().unwrap().to_string(), id);
        for bad in [
            "0190B5A8-7C3A-7DEF-8123-456789ABCDEF",
            "0190b5a87c3a7def8123456789abcdef",
            "{0190b5a8-7c3a-7def-8123-456789abcdef}",
            "00000000-0000-0000-0000-000000000000",
            "",
        ] {
            assert!(bad.parse::<SessionId>().is_err(), "{bad:?}");
        }
    }
}
