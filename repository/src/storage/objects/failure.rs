//! Why an object store did not give what was asked for, in a sentence that names the object and holds no secret.
//!
//! What a store answers may repeat keys and signatures of the request: of it only the code is taken.

use std::error::Error;
use std::fmt;
use std::io;

use object_store::client::{HttpError, HttpErrorKind};

use crate::RepositoryError;

/// A failure of an object store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ObjectFailure {
    /// `s3://bucket/key`
    object: String,
    kind: FailureKind,
    /// What happened, to stand behind the object's name.
    reason: String,
}

/// What a caller would do differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// There is no such object.
    Gone,
    /// The object is another than the one that was opened.
    Changed,
    /// There is no such bucket or container.
    NoBucket,
    /// The credentials are wrong, or permit less.
    Denied,
    /// The request is not one that the store answers, or its answer is none.
    Misunderstood,
    /// It may answer later.
    Unavailable,
}

impl fmt::Display for ObjectFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.object, self.reason)
    }
}

impl Error for ObjectFailure {}

impl From<ObjectFailure> for io::Error {
    fn from(failure: ObjectFailure) -> Self {
        let kind = match failure.kind {
            FailureKind::Gone => io::ErrorKind::NotFound,
            FailureKind::Denied => io::ErrorKind::PermissionDenied,
            FailureKind::Unavailable => io::ErrorKind::HostUnreachable,
            FailureKind::Changed | FailureKind::NoBucket | FailureKind::Misunderstood => {
                io::ErrorKind::Other
            }
        };
        Self::new(kind, failure)
    }
}

impl ObjectFailure {
    /// Tells what an error of the library stands for. `object` is what was asked for: an object, or where was looked for some.
    pub(super) fn new(object: &str, error: &object_store::Error) -> Self {
        let told = Told::of(error);
        let (kind, reason) = told.judge(error);
        Self {
            object: object.to_owned(),
            kind,
            reason,
        }
    }

    /// An object that is another than the one that was opened.
    pub(super) fn changed(object: &str) -> Self {
        Self {
            object: object.to_owned(),
            kind: FailureKind::Changed,
            reason: "has changed since the backup was opened".to_owned(),
        }
    }

    /// Nothing by that name.
    pub(super) fn gone(object: &str) -> Self {
        Self {
            object: object.to_owned(),
            kind: FailureKind::Gone,
            reason: "is not there".to_owned(),
        }
    }

    /// A name or an answer that is none.
    pub(super) fn misunderstood(object: &str, reason: impl Into<String>) -> Self {
        Self {
            object: object.to_owned(),
            kind: FailureKind::Misunderstood,
            reason: reason.into(),
        }
    }

    /// Something that may work later.
    pub(super) fn unavailable(object: &str, reason: impl Into<String>) -> Self {
        Self {
            object: object.to_owned(),
            kind: FailureKind::Unavailable,
            reason: reason.into(),
        }
    }

    /// A request that was under way when the process ended it.
    pub(super) fn given_up(object: &str) -> Self {
        Self::unavailable(object, "is not fetched any more")
    }

    /// The failure that an error of a read stands for, if it is one.
    pub(crate) fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    /// The failure as an error about a file of a backup.
    pub(crate) fn explain(&self, file: String, doing: &'static str) -> RepositoryError {
        match self.kind {
            FailureKind::Changed | FailureKind::Gone => RepositoryError::Corrupt {
                file,
                reason: self.to_string(),
            },
            FailureKind::NoBucket | FailureKind::Denied | FailureKind::Misunderstood => {
                RepositoryError::Refused {
                    file,
                    doing,
                    reason: self.to_string(),
                    remedy: self.remedy(),
                }
            }
            FailureKind::Unavailable => RepositoryError::Unreadable {
                file,
                doing,
                source: self.clone().into(),
            },
        }
    }

    /// What to do about it: one sentence, lower case, no full stop.
    pub(crate) fn remedy(&self) -> String {
        match self.kind {
            FailureKind::NoBucket => {
                "see that path, endpoint and region of the repository name the bucket".to_owned()
            }
            FailureKind::Denied => {
                "see that the mount server has the credentials of the repository, and that they permit to list the bucket and to read its objects"
                    .to_owned()
            }
            FailureKind::Unavailable => {
                "see that the object store runs and that the mount server can reach its endpoint"
                    .to_owned()
            }
            FailureKind::Gone | FailureKind::Changed | FailureKind::Misunderstood => {
                "see that path, endpoint, region, path_style and ca_file of the repository fit the object store"
                    .to_owned()
            }
        }
    }
}

/// What is at the bottom of an error, short.
pub(super) fn cause_of(error: &object_store::Error) -> String {
    Told::of(error).root()
}

/// What an error of the library tells.
struct Told {
    status: Option<u16>,
    code: Option<String>,
    http: Option<HttpErrorKind>,
    /// What is at the bottom of it.
    root: String,
}

impl Told {
    fn of(error: &object_store::Error) -> Self {
        let mut told = Self {
            status: None,
            code: None,
            http: None,
            root: String::new(),
        };
        let mut next: Option<&(dyn Error + 'static)> = Some(error);
        while let Some(error) = next {
            if let Some(http) = error.downcast_ref::<HttpError>() {
                told.http = Some(http.kind());
            }
            let text = error.to_string();
            told.status = told.status.or_else(|| status_in(&text));
            told.code = told.code.or_else(|| code_in(&text));
            told.root = text;
            next = error.source();
        }
        told
    }

    /// The answer's status and code, as people look them up.
    fn answer(&self) -> String {
        match (self.status, &self.code) {
            (Some(status), Some(code)) => format!("{status} {code}"),
            (Some(status), None) => status.to_string(),
            (None, Some(code)) => code.clone(),
            (None, None) => "no status".to_owned(),
        }
    }

    fn judge(&self, error: &object_store::Error) -> (FailureKind, String) {
        let answer = self.answer();
        let code = self.code.as_deref();
        if matches!(code, Some("NoSuchBucket" | "ContainerNotFound")) {
            let reason = format!("cannot be found: there is no such bucket ({answer})");
            return (FailureKind::NoBucket, reason);
        }
        match error {
            object_store::Error::NotFound { .. } => {
                let reason = "is not there: it was removed, or its backup expired".to_owned();
                return (FailureKind::Gone, reason);
            }
            object_store::Error::Precondition { .. } => {
                let reason = "has changed since the backup was opened".to_owned();
                return (FailureKind::Changed, reason);
            }
            object_store::Error::InvalidPath { .. } => {
                let reason = "has names that are no paths of files".to_owned();
                return (FailureKind::Misunderstood, reason);
            }
            _ => {}
        }
        match (self.status, self.http) {
            (Some(401 | 403), _) => (
                FailureKind::Denied,
                format!("is refused to these credentials ({answer})"),
            ),
            (Some(404), _) => (
                FailureKind::NoBucket,
                format!("cannot be listed: there is no such bucket ({answer})"),
            ),
            (Some(408 | 429), _) => (
                FailureKind::Unavailable,
                format!("cannot be had for now ({answer})"),
            ),
            (Some(300..=499), _) => (
                FailureKind::Misunderstood,
                format!("cannot be had: the object store answers {answer}"),
            ),
            (Some(_), _) => (
                FailureKind::Unavailable,
                format!("cannot be had for now ({answer})"),
            ),
            (None, Some(HttpErrorKind::Connect)) if self.root.contains("peer certificate") => (
                FailureKind::Misunderstood,
                format!(
                    "cannot be had: the object store's certificate is not trusted ({})",
                    self.root()
                ),
            ),
            (None, Some(HttpErrorKind::Connect)) => (
                FailureKind::Unavailable,
                format!(
                    "cannot be had: the object store is not reached ({})",
                    self.root()
                ),
            ),
            (None, Some(HttpErrorKind::Timeout)) => (
                FailureKind::Unavailable,
                "cannot be had: the object store did not answer in time".to_owned(),
            ),
            (None, _) if self.root.contains("redirect without LOCATION") => (
                FailureKind::Misunderstood,
                "is in another region than the one that is configured".to_owned(),
            ),
            (None, _) => (
                FailureKind::Unavailable,
                format!("cannot be had ({})", self.root()),
            ),
        }
    }

    /// The cause, short, and without an address that may hold a signature.
    fn root(&self) -> String {
        const TEXT_MAX: usize = 160;
        let words = self.root.split_whitespace();
        let words = words.filter(|word| !word.contains("://") && !word.contains('<'));
        let text = words.collect::<Vec<_>>().join(" ");
        text.chars().take(TEXT_MAX).collect()
    }
}

/// The status of an answer, as the library writes it.
fn status_in(text: &str) -> Option<u16> {
    let (_, rest) = text.split_once("status code: ")?;
    rest.get(..3)?.parse().ok()
}

/// The code of an answer of S3 or Azure.
fn code_in(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("<Code>")?;
    let (code, _) = rest.split_once("</Code>")?;
    let is_code = code.len() <= 64 && code.bytes().all(|b| b.is_ascii_alphanumeric());
    is_code.then(|| code.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Text(&'static str);

    impl fmt::Display for Text {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Text {}

    fn generic(text: &'static str) -> object_store::Error {
        object_store::Error::Generic {
            store: "S3",
            source: Box::new(Text(text)),
        }
    }

    #[test]
    fn what_no_retry_mends_is_told_from_what_one_may_and_nothing_secret_is_repeated() {
        let answer = "Server returned non-2xx status code: ";
        for (text, kind) in [
            ("503 Service Unavailable: SECRET", FailureKind::Unavailable),
            ("429 Too Many: SECRET", FailureKind::Unavailable),
            (
                "400 Bad Request: <Code>InvalidRequest</Code><Key>SECRET</Key>",
                FailureKind::Misunderstood,
            ),
            (
                "403 Forbidden: <Code>SignatureDoesNotMatch</Code>SECRET",
                FailureKind::Denied,
            ),
            (
                "404 Not Found: <Code>NoSuchBucket</Code>SECRET",
                FailureKind::NoBucket,
            ),
            ("404 Not Found: SECRET", FailureKind::NoBucket),
        ] {
            let text: &'static str = format!("{answer}{text}").leak();
            let failure = ObjectFailure::new("s3://b/k", &generic(text));
            assert_eq!(failure.kind, kind, "{text}");
            let shown = format!("{failure} {}", failure.remedy());
            assert!(shown.starts_with("s3://b/k "), "{shown}");
            assert!(!shown.contains("SECRET"), "{shown}");
            let error = failure.explain("PG_VERSION".into(), "read");
            assert_eq!(
                error.is_permanent(),
                kind != FailureKind::Unavailable,
                "{text}"
            );
        }
        let signed = generic("error for https://host/b/k?sig=SECRET here");
        let shown = ObjectFailure::new("az://b/k", &signed).to_string();
        assert_eq!(shown, "az://b/k cannot be had (error for here)");
    }

    #[test]
    fn an_object_that_is_gone_or_changed_is_permanent_and_named() {
        let error = |text| Box::new(Text(text));
        let gone = object_store::Error::NotFound {
            path: "k".into(),
            source: error("gone"),
        };
        let changed = object_store::Error::Precondition {
            path: "k".into(),
            source: error("other"),
        };
        for (error, kind) in [(gone, FailureKind::Gone), (changed, FailureKind::Changed)] {
            let failure = ObjectFailure::new("gs://b/k", &error);
            assert_eq!(failure.kind, kind);
            let read = io::Error::from(failure);
            let explained = RepositoryError::unreadable("base/1/1", "read", read);
            assert!(explained.is_permanent());
            assert!(explained.to_string().contains("gs://b/k"), "{explained}");
        }
    }
}
