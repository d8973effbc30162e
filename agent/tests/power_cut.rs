//! Power cuts and kills at any moment: random operations on the cache over a disk that loses what was not flushed.

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
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use agent::cache::content::{Fetched, Need, Outcome};
use agent::cache::namespace::Owner;
use agent::cache::node::Node;
use agent::cache::record::NodeKind;
use agent::cache::store::{NewNode, Place, RenameMode, Store, StoreParts};
use agent::cache::tree::Tree;
use agent::cache::{Ino, ROOT};
use chance::{Random, only_seed, power_cuts};
use common::agent::hand::{TreeEntry, TreeEntryKind};
use volatile_disk::{Effect, VolatileDisk, apply};

const BASE_SIZES: [usize; 4] = [20_000, 8_192, 50_001, 0];

fn base_content(file: u32) -> Vec<u8> {
    (0..BASE_SIZES[file as usize])
        .map(|at| (at / 7 + file as usize) as u8 | 128)
        .collect()
}

fn tree() -> Arc<Tree> {
    let entries: Vec<TreeEntry> = (0..BASE_SIZES.len())
        .map(|file| TreeEntry {
            path: format!("f{file}"),
            kind: TreeEntryKind::File {
                file: file as u32,
                size_bytes: BASE_SIZES[file] as u64,
            },
            mode: 0o600,
            modified_at_s: 1,
        })
        .collect();
    Arc::new(Tree::from_entries(&entries).unwrap())
}

/// What a file may hold after a power cut: the content at the last flush, or anything that it had since.
#[derive(Debug, Clone)]
struct Oracle {
    images: Vec<Vec<u8>>,
}

impl Oracle {
    fn now(&mut self) -> &mut Vec<u8> {
        let last = self.images.last().unwrap().clone();
        self.images.push(last);
        self.images.last_mut().unwrap()
    }

    fn current(&self) -> &[u8] {
        self.images.last().unwrap()
    }

    fn flushed(&mut self) {
        self.images = vec![self.current().to_vec()];
    }

    fn check(&self, found: &[u8], what: &str) {
        let sizes: Vec<usize> = self.images.iter().map(Vec::len).collect();
        // A torn write that made the file longer may leave any size in between.
        let (least, most) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
        assert!(
            (least..=most).contains(&&found.len()),
            "{what}: size {} of {sizes:?}",
            found.len()
        );
        for (at, byte) in found.iter().enumerate() {
            let fits = |image: &Vec<u8>| image.get(at).map_or(*byte == 0, |had| had == byte);
            assert!(
                self.images.iter().any(fits),
                "{what}: byte {at} is {byte}, had been {:?}",
                self.images
                    .iter()
                    .map(|image| image.get(at))
                    .collect::<Vec<_>>()
            );
        }
    }
}

fn assert_same(found: &[u8], wanted: &[u8], what: &str) {
    assert_eq!(found.len(), wanted.len(), "{what}: size");
    let differs = found.iter().zip(wanted).position(|(a, b)| a != b);
    let at = differs.map(|at| (at, found[at], wanted[at]));
    assert_eq!(at, None, "{what}: byte, found, wanted");
}

struct World {
    random: Random,
    disk: Arc<VolatileDisk>,
    runtime: File,
    store: Store,
    files: BTreeMap<Ino, Oracle>,
    // Names after each change of names; all before `named` are undone for certain.
    history: Vec<BTreeMap<String, Ino>>,
    named: usize,
    given_back: u32,
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

fn names_in(store: &Store, directory: Ino) -> BTreeMap<String, Ino> {
    let names = store.list(directory);
    let owned = names.iter().map(|(name, ino)| (name.to_owned(), ino));
    owned.collect()
}

impl World {
    fn new(seed: u64) -> Self {
        let disk = Arc::new(VolatileDisk::default());
        let runtime = tempfile::tempfile().unwrap();
        let store = open_store(&disk, &runtime);
        let names = names_in(&store, ROOT);
        let oracle = |name: &str| Oracle {
            images: vec![base_content(name[1..].parse().unwrap())],
        };
        Self {
            random: Random(seed * 2 + 1),
            files: names
                .iter()
                .map(|(name, ino)| (*ino, oracle(name)))
                .collect(),
            history: vec![names],
            named: 0,
            given_back: 0,
            disk,
            runtime,
            store,
        }
    }

    fn names(&self) -> &BTreeMap<String, Ino> {
        self.history.last().unwrap()
    }

    fn rename_history(&mut self, change: impl FnOnce(&mut BTreeMap<String, Ino>)) {
        let mut names = self.names().clone();
        change(&mut names);
        self.history.push(names);
    }

    fn carry_out<T>(
        &self,
        node: &Node,
        keep: bool,
        operation: impl Fn(&[Arc<Fetched>]) -> io::Result<Outcome<T>>,
    ) -> T {
        let mut fetched = Vec::new();
        loop {
            match operation(&fetched).unwrap() {
                Outcome::Done(done) => return done,
                Outcome::Needs(Need {
                    file,
                    offset,
                    length,
                }) => {
                    let from = offset as usize;
                    let bytes = base_content(file)[from..from + length as usize].to_vec();
                    let got = Fetched {
                        offset,
                        bytes: bytes.into(),
                    };
                    if keep {
                        self.store.fill(node, &got).unwrap();
                    }
                    fetched = vec![Arc::new(got)];
                }
            }
        }
    }

    fn read_all(&self, ino: Ino, keep: bool) -> Vec<u8> {
        let node = self.store.node(ino).unwrap();
        self.carry_out(&node, keep, |fetched| {
            self.store.read(&node, 0, 1 << 20, fetched)
        })
        .to_vec()
    }

    fn step(&mut self) {
        let names: Vec<(String, Ino)> = self.names().clone().into_iter().collect();
        let what = self.random.below(20);
        let Some((name, ino)) = names
            .get(self.random.below(names.len().max(1) as u64) as usize)
            .cloned()
        else {
            return self.create();
        };
        let node = self.store.node(ino).unwrap();
        let offset = self.random.below(60_000);
        let length = 1 + self.random.below(20_000);
        let keep = self.random.below(2) == 0;
        if std::env::var("SEED").is_ok() {
            println!("{what} {name} ({ino}) {offset} {length} {keep}");
        }
        match what {
            0..=4 => {
                let fill = self.random.below(127) as u8 + 1;
                let bytes = vec![fill; length as usize];
                self.carry_out(&node, keep, |f| self.store.write(&node, offset, &bytes, f));
                apply(
                    self.files.get_mut(&ino).unwrap().now(),
                    &Effect::Write(offset, bytes),
                );
            }
            5 | 6 => {
                self.store.sync(&node).unwrap();
                self.files.get_mut(&ino).unwrap().flushed();
            }
            7 => {
                self.store.truncate(&node, offset).unwrap();
                apply(
                    self.files.get_mut(&ino).unwrap().now(),
                    &Effect::Size(offset),
                );
            }
            8 => {
                let mode = [0, 1, 3, 16, 17][self.random.below(5) as usize];
                self.carry_out(&node, keep, |f| {
                    self.store.allocate(&node, mode, offset, length, f)
                });
                let model = self.files.get_mut(&ino).unwrap().now();
                if mode & 1 == 0 && (offset + length) as usize > model.len() {
                    apply(model, &Effect::Size(offset + length));
                }
                if mode & (2 | 16) != 0 {
                    apply(model, &Effect::Zero(offset, length));
                }
            }
            9 => assert_same(&self.read_all(ino, keep), self.files[&ino].current(), &name),
            10 => {
                self.read_all(ino, true);
                self.store.note_whole(&node);
                self.store.complete_whole().unwrap();
            }
            11 => self.create(),
            12 => {
                self.store
                    .unlink(
                        Place {
                            parent: ROOT,
                            name: &name,
                        },
                        0,
                    )
                    .unwrap();
                self.rename_history(|names| {
                    names.remove(&name);
                });
            }
            13 => {
                let to = format!("n{}", self.random.below(5));
                let (old, new) = (
                    Place {
                        parent: ROOT,
                        name: &name,
                    },
                    Place {
                        parent: ROOT,
                        name: &to,
                    },
                );
                self.store.rename(old, new, RenameMode::Replace, 0).unwrap();
                self.rename_history(|names| {
                    names.remove(&name);
                    names.insert(to.clone(), ino);
                });
            }
            14 => {
                self.store.sync_names().unwrap();
                self.named = self.history.len() - 1;
            }
            15 => self.store.reap().unwrap(),
            16 => {
                // As the background does: reads the whole, keeps it, gives some back.
                let node = self.store.node(ino).unwrap();
                if let Some(base) = { node.lock().base } {
                    let granules = base.length.div_ceil(8192).max(1);
                    let part = self.random_part(granules);
                    self.keep_copy(&node, part);
                }
            }
            17 | 18 => self.give_back(&node, length),
            _ => {
                self.store.sum_up_runtime().unwrap();
                if keep {
                    self.store.sum_up_catalog().unwrap();
                    self.named = self.history.len() - 1;
                }
            }
        }
    }

    fn random_part(&mut self, granules: u64) -> (u64, u64) {
        let first = self.random.below(granules);
        (first, 1 + self.random.below(granules - first))
    }

    /// A piece of the backup that was asked for some time ago: it comes when anything may have been written since.
    fn keep_copy(&self, node: &Node, (first, count): (u64, u64)) {
        let Some(base) = ({ node.lock().base }) else {
            return;
        };
        let end = ((first + count) * 8192).min(base_content(base.file).len() as u64);
        let bytes = base_content(base.file)[(first * 8192) as usize..end as usize].to_vec();
        let offset = first * 8192;
        self.store
            .fill(
                node,
                &Fetched {
                    offset,
                    bytes: bytes.into(),
                },
            )
            .unwrap();
    }

    fn give_back(&mut self, node: &Arc<Node>, bytes: u64) {
        while let Some((first, count)) = self.store.unproven(node, 3) {
            let Some(base) = ({ node.lock().base }) else {
                break;
            };
            let bytes = base_content(base.file)[(first * 8192) as usize..].to_vec();
            let piece = Arc::new(Fetched {
                offset: first * 8192,
                bytes: bytes.into(),
            });
            self.store.prove(node, (first, count), &[piece]).unwrap();
        }
        let Some(given_back) = self.store.give_back(node, bytes).unwrap() else {
            return;
        };
        self.given_back += 1;
        // Between the two anything may happen: a writer or a reader brings some of it back, the power goes.
        if self.random.below(2) == 0 {
            self.keep_copy(node, (0, 2));
        }
        if self.random.below(4) > 0 {
            self.store.free(&[given_back]).unwrap();
        }
    }

    fn create(&mut self) {
        let name = format!("n{}", self.random.below(5));
        if self.names().contains_key(&name) {
            return;
        }
        let owner = Owner { user: 1, group: 1 };
        let new = NewNode {
            parent: ROOT,
            name: &name,
            mode: 0o600,
            owner,
            unique: 0,
        };
        let ino = self.store.create(new, NodeKind::File).unwrap().ino;
        self.files.insert(
            ino,
            Oracle {
                images: vec![Vec::new()],
            },
        );
        self.rename_history(|names| {
            names.insert(name, ino);
        });
    }

    /// The worker is killed: nothing that was answered may be lost.
    fn kill(&mut self) {
        self.store = open_store(&self.disk, &self.runtime);
        let names = names_in(&self.store, ROOT);
        assert_eq!(&names, self.names());
        for ino in names.values() {
            let found = self.read_all(*ino, false);
            assert_same(&found, self.files[ino].current(), &format!("node {ino}"));
        }
    }

    /// Worker and supervisor are killed, the machine goes on: what comes of it is what a power cut would leave, and
    /// from then on a flush of what is seen promises it.
    fn lose_supervisor(&mut self) {
        self.runtime = tempfile::tempfile().unwrap();
        self.reopen();
    }

    /// The power is cut: what was flushed may not be lost, the rest is as it was at some time since.
    fn cut(&mut self) {
        self.disk = Arc::new(self.disk.cut(&mut self.random));
        self.runtime = tempfile::tempfile().unwrap();
        self.reopen();
    }

    fn reopen(&mut self) {
        self.store = open_store(&self.disk, &self.runtime);
        let names = names_in(&self.store, ROOT);
        assert!(
            self.history[self.named..].contains(&names),
            "{names:?} is none of {:?}",
            &self.history[self.named..]
        );
        let mut files = BTreeMap::new();
        for (name, ino) in &names {
            let found = self.read_all(*ino, false);
            self.files[ino].check(&found, &format!("{name}, node {ino}"));
            // From here on this is the content, but only what a native system would call unflushed.
            files.insert(
                *ino,
                Oracle {
                    images: vec![found],
                },
            );
        }
        self.files = files;
        self.history = vec![names];
        self.named = 0;
    }
}

fn run(seed: u64) -> u32 {
    let mut world = World::new(seed);
    for _ in 0..4 {
        let steps = world.random.below(40);
        for _ in 0..steps {
            world.step();
        }
        match world.random.below(4) {
            0 => world.kill(),
            1 => world.lose_supervisor(),
            _ => world.cut(),
        }
    }
    world.given_back
}

#[test]
fn an_acknowledged_flush_survives_power_cuts_and_an_acknowledged_write_survives_kills() {
    let only = only_seed();
    let seeds = only.map_or(1..power_cuts(1_000) + 1, |seed| seed..seed + 1);
    let mut given_back = 0;
    for seed in seeds {
        match std::panic::catch_unwind(|| run(seed)) {
            Ok(count) => given_back += count,
            Err(panic) => {
                println!("replay with SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("copies were given back {given_back} times");
    assert!(only.is_some() || given_back > 0);
}

#[test]
fn a_new_cache_is_opened_without_a_flush_of_its_volume_and_a_used_one_with_it() {
    let disk = Arc::new(VolatileDisk::default());
    let opened = |disk: &Arc<VolatileDisk>| {
        drop(open_store(disk, &tempfile::tempfile().unwrap()));
        disk.whole_flushes.load(Ordering::Relaxed)
    };
    assert_eq!(opened(&disk), 0);
    assert_eq!(opened(&disk), 1);
}
