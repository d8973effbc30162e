//! Pages at random of a backup of which nothing has been read, against the same pages of a plain directory.
//!
//! The reader works in this process, so that the number is about the layout and not about the way to the mount. Opening the backup is
//! not in it: of a compressed tar archive that is one pass over all of it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::reads::{Subject, TableFile};
use crate::bench::line::Ledger;
use crate::bench::plan::repositories::{PERCENTILES, page_name};
use crate::bench::stage::Stage;

const PAGE: usize = 8192;
const PAGE_BYTES: u64 = PAGE as u64;
/// The same pages each time.
const SEED: u64 = 5;

/// A page of a file.
struct Page<'a> {
    file: &'a TableFile,
    offset: u64,
}

/// What the layout is compared to.
#[derive(Clone, Copy)]
pub(super) struct Peer<'a> {
    directory: &'a Path,
    files: &'a [TableFile],
}

impl<'a> Peer<'a> {
    /// A plain directory, and its files that are read.
    pub(super) fn new(directory: &'a Path, files: &'a [TableFile]) -> Self {
        Self { directory, files }
    }
}

pub(super) fn measure(
    stage: &mut Stage,
    ledger: &mut Ledger,
    subject: &Subject,
    peer: Peer<'_>,
) -> Result<()> {
    let names = PERCENTILES.map(|percentile| page_name(subject.layout, percentile));
    if !names.iter().any(|name| ledger.wants(name)) {
        return Ok(());
    }
    let pages = choose(peer.files, stage.sizes.page_count)?;
    let backup = (subject.open)()?;
    let mut found = [0; PAGE];
    stage.drop_caches();
    let ours = timed(&pages, |page| {
        let file = page.file.index_in(&*backup)?;
        let count = backup.read_at(file, page.offset, &mut found)?;
        ensure!(count == found.len(), "a page has {count} bytes");
        Ok(())
    })?;
    stage.drop_caches();
    let mut open = BTreeMap::new();
    let peer = timed(&pages, |page| {
        let path = page.file.path.as_str();
        let file = match open.entry(path) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(File::open(peer.directory.join(path))?),
        };
        Ok(file.read_exact_at(&mut found, page.offset)?)
    })?;
    for (name, percentile) in names.iter().zip(PERCENTILES) {
        ledger.ours(name, at(&ours, percentile)?);
        ledger.peer(name, at(&peer, percentile)?);
    }
    Ok(())
}

/// Pages, each as likely as any other.
fn choose(files: &[TableFile], count: usize) -> Result<Vec<Page<'_>>> {
    let all: Vec<Page<'_>> = files
        .iter()
        .flat_map(|file| {
            let numbers = 0..file.size_bytes / PAGE_BYTES;
            numbers.map(move |number| Page {
                file,
                offset: number * PAGE_BYTES,
            })
        })
        .collect();
    ensure!(!all.is_empty(), "the backup has no large file");
    let mut random = StdRng::seed_from_u64(SEED);
    let chosen = (0..count).filter_map(|_| {
        let page = all.get(random.random_range(0..all.len()))?;
        Some(Page { ..*page })
    });
    Ok(chosen.collect())
}

/// Milliseconds of each read, ascending.
fn timed<'a>(
    pages: &[Page<'a>],
    mut read: impl FnMut(&Page<'a>) -> Result<()>,
) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    for page in pages {
        let began = Instant::now();
        read(page)?;
        times.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// What so many of a hundred stay below.
fn at(times: &[f64], percentile: u32) -> Result<f64> {
    let place = (times.len() * percentile as usize).div_ceil(100);
    let found = times.get(place.saturating_sub(1));
    found.copied().context("nothing was read")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panic")]

    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_times() {
        let times: Vec<f64> = (1..=200).map(f64::from).collect();
        for (percentile, wanted) in [(50, 100.0), (99, 198.0), (100, 200.0)] {
            let found = at(&times, percentile).unwrap();
            assert!((found - wanted).abs() < f64::EPSILON, "{found}");
        }
        assert!(at(&[], 50).is_err());
    }

    #[test]
    fn pages_lie_in_their_files_and_are_the_same_each_time() {
        let files = [3, 5].map(|pages| TableFile {
            path: pages.to_string(),
            size_bytes: pages * PAGE_BYTES,
        });
        let chosen = choose(&files, 100).unwrap();
        assert_eq!(chosen.len(), 100);
        for (page, again) in chosen.iter().zip(choose(&files, 100).unwrap()) {
            assert!(page.offset + PAGE_BYTES <= page.file.size_bytes);
            assert_eq!(
                (&page.file.path, page.offset),
                (&again.file.path, again.offset)
            );
        }
        assert!(choose(&[], 1).is_err());
    }
}
