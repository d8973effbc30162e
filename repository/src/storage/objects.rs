//! A repository in an object store: objects by the paths that its files have below a directory.

mod access;
mod aws_profile;
mod blocks;
mod client;
mod credentials;
mod failure;
mod file;
mod location;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::{fmt, io};

use object_store::list::{PaginatedListOptions, PaginatedListResult, PaginatedListStore};
use object_store::path::Path;
use object_store::{GetOptions, ObjectStore};

pub use access::{ObjectAccess, ObjectLimits};
pub use client::ObjectOptions;
pub(crate) use failure::ObjectFailure;
pub(crate) use file::ObjectFile;
pub use location::{InvalidObjectLocation, ObjectLocation, ObjectStoreKind};

use crate::RepositoryError;

/// Most names that are asked for with one request.
const PAGE_NAME_COUNT: usize = 1000;
/// Most names of one directory.
const NAME_COUNT_MAX: usize = 1 << 20;

/// What is asked of a bucket.
trait Bucket: ObjectStore + PaginatedListStore {}

impl<T: ObjectStore + PaginatedListStore> Bucket for T {}

/// A part of a bucket.
pub(crate) struct ObjectStorage {
    access: Arc<ObjectAccess>,
    store: Arc<dyn Bucket>,
    location: ObjectLocation,
}

impl fmt::Debug for ObjectStorage {
    // The library's client may show its credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectStorage({})", self.location)
    }
}

impl ObjectStorage {
    /// Nothing is asked of the store yet.
    pub(crate) fn new(
        location: &ObjectLocation,
        options: &ObjectOptions,
        access: &Arc<ObjectAccess>,
    ) -> Result<Self, RepositoryError> {
        Ok(Self {
            access: Arc::clone(access),
            store: client::connect(location, options, access.limits())?,
            location: location.clone(),
        })
    }

    fn shown(&self, path: &str) -> String {
        match self.location.key(path) {
            Some(key) => self.location.shown(&key),
            None => format!("{}/{path}", self.location),
        }
    }

    fn no_key(&self, path: &str) -> io::Error {
        ObjectFailure::misunderstood(&self.shown(path), "has a name that is no key").into()
    }

    /// Opens the object at a path.
    pub(crate) fn file(self: &Arc<Self>, path: &str) -> io::Result<ObjectFile> {
        let key = self.location.key(path).ok_or_else(|| self.no_key(path))?;
        let shown = self.location.shown(&key);
        let key = Path::parse(&key).map_err(|_| self.no_key(path))?;
        let (storage, asked, object) = (Arc::clone(self), key.clone(), shown.clone());
        let found = self.access.wait(&shown, async move {
            let options = GetOptions {
                head: true,
                ..GetOptions::default()
            };
            let found = storage.store.get_opts(&asked, options).await;
            let found = found.map_err(|error| ObjectFailure::new(&object, &error))?;
            Ok(found.meta)
        })?;
        Ok(ObjectFile::new(self, key, shown, found))
    }

    /// The part below a directory.
    pub(crate) fn below(&self, path: &str) -> io::Result<Self> {
        let prefix = self.location.directory(path);
        let prefix = prefix.ok_or_else(|| self.no_key(path))?;
        Ok(Self {
            access: Arc::clone(&self.access),
            store: Arc::clone(&self.store),
            location: ObjectLocation {
                prefix: prefix.trim_end_matches('/').to_owned(),
                ..self.location.clone()
            },
        })
    }

    /// Where it is.
    pub(crate) fn location(&self) -> &ObjectLocation {
        &self.location
    }

    /// Fails if no object lies below this path.
    pub(crate) fn has_directory(self: &Arc<Self>, path: &str) -> io::Result<()> {
        self.list(path, 1).map(drop)
    }

    /// The names in a directory; fails if there are none.
    pub(crate) fn names(self: &Arc<Self>, directory: &str) -> io::Result<Vec<String>> {
        let mut found = self.list(directory, NAME_COUNT_MAX)?;
        found.objects.append(&mut found.directories);
        Ok(found.objects)
    }

    /// The names of the directories in a directory; fails if nothing is there.
    pub(crate) fn directories(self: &Arc<Self>, directory: &str) -> io::Result<Vec<String>> {
        Ok(self.list(directory, NAME_COUNT_MAX)?.directories)
    }

    /// The names in a directory, those beyond `enough` perhaps not.
    fn list(self: &Arc<Self>, directory: &str, enough: usize) -> io::Result<Names> {
        let prefix = self.location.directory(directory);
        let prefix = prefix.ok_or_else(|| self.no_key(directory))?;
        let shown = self.location.shown(&prefix);
        let mut names = Names::default();
        let mut page_token = None;
        loop {
            let page = self.page(&prefix, Some("/"), enough.min(PAGE_NAME_COUNT), page_token)?;
            let below = |key: &Path| name_below(&prefix, key.as_ref());
            let objects = page.result.objects.iter();
            names
                .objects
                .extend(objects.filter_map(|found| below(&found.location)));
            let directories = page.result.common_prefixes.iter();
            names.directories.extend(directories.filter_map(below));
            page_token = page.page_token;
            match (names.count(), &page_token) {
                (0, None) => return Err(ObjectFailure::gone(&shown).into()),
                (_, None) => return Ok(names),
                (count, Some(_)) if count >= enough.min(NAME_COUNT_MAX) => {
                    return match enough < NAME_COUNT_MAX {
                        true => Ok(names),
                        false => {
                            let reason = format!("has more than {NAME_COUNT_MAX} objects");
                            Err(ObjectFailure::misunderstood(&shown, reason).into())
                        }
                    };
                }
                (_, Some(_)) => {}
            }
        }
    }

    /// Hands every object at any depth to `found`, in the store's order, which is that of their keys.
    pub(crate) fn each(
        self: &Arc<Self>,
        found: &mut dyn FnMut(FoundObject<'_>) -> Result<(), RepositoryError>,
    ) -> Result<(), RepositoryError> {
        let unreadable = |error| RepositoryError::unreadable(".", "list directory", error);
        let prefix = self.location.directory("");
        let prefix = prefix.ok_or_else(|| unreadable(self.no_key("")))?;
        let mut page_token = None;
        loop {
            let page = self.page(&prefix, None, PAGE_NAME_COUNT, page_token);
            let page = page.map_err(unreadable)?;
            for meta in &page.result.objects {
                let path = meta.location.as_ref().strip_prefix(&*prefix);
                if let Some(path) = path.filter(|path| !path.is_empty()) {
                    found(FoundObject {
                        path,
                        size_bytes: meta.size,
                        modified_at_s: meta.last_modified.timestamp(),
                        tag: meta.e_tag.as_deref().map(tag_of),
                    })?;
                }
            }
            page_token = page.page_token;
            if page_token.is_none() {
                return Ok(());
            }
        }
    }

    /// One answer to the question what lies below a prefix.
    fn page(
        self: &Arc<Self>,
        prefix: &str,
        delimiter: Option<&'static str>,
        max_keys: usize,
        page_token: Option<String>,
    ) -> io::Result<PaginatedListResult> {
        let shown = self.location.shown(prefix);
        let (storage, asked, place) = (Arc::clone(self), prefix.to_owned(), shown.clone());
        let page = self.access.wait(&shown, async move {
            let options = PaginatedListOptions {
                delimiter: delimiter.map(Into::into),
                max_keys: Some(max_keys),
                page_token,
                ..PaginatedListOptions::default()
            };
            let asked = Some(asked.as_str()).filter(|prefix| !prefix.is_empty());
            let page = storage.store.list_paginated(asked, options).await;
            page.map_err(|error| ObjectFailure::new(&place, &error))
        })?;
        Ok(page)
    }
}

/// The names in a directory.
#[derive(Debug, Default)]
struct Names {
    objects: Vec<String>,
    directories: Vec<String>,
}

impl Names {
    fn count(&self) -> usize {
        self.objects.len() + self.directories.len()
    }
}

/// An object as a list has it.
#[derive(Debug)]
pub(crate) struct FoundObject<'a> {
    /// Its path below the storage.
    pub(crate) path: &'a str,
    pub(crate) size_bytes: u64,
    pub(crate) modified_at_s: i64,
    /// What tells it from another in its place, if the list has its `ETag`.
    pub(crate) tag: Option<u64>,
}

/// A number for an `ETag`; lists may have it without the quotes that it has elsewhere.
fn tag_of(e_tag: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    e_tag.trim_matches('"').hash(&mut hasher);
    hasher.finish()
}

/// The name of what lies in a directory; none for the directory's own mark, and for what lies elsewhere.
fn name_below(prefix: &str, key: &str) -> Option<String> {
    let name = key.strip_prefix(prefix)?;
    let is_name =
        !matches!(name, "" | "." | "..") && !name.contains(|c: char| c == '/' || c.is_control());
    is_name.then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_the_same_with_quotes_and_without() {
        assert_eq!(tag_of("\"0x8D\""), tag_of("0x8D"));
        assert_ne!(tag_of("0x8D"), tag_of("0x8E"));
    }

    #[test]
    fn names_are_taken_of_what_lies_in_the_directory_and_nowhere_else() {
        for (key, name) in [
            ("p/backup/main", Some("main")),
            ("p/backup", None),
            ("p/backup/", None),
            ("p/backup/main/deeper", None),
            ("p/backup/..", None),
            ("other/main", None),
        ] {
            assert_eq!(name_below("p/backup/", key).as_deref(), name, "{key}");
        }
        assert_eq!(name_below("", "backup").as_deref(), Some("backup"));
    }
}
