//! What files and names may be found after a power cut at any moment of a log: as they were when they were flushed last, or as
//! at any time since.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

use std::collections::BTreeMap;

type Names = BTreeMap<String, u32>;

/// One state, which cannot be found by a cut before `since`.
#[derive(Debug)]
struct Version<T> {
    since: usize,
    state: T,
}

/// All states, and which of them were flushed when.
#[derive(Debug)]
struct History<T> {
    versions: Vec<Version<T>>,
    /// A number of a state, and the log's position when the flush was answered.
    flushes: Vec<(usize, usize)>,
}

impl<T: Clone> History<T> {
    fn new(state: T, since: usize) -> Self {
        Self {
            versions: vec![Version { since, state }],
            flushes: Vec::new(),
        }
    }

    fn last(&self) -> &T {
        &self.versions.last().unwrap().state
    }

    fn change(&mut self, since: usize) -> &mut T {
        let state = self.last().clone();
        self.versions.push(Version { since, state });
        &mut self.versions.last_mut().unwrap().state
    }

    /// States that a cut before this entry of the log may leave.
    fn possible(&self, cut: usize) -> Vec<&T> {
        let answered = self.flushes.iter().filter(|(_, answered)| *answered <= cut);
        let least = answered.map(|(version, _)| *version).max().unwrap_or(0);
        let versions = self.versions[least..].iter();
        versions
            .filter(|version| version.since <= cut)
            .map(|version| &version.state)
            .collect()
    }
}

#[derive(Debug)]
pub(crate) struct Model {
    names: History<Names>,
    files: Vec<History<Vec<u8>>>,
    // Since which state of the names each file has one.
    named_by: Vec<usize>,
}

/// A flush that has not been answered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flush {
    id: u32,
    version: usize,
}

impl Model {
    pub(crate) fn new(files: BTreeMap<String, Vec<u8>>, since: usize) -> Self {
        let names = files.keys().cloned().zip(0..).collect();
        let contents = files.into_values();
        let files: Vec<_> = contents.map(|bytes| History::new(bytes, since)).collect();
        Self {
            names: History::new(names, since),
            named_by: vec![0; files.len()],
            files,
        }
    }

    pub(crate) fn names(&self) -> &Names {
        self.names.last()
    }

    pub(crate) fn content(&self, id: u32) -> &[u8] {
        self.files[id as usize].last()
    }

    /// The file's next content, to be changed by the caller.
    pub(crate) fn change(&mut self, id: u32, since: usize) -> &mut Vec<u8> {
        self.files[id as usize].change(since)
    }

    pub(crate) fn rename_all(&mut self, since: usize, change: impl FnOnce(&mut Names)) {
        change(self.names.change(since));
    }

    pub(crate) fn create(&mut self, name: &str, since: usize) {
        let id = u32::try_from(self.files.len()).unwrap();
        self.files.push(History::new(Vec::new(), since));
        self.rename_all(since, |names| {
            names.insert(name.to_owned(), id);
        });
        self.named_by.push(self.names.versions.len() - 1);
    }

    pub(crate) fn begin_flush(&self, id: u32) -> Flush {
        let version = self.files[id as usize].versions.len() - 1;
        Flush { id, version }
    }

    pub(crate) fn end_flush(&mut self, flush: Flush, answered: usize) {
        let id = flush.id as usize;
        self.files[id].flushes.push((flush.version, answered));
        // A new file that was flushed can be found.
        self.names.flushes.push((self.named_by[id], answered));
    }

    pub(crate) fn begin_flush_of_names(&self) -> usize {
        self.names.versions.len() - 1
    }

    pub(crate) fn end_flush_of_names(&mut self, version: usize, answered: usize) {
        self.names.flushes.push((version, answered));
    }

    pub(crate) fn flush_count(&self) -> usize {
        self.files.iter().map(|file| file.flushes.len()).sum()
    }

    /// Says what of the files could not be there after a cut before this entry of the log.
    pub(crate) fn check(
        &self,
        found: &BTreeMap<String, Vec<u8>>,
        cut: usize,
    ) -> Result<(), String> {
        let possible = self.names.possible(cut);
        let fitting = possible
            .iter()
            .filter(|names| names.keys().eq(found.keys()));
        let mut complaint = None;
        // The same names may have been of other files in between.
        for names in fitting {
            match self.check_contents(names, found, cut) {
                Ok(()) => return Ok(()),
                Err(wrong) => complaint = Some(wrong),
            }
        }
        Err(complaint.unwrap_or_else(|| {
            let found: Vec<_> = found.keys().collect();
            format!("names {found:?} are none of {possible:?}")
        }))
    }

    fn check_contents(
        &self,
        names: &Names,
        found: &BTreeMap<String, Vec<u8>>,
        cut: usize,
    ) -> Result<(), String> {
        for (name, bytes) in found {
            let possible = self.files[names[name] as usize].possible(cut);
            check_content(bytes, &possible).map_err(|wrong| format!("{name}: {wrong}"))?;
        }
        Ok(())
    }
}

/// Each byte as in one of the states; a size between them, since a write that makes a file longer may be torn.
fn check_content(found: &[u8], possible: &[&Vec<u8>]) -> Result<(), String> {
    if possible.iter().any(|state| *state == found) {
        return Ok(());
    }
    let sizes: Vec<usize> = possible.iter().map(|state| state.len()).collect();
    let least = sizes.iter().min().copied().unwrap_or_default();
    let most = sizes.iter().max().copied().unwrap_or_default();
    if !(least..=most).contains(&found.len()) {
        return Err(format!("size {} of {sizes:?}", found.len()));
    }
    for (at, byte) in found.iter().enumerate() {
        let fits = |state: &&Vec<u8>| state.get(at).map_or(*byte == 0, |had| had == byte);
        if !possible.iter().any(fits) {
            let had: Vec<_> = possible.iter().map(|state| state.get(at)).collect();
            return Err(format!("byte {at} is {byte}, had been {had:?}"));
        }
    }
    Ok(())
}
