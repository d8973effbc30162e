//! A repository in an object store: objects by the paths that its files have below a directory.

mod access;
mod blocks;
mod client;
mod failure;
mod file;
mod location;

use std::sync::Arc;
use std::{fmt, io};

use object_store::list::{PaginatedListOptions, PaginatedListStore};
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

    /// Fails if no object lies below this path.
    pub(crate) fn has_directory(self: &Arc<Self>, path: &str) -> io::Result<()> {
        self.list(path, 1).map(drop)
    }

    /// The names in a directory; fails if there are none.
    pub(crate) fn names(self: &Arc<Self>, directory: &str) -> io::Result<Vec<String>> {
        self.list(directory, NAME_COUNT_MAX)
    }

    /// The names in a directory, those beyond `enough` perhaps not.
    fn list(self: &Arc<Self>, directory: &str, enough: usize) -> io::Result<Vec<String>> {
        let prefix = self.location.directory(directory);
        let prefix = prefix.ok_or_else(|| self.no_key(directory))?;
        let shown = self.location.shown(&prefix);
        let mut names = Vec::new();
        let mut page_token = None;
        loop {
            let (storage, asked, place) = (Arc::clone(self), prefix.clone(), shown.clone());
            let page = self.access.wait(&shown, async move {
                let options = PaginatedListOptions {
                    delimiter: Some("/".into()),
                    max_keys: Some(enough.min(PAGE_NAME_COUNT)),
                    page_token,
                    ..PaginatedListOptions::default()
                };
                let asked = Some(asked.as_str()).filter(|prefix| !prefix.is_empty());
                let page = storage.store.list_paginated(asked, options).await;
                page.map_err(|error| ObjectFailure::new(&place, &error))
            })?;
            let objects = page.result.objects.iter().map(|found| &found.location);
            let found = objects.chain(&page.result.common_prefixes);
            names.extend(found.filter_map(|key| name_below(&prefix, key.as_ref())));
            page_token = page.page_token;
            match (names.len(), &page_token) {
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
