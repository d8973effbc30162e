//! Why a repository or backup cannot be used. Every error names the file it is about, and says what
//! to do about it.

use std::io;

use crate::storage::ObjectFailure;

/// Why a repository, a backup or a file of it cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// The repository has no backup of this label (or none at all).
    #[error("{repository} has no {what}")]
    UnknownBackup {
        /// The repository's directory.
        repository: String,
        /// What was looked for: `backup "monday"`, `backup`.
        what: String,
    },
    /// The system did not let us read: permissions, an IO error, a file that has gone.
    #[error("cannot {doing} {file}: {source}")]
    Unreadable {
        /// The file.
        file: String,
        /// What was tried, as a verb phrase: `open`, `list directory`.
        doing: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// Who keeps the repository refuses it, and will until somebody changes the configuration or the credentials.
    #[error("cannot {doing} {file}: {reason}")]
    Refused {
        /// The file.
        file: String,
        /// What was tried, as a verb phrase.
        doing: &'static str,
        /// Why it is refused.
        reason: String,
        /// What to do instead.
        remedy: String,
    },
    /// The backup contradicts itself or its manifest, or holds something hostile.
    #[error("{file}: {reason}")]
    Corrupt {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The backup is sound as far as can be seen, but of a kind that cannot be used.
    #[error("{file}: {reason}")]
    Unsupported {
        /// The file that shows it.
        file: String,
        /// What it is.
        reason: String,
        /// What to do instead.
        remedy: String,
    },
}

/// What a caller would do differently: one per problem code of the services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RepositoryErrorKind {
    /// No such backup.
    UnknownBackup,
    /// It cannot be read now; trying again may help.
    Unreadable,
    /// It cannot be read as things are configured.
    Refused,
    /// It is damaged or hostile.
    Corrupt,
    /// It is of a kind that cannot be used.
    Unsupported,
}

impl RepositoryError {
    pub(crate) fn corrupt(file: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Corrupt {
            file: printable(file.into()),
            reason: printable(reason.into()),
        }
    }

    pub(crate) fn unsupported(
        file: impl Into<String>,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::Unsupported {
            file: printable(file.into()),
            reason: printable(reason.into()),
            remedy: remedy.into(),
        }
    }

    pub(crate) fn unreadable(
        file: impl Into<String>,
        doing: &'static str,
        source: impl Into<io::Error>,
    ) -> Self {
        let (file, source) = (printable(file.into()), source.into());
        match ObjectFailure::of(&source) {
            Some(failure) => failure.explain(file, doing),
            None => Self::Unreadable {
                file,
                doing,
                source,
            },
        }
    }

    /// Damage of an archive, told of the file in it that it hit.
    pub(crate) fn within(self, path: &str) -> Self {
        match self {
            Self::Corrupt { file, reason } if file != path => {
                Self::corrupt(path, format!("is in {file}, which {reason}"))
            }
            other => other,
        }
    }

    /// The same error of a file of another backup, on which the one stands that shows `path`.
    pub(crate) fn in_backup(self, label: &str, path: &str) -> Self {
        match self {
            Self::UnknownBackup { .. } => self,
            Self::Unreadable {
                file,
                doing,
                source,
            } => Self::unreadable(format!("{file} of backup {label}"), doing, source),
            Self::Refused {
                file,
                doing,
                reason,
                remedy,
            } => Self::Refused {
                file: printable(format!("{file} of backup {label}")),
                doing,
                reason,
                remedy,
            },
            Self::Corrupt { file, reason } => {
                Self::corrupt(path, format!("{file} of backup {label}: {reason}"))
            }
            Self::Unsupported {
                file,
                reason,
                remedy,
            } => Self::unsupported(path, format!("{file} of backup {label}: {reason}"), remedy),
        }
    }

    /// Whether no retry can mend it.
    pub fn is_permanent(&self) -> bool {
        match self.kind() {
            RepositoryErrorKind::Unreadable => false,
            RepositoryErrorKind::UnknownBackup
            | RepositoryErrorKind::Refused
            | RepositoryErrorKind::Corrupt
            | RepositoryErrorKind::Unsupported => true,
        }
    }

    /// What a caller would do differently.
    pub fn kind(&self) -> RepositoryErrorKind {
        match self {
            Self::UnknownBackup { .. } => RepositoryErrorKind::UnknownBackup,
            Self::Unreadable { .. } => RepositoryErrorKind::Unreadable,
            Self::Refused { .. } => RepositoryErrorKind::Refused,
            Self::Corrupt { .. } => RepositoryErrorKind::Corrupt,
            Self::Unsupported { .. } => RepositoryErrorKind::Unsupported,
        }
    }

    /// The file that it is about: below the backup where it is one of its files, else as the system names it.
    pub fn file(&self) -> &str {
        match self {
            Self::UnknownBackup { repository, .. } => repository,
            Self::Unreadable { file, .. }
            | Self::Refused { file, .. }
            | Self::Corrupt { file, .. }
            | Self::Unsupported { file, .. } => file,
        }
    }

    /// What to do about it: one sentence, lower case, no full stop.
    pub fn remedy(&self) -> String {
        match self {
            Self::UnknownBackup { .. } => {
                "list the repository's backups and name one of them".into()
            }
            Self::Unreadable { source, .. } if ObjectFailure::of(source).is_some() => {
                ObjectFailure::of(source).map_or_else(String::new, ObjectFailure::remedy)
            }
            Self::Unreadable { file, .. } => {
                format!("see that {file} exists and that the mount server may read it")
            }
            Self::Corrupt { .. } => {
                "use another backup, and find out with pg_verifybackup or pgbackrest verify what happened to this one"
                    .into()
            }
            Self::Refused { remedy, .. } | Self::Unsupported { remedy, .. } => remedy.clone(),
        }
    }
}

/// Longest text of an outside name in an error, in characters.
const TEXT_MAX: usize = 300;

/// Outside text made fit for a log line: no control characters, not too long.
fn printable(text: String) -> String {
    if text.len() <= TEXT_MAX && !text.chars().any(char::is_control) {
        return text;
    }
    let mut clean: String = text
        .chars()
        .take(TEXT_MAX)
        .flat_map(|c| {
            let escaped = c.is_control().then(|| c.escape_default());
            let plain = escaped.is_none().then_some(c);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect();
    if text.chars().nth(TEXT_MAX).is_some() {
        clean.push('…');
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_name_cannot_write_to_the_terminal_or_flood_the_log() {
        let error = RepositoryError::corrupt("a\x1b[2Jb\n", "x".repeat(5_000));
        let text = error.to_string();
        assert!(!text.chars().any(char::is_control), "{text:?}");
        assert!(text.len() < 400, "{}", text.len());
        assert!(text.starts_with("a\\u{1b}[2Jb\\n: xxx"), "{text}");
    }

    #[test]
    fn only_what_time_may_mend_is_temporary() {
        let gone =
            RepositoryError::unreadable("f", "open", io::Error::from(io::ErrorKind::NotFound));
        assert!(!gone.is_permanent());
        assert!(RepositoryError::corrupt("f", "r").is_permanent());
        assert!(RepositoryError::unsupported("f", "r", "m").is_permanent());
    }
}
