//! Where a repository lies in an object store: `s3://bucket/prefix`, `az://container/prefix`, `gs://bucket/prefix`.

use std::fmt;

/// Longest key that the stores know, in bytes.
const KEY_BYTES_MAX: usize = 1024;

/// Whose object store it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectStoreKind {
    /// Amazon's S3, or what speaks its language.
    S3,
    /// Azure's Blob Storage.
    Azure,
    /// Google's Cloud Storage.
    Google,
}

impl ObjectStoreKind {
    const ALL: [(Self, &'static str); 3] = [
        (Self::S3, "s3://"),
        (Self::Azure, "az://"),
        (Self::Google, "gs://"),
    ];

    fn scheme(self) -> &'static str {
        let found = Self::ALL.iter().find(|(kind, _)| *kind == self);
        found.map_or("", |(_, scheme)| scheme)
    }
}

/// A bucket, or a container as Azure calls it, and where in it the repository begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectLocation {
    /// Whose it is.
    pub kind: ObjectStoreKind,
    /// The bucket's name.
    pub bucket: String,
    /// Without `/` at its beginning and end; empty: all of the bucket.
    pub prefix: String,
}

/// What is wrong with a location.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{location:?} {reason}")]
pub struct InvalidObjectLocation {
    location: String,
    reason: &'static str,
}

impl fmt::Display for ObjectLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.kind.scheme(), self.bucket)?;
        match self.prefix.as_str() {
            "" => Ok(()),
            prefix => write!(f, "/{prefix}"),
        }
    }
}

impl ObjectLocation {
    /// The location that a text names; none if it is a path of a local directory.
    pub fn parse(text: &str) -> Result<Option<Self>, InvalidObjectLocation> {
        let wrong = |reason| InvalidObjectLocation {
            location: text.to_owned(),
            reason,
        };
        let known = ObjectStoreKind::ALL.iter();
        let mut found = known.filter_map(|(kind, scheme)| Some((kind, text.strip_prefix(scheme)?)));
        let Some((kind, rest)) = found.next() else {
            return match text.contains("://") {
                true => Err(wrong("is of no object store that is known: s3, az or gs")),
                false => Ok(None),
            };
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if bucket.is_empty() || !bucket.chars().all(is_plain) {
            return Err(wrong("names no bucket"));
        }
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        if !prefix.is_empty() && checked_key(prefix).is_none() {
            return Err(wrong("has a prefix with a part that is no name"));
        }
        Ok(Some(Self {
            kind: *kind,
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
        }))
    }

    /// The last part of its name.
    pub(crate) fn name(&self) -> &str {
        let last = self.prefix.rsplit('/').next();
        last.filter(|name| !name.is_empty()).unwrap_or(&self.bucket)
    }

    /// The key of what lies at a path in the repository; none for a path that leads elsewhere or cannot be a key.
    pub(super) fn key(&self, path: &str) -> Option<String> {
        let key = match self.prefix.as_str() {
            "" => path.to_owned(),
            prefix => format!("{prefix}/{path}"),
        };
        checked_key(&key)?;
        Some(key)
    }

    /// The keys of what lies in a directory begin with this; none for a path that leads elsewhere.
    pub(super) fn directory(&self, path: &str) -> Option<String> {
        match (self.prefix.as_str(), path.trim_end_matches('/')) {
            ("", "") => Some(String::new()),
            (prefix, "") => Some(format!("{prefix}/")),
            (_, path) => Some(format!("{}/", self.key(path)?)),
        }
    }

    /// What people call an object.
    pub(super) fn shown(&self, key: &str) -> String {
        format!("{}{}/{key}", self.kind.scheme(), self.bucket)
    }
}

fn checked_key(key: &str) -> Option<&str> {
    let is_name = |part: &str| !matches!(part, "" | "." | "..");
    let is_sound = key.len() <= KEY_BYTES_MAX
        && !key.contains(char::is_control)
        && key.split('/').all(is_name);
    is_sound.then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_names_store_bucket_and_prefix() {
        for (text, kind, bucket, prefix) in [
            ("s3://backups", ObjectStoreKind::S3, "backups", ""),
            ("s3://backups/", ObjectStoreKind::S3, "backups", ""),
            ("az://c-1/a/b", ObjectStoreKind::Azure, "c-1", "a/b"),
            (
                "gs://b.example/a b/",
                ObjectStoreKind::Google,
                "b.example",
                "a b",
            ),
        ] {
            let found = ObjectLocation::parse(text).unwrap().unwrap();
            let wanted = (kind, bucket, prefix);
            assert_eq!((found.kind, &*found.bucket, &*found.prefix), wanted);
            assert_eq!(found.to_string(), text.trim_end_matches('/'));
        }
        assert_eq!(ObjectLocation::parse("/var/lib/pgbackrest"), Ok(None));
        for bad in [
            "s3://",
            "s3:///a",
            "s3://user:password@host/a",
            "s3://b/../c",
            "s3://b//c",
            "s3://b/a\nb",
            "http://b/c",
        ] {
            assert!(ObjectLocation::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_path_that_leads_elsewhere_is_no_key() {
        let location = ObjectLocation::parse("s3://b/prefix").unwrap().unwrap();
        assert_eq!(location.key("a/=b=").as_deref(), Some("prefix/a/=b="));
        assert_eq!(location.directory("a/").as_deref(), Some("prefix/a/"));
        assert_eq!(location.directory("").as_deref(), Some("prefix/"));
        let long = "x".repeat(2000);
        for path in ["", "..", "a/../b", "./a", "a//b", "a/", "/a", "a\0b", &long] {
            assert_eq!(location.key(path), None, "{path}");
        }
        assert_eq!(location.directory("../a"), None);
    }
}
