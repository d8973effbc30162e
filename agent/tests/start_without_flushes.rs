//! PostgreSQL that starts after a crash flushes no file by itself: what it wrote before and never flushed must not be
//! missing under a checkpoint that it finishes afterwards, wherever the power is cut.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    unreachable_pub,
    reason = "a test may panic, and its numbers are its own"
)]

mod chance;
mod volatile_disk;

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;

use agent::cache::content::{Fetched, Outcome};
use agent::cache::disk::{Disk, DiskName};
use agent::cache::namespace::Owner;
use agent::cache::node::Node;
use agent::cache::record::NodeKind;
use agent::cache::store::{NewNode, Place, Store, StoreParts};
use agent::cache::tree::Tree;
use agent::cache::{Ino, ROOT};
use chance::{Random, only_seed, power_cuts};
use common::agent::hand::{TreeEntry, TreeEntryKind};
use volatile_disk::VolatileDisk;

const PAGE_BYTES: u64 = 8192;
const BASE_PAGES: u64 = 6;
const CONTROL: &str = "pg_control";

/// Whether a write of the control file waits for everything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Barrier {
    Kept,
    LeftOut,
}

fn tree() -> Arc<Tree> {
    let file = |number: u32, path: &str, size_bytes| TreeEntry {
        path: path.to_owned(),
        kind: TreeEntryKind::File {
            file: number,
            size_bytes,
        },
        mode: 0o600,
        modified_at_s: 1,
    };
    let pages = BASE_PAGES * PAGE_BYTES;
    let entries = [
        file(0, CONTROL, PAGE_BYTES),
        file(1, "r1", pages),
        file(2, "r2", pages),
        file(3, "r3", pages),
    ];
    Arc::new(Tree::from_entries(&entries).unwrap())
}

/// One page of a relation, by the relation's name.
type Page = (String, u64);

/// A PostgreSQL whose pages hold nothing but the number of the last change to them.
struct Postgres {
    random: Random,
    barrier: Barrier,
    disk: Arc<VolatileDisk>,
    runtime: File,
    store: Store,
    /// Changes so far: stands for the end of the WAL, which is thought to be safe.
    changes: u64,
    /// What each page was written with last.
    pages: BTreeMap<Page, u64>,
    /// Relations written since they were flushed last, as the running server remembers it.
    to_flush: Vec<String>,
    /// What each page held when each checkpoint began, by the checkpoint's number.
    at_checkpoint: BTreeMap<u64, BTreeMap<Page, u64>>,
}

fn open_store(disk: &Arc<VolatileDisk>, runtime: &File) -> Store {
    Store::open(StoreParts {
        tree: tree(),
        disk: disk.clone(),
        runtime: runtime.try_clone().unwrap(),
        owner: Owner { user: 1, group: 1 },
    })
    .unwrap()
}

impl Postgres {
    fn new(seed: u64, barrier: Barrier) -> Self {
        let disk = Arc::new(VolatileDisk::default());
        let runtime = tempfile::tempfile().unwrap();
        Self {
            random: Random(seed * 2 + 1),
            barrier,
            store: open_store(&disk, &runtime),
            disk,
            runtime,
            changes: 0,
            pages: BTreeMap::new(),
            to_flush: Vec::new(),
            at_checkpoint: BTreeMap::from([(0, BTreeMap::new())]),
        }
    }

    fn ino(&self, name: &str) -> Ino {
        let place = Place { parent: ROOT, name };
        self.store.lookup(place).unwrap().ino
    }

    fn write(&self, node: &Node, offset: u64, bytes: &[u8]) {
        let done = self.store.write(node, offset, bytes, &[]).unwrap();
        assert!(matches!(done, Outcome::Done(())), "whole pages only");
    }

    fn read(&self, name: &str, page: u64) -> Option<u64> {
        let node = self.store.node(self.ino(name)).unwrap();
        let mut fetched = Vec::new();
        loop {
            let read = self.store.read(&node, page * PAGE_BYTES, 8, &fetched);
            match read.unwrap() {
                Outcome::Done(bytes) => {
                    return Some(u64::from_le_bytes(bytes[..].try_into().ok()?));
                }
                Outcome::Needs(need) => {
                    fetched = vec![Arc::new(Fetched {
                        offset: need.offset,
                        bytes: vec![0; need.length as usize].into(),
                    })];
                }
            }
        }
    }

    /// Makes a relation if it is not there.
    fn make(&self, name: &str) {
        let place = Place { parent: ROOT, name };
        if self.store.lookup(place).is_err() {
            let new = NewNode {
                parent: ROOT,
                name,
                mode: 0o600,
                owner: Owner { user: 1, group: 1 },
                unique: 0,
            };
            self.store.create(new, NodeKind::File).unwrap();
        }
    }

    fn page_of(&self, change: u64) -> Vec<u8> {
        change.to_le_bytes().repeat(PAGE_BYTES as usize / 8)
    }

    /// A backend changes a page, through the worker or by the kernel where that may serve the file.
    fn change(&mut self) {
        let name = format!("r{}", 1 + self.random.below(5));
        self.make(&name);
        let node = self.store.node(self.ino(&name)).unwrap();
        let page = self.random.below(BASE_PAGES);
        self.changes += 1;
        let bytes = self.page_of(self.changes);
        self.open_or_close(&node);
        let by_kernel = node.lock().opens.passthrough > 0;
        match by_kernel {
            true => self.write_by_kernel(node.ino, page * PAGE_BYTES, &bytes),
            false => self.write(&node, page * PAGE_BYTES, &bytes),
        }
        self.pages.insert((name.clone(), page), self.changes);
        self.to_flush.push(name);
    }

    fn write_by_kernel(&self, ino: Ino, offset: u64, bytes: &[u8]) {
        let data = self.disk.open(DiskName::Data(ino), false).unwrap();
        data.unwrap().write_at(bytes, offset).unwrap();
    }

    fn open_or_close(&mut self, node: &Arc<Node>) {
        let mut state = node.lock();
        if state.opens.passthrough > 0 {
            drop(state);
            if self.random.below(3) == 0 {
                self.store.released(node, true, 0).unwrap();
            }
        } else if self.store.may_pass_through(&state) && self.random.below(2) == 0 {
            self.store.opened(node, &mut state, Some(1), 0).unwrap();
        }
    }

    /// The postmaster dies with all its backends: what they did not flush is forgotten, the mount goes on.
    fn crash(&mut self) {
        self.to_flush.clear();
        for name in ["r1", "r2", "r3", "r4", "r5"] {
            let place = Place { parent: ROOT, name };
            let Ok(facts) = self.store.lookup(place) else {
                continue;
            };
            let node = self.store.node(facts.ino).unwrap();
            // A descriptor may outlive the postmaster, in an archive command for example.
            if node.lock().opens.passthrough > 0 && self.random.below(3) > 0 {
                self.store.released(&node, true, 0).unwrap();
            }
        }
    }

    /// Flushes what the running server has written since the last one, then says so in the control file.
    fn checkpoint(&mut self) {
        let number = self.changes;
        self.at_checkpoint.insert(number, self.pages.clone());
        for name in std::mem::take(&mut self.to_flush) {
            let node = self.store.node(self.ino(&name)).unwrap();
            self.store.sync(&node).unwrap();
        }
        if self.barrier == Barrier::Kept {
            self.store.barrier().unwrap();
        }
        let control = self.store.node(self.ino(CONTROL)).unwrap();
        self.write(&control, 0, &self.page_of(number));
        if self.random.below(4) > 0 {
            self.store.sync(&control).unwrap();
        }
    }

    /// The power is cut. Everything that the last checkpoint on the disk covers must be there or be younger: recovery
    /// begins behind it.
    fn cut(&mut self) -> Result<(), String> {
        self.disk = Arc::new(self.disk.cut(&mut self.random));
        self.runtime = tempfile::tempfile().unwrap();
        self.store = open_store(&self.disk, &self.runtime);
        let checkpoint = self.read(CONTROL, 0).unwrap();
        let covered = self.at_checkpoint.get(&checkpoint).unwrap().clone();
        for ((name, page), change) in covered {
            let place = Place {
                parent: ROOT,
                name: &name,
            };
            let found = match self.store.lookup(place) {
                Ok(_) => self.read(&name, page).unwrap_or(0),
                Err(_) => 0,
            };
            if found < change {
                return Err(format!(
                    "page {page} of {name} has change {found}; checkpoint {checkpoint} covers {change}"
                ));
            }
        }
        // Recovery writes everything again that the checkpoint does not cover.
        let pages = self.pages.clone();
        for ((name, page), change) in pages {
            if change > checkpoint {
                self.make(&name);
                let node = self.store.node(self.ino(&name)).unwrap();
                self.write(&node, page * PAGE_BYTES, &self.page_of(change));
                self.to_flush.push(name);
            }
        }
        Ok(())
    }

    fn kill_worker(&mut self) {
        self.store = open_store(&self.disk, &self.runtime);
    }

    fn live(&mut self) -> Result<(), String> {
        for _ in 0..60 {
            match self.random.below(20) {
                0..=10 => self.change(),
                11 | 12 => self.crash(),
                13..=15 => self.checkpoint(),
                16 => self.kill_worker(),
                17 => self.store.sum_up_catalog().unwrap(),
                18 => self.store.complete_whole().unwrap(),
                _ => self.cut()?,
            }
        }
        self.cut()
    }
}

fn losses(barrier: Barrier) -> Vec<String> {
    let only = only_seed();
    let seeds = only.map_or(1..power_cuts(250) + 1, |seed| seed..seed + 1);
    let lost = |seed| {
        let result = Postgres::new(seed, barrier).live();
        result.err().map(|loss| format!("SEED={seed}: {loss}"))
    };
    seeds.filter_map(lost).collect()
}

#[test]
fn nothing_is_missing_under_a_checkpoint_after_a_start_that_flushed_nothing() {
    assert_eq!(losses(Barrier::Kept), Vec::<String>::new());
}

#[test]
fn without_the_barrier_such_a_start_would_lose_what_was_written_before_the_crash() {
    let lost = losses(Barrier::LeftOut);
    println!("{} runs lose something: {:?}", lost.len(), lost.first());
    assert!(!lost.is_empty());
}

#[test]
fn what_the_kernel_writes_to_a_file_that_stays_open_is_under_each_checkpoint() {
    for seed in 1..=30 {
        let mut postgres = Postgres::new(seed, Barrier::Kept);
        postgres.make("r4");
        let node = postgres.store.node(postgres.ino("r4")).unwrap();
        let passed = postgres.store.opened(&node, &mut node.lock(), Some(1), 0);
        passed.unwrap();
        for page in 0..3 {
            postgres.changes += 1;
            let change = postgres.changes;
            let bytes = postgres.page_of(change);
            postgres.write_by_kernel(node.ino, page * PAGE_BYTES, &bytes);
            postgres.pages.insert(("r4".to_owned(), page), change);
            // The server that wrote it has crashed: the checkpoint is another's, who does not know.
            postgres.checkpoint();
        }
        postgres.cut().unwrap();
    }
}
