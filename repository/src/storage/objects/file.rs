//! An opened object, read at any place.

use std::io;
use std::sync::Arc;

use futures::StreamExt;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectMeta};

use super::blocks::{BLOCK_BYTES, Run, Wanted};
use super::failure::ObjectFailure;
use super::{ObjectStorage, tag_of};

/// An object as it was when it was opened: what is read is of that one, or an error.
#[derive(Debug)]
pub(crate) struct ObjectFile {
    number: u64,
    object: Arc<OpenedObject>,
}

#[derive(Debug)]
struct OpenedObject {
    storage: Arc<ObjectStorage>,
    path: Path,
    /// For errors.
    shown: String,
    size_bytes: u64,
    e_tag: Option<String>,
    modified_at_s: i64,
}

impl ObjectFile {
    pub(super) fn new(
        storage: &Arc<ObjectStorage>,
        path: Path,
        shown: String,
        found: ObjectMeta,
    ) -> Self {
        Self {
            number: storage.access.new_object(),
            object: Arc::new(OpenedObject {
                storage: Arc::clone(storage),
                path,
                shown,
                size_bytes: found.size,
                e_tag: found.e_tag,
                modified_at_s: found.last_modified.timestamp(),
            }),
        }
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.object.size_bytes
    }

    pub(crate) fn modified_at_s(&self) -> i64 {
        self.object.modified_at_s
    }

    /// What tells this object from another that takes its place.
    pub(crate) fn identity(&self) -> String {
        let object = &self.object;
        match &object.e_tag {
            Some(e_tag) => format!("{} {e_tag}", object.size_bytes),
            None => format!("{} {}", object.size_bytes, object.modified_at_s),
        }
    }

    /// Whether it is the one that a list had, as far as the list tells.
    pub(crate) fn is_the_one(&self, tag: Option<u64>, modified_at_s: i64) -> bool {
        let object = &self.object;
        match (tag, &object.e_tag) {
            (Some(tag), Some(e_tag)) => tag == tag_of(e_tag),
            (None, _) | (_, None) => modified_at_s == object.modified_at_s,
        }
    }

    /// The error for another object in the place of this one.
    pub(crate) fn changed(&self) -> io::Error {
        ObjectFailure::changed(&self.object.shown).into()
    }

    /// Reads bytes, none only at the end. `left_bytes` is how many its reader will want from here on, if it knows.
    pub(crate) fn read_at(
        &self,
        offset: u64,
        buffer: &mut [u8],
        left_bytes: Option<u64>,
    ) -> io::Result<usize> {
        let object = &self.object;
        let left = object.size_bytes.saturating_sub(offset);
        if left == 0 || buffer.is_empty() {
            return Ok(0);
        }
        let block = offset / BLOCK_BYTES;
        let blocks_to =
            |length: u64| (offset + length.clamp(1, left) - 1) / BLOCK_BYTES + 1 - block;
        let wanted = Wanted {
            block,
            count: blocks_to(buffer.len() as u64),
            left_count: left_bytes.map(blocks_to),
            end: object.size_bytes.div_ceil(BLOCK_BYTES),
        };
        let access = &object.storage.access;
        let (slot, run) = access.blocks.claim(self.number, wanted, &|block| {
            let rest = object.size_bytes.saturating_sub(block * BLOCK_BYTES);
            usize::try_from(rest.min(BLOCK_BYTES)).unwrap_or(0)
        });
        if let Some(run) = run {
            let object = Arc::clone(object);
            access.handle()?.spawn(object.fetch(run));
        }
        let bytes = slot.wait()?;
        let from = usize::try_from(offset % BLOCK_BYTES).unwrap_or(usize::MAX);
        let from = bytes.get(from..).unwrap_or_default();
        let count = from.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..count), from.get(..count)) {
            to.copy_from_slice(from);
        }
        Ok(count)
    }
}

impl OpenedObject {
    /// Fetches a run of blocks with one request; it is given its bytes as they come, or the reason.
    async fn fetch(self: Arc<Self>, mut run: Run) {
        let turn = Arc::clone(&self.storage.access.requests)
            .acquire_owned()
            .await;
        if let Err(failure) = self.fetch_into(&mut run).await {
            run.fail(&failure);
        }
        drop(turn);
    }

    async fn fetch_into(&self, run: &mut Run) -> Result<(), ObjectFailure> {
        let failed = |error| ObjectFailure::new(&self.shown, &error);
        let range = run.bytes();
        self.storage.access.count_fetched(range.end - range.start);
        // A weak tag matches nothing.
        let strong = self.e_tag.clone().filter(|tag| !tag.starts_with("W/"));
        let options = GetOptions {
            range: Some(GetRange::Bounded(range)),
            if_match: strong,
            ..GetOptions::default()
        };
        let answer = self.storage.store.get_opts(&self.path, options).await;
        let answer = answer.map_err(failed)?;
        self.check(&answer.meta)?;
        let mut stream = answer.into_stream();
        let mut block = Vec::new();
        while let Some(bytes) = stream.next().await {
            let bytes = bytes.map_err(failed)?;
            let mut rest: &[u8] = &bytes;
            while let Some(size) = run.next_bytes().filter(|_| !rest.is_empty()) {
                block.reserve_exact(size - block.len());
                let (here, behind) = rest.split_at(rest.len().min(size - block.len()));
                block.extend_from_slice(here);
                rest = behind;
                if block.len() == size {
                    run.fill(std::mem::take(&mut block));
                }
            }
        }
        match run.next_bytes() {
            None => Ok(()),
            Some(_) => Err(ObjectFailure::unavailable(
                &self.shown,
                "cannot be had: the object store ended its answer too early",
            )),
        }
    }

    /// Not every store looks at `If-Match`.
    fn check(&self, found: &ObjectMeta) -> Result<(), ObjectFailure> {
        let same_tag = match (&self.e_tag, &found.e_tag) {
            (Some(opened), Some(found)) => opened == found,
            (None, _) | (_, None) => self.modified_at_s == found.last_modified.timestamp(),
        };
        match same_tag && self.size_bytes == found.size {
            true => Ok(()),
            false => Err(ObjectFailure::changed(&self.shown)),
        }
    }
}
