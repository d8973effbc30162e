//! Power cuts of a real disk under random operations on files of a real mount: a loop device over a file of ours holds the ext4
//! of the write cache, and what was flushed there must be found after any cut.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    unreachable_pub,
    reason = "a test may panic, and its numbers are its own"
)]

mod chance;
mod file_model;
mod loop_disk;
mod mount_support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use agent::cache::ROOT;
use agent::cache::content::{Fetched, Outcome};
use agent::cache::disk::RealDisk;
use agent::cache::namespace::Owner;
use agent::cache::store::{Place, Store, StoreParts};
use agent::cache::tree::Tree;
use chance::{Random, only_seed, power_cuts};
use common::agent::hand::{MountOptions, TreeEntryKind};
use file_model::Model;
use loop_disk::{CrashImages, Entry, Flushes, Image, Log, LoopDisk, Position, Survivors, Volume};
use mount_support::Fixture;

const VOLUME_BYTES: u64 = 256 << 20;
const BASE_SIZES: [usize; 5] = [20_000, 8_192, 50_001, 0, 300_000];
const OPERATIONS: usize = 1_200;
/// Cuts when nobody asks for more.
const CUTS: u64 = 300;
const CUTS_OF_A_RUN: u64 = 150;
/// Every so many cuts the image is looked at through a mount of its own; else through the cache alone.
const MOUNTED_EVERY: u64 = 40;

type Files = BTreeMap<String, Vec<u8>>;

fn base_content(file: usize) -> Vec<u8> {
    (0..BASE_SIZES[file])
        .map(|at| (at / 7 + file) as u8 | 128)
        .collect()
}

fn base_files() -> Files {
    let name = |file| (format!("f{file}"), base_content(file));
    (0..BASE_SIZES.len()).map(name).collect()
}

/// Somebody who works with files of the mount and knows what may be there after a cut.
struct Worker<'a> {
    random: Random,
    position: Position,
    fixture: &'a Fixture,
    model: Model,
    open: BTreeMap<u32, File>,
    /// What was done, for whoever looks into a failure.
    story: Vec<String>,
}

impl Worker<'_> {
    fn path(&self, name: &str) -> std::path::PathBuf {
        self.fixture.data().join(name)
    }

    /// The file's descriptor; half of them stay open for as long as the file has a name.
    fn descriptor(&mut self, id: u32, name: &str) -> File {
        if let Some(file) = self.open.get(&id) {
            return file.try_clone().unwrap();
        }
        let path = self.path(name);
        let file = File::options().read(true).write(true).open(path).unwrap();
        if self.random.below(2) == 0 {
            self.open.insert(id, file.try_clone().unwrap());
        }
        file
    }

    fn flush(&mut self, id: u32, file: &File) {
        let flush = self.model.begin_flush(id);
        file.sync_data().unwrap();
        self.model.end_flush(flush, self.position.now());
    }

    fn flush_names(&mut self) {
        let flush = self.model.begin_flush_of_names();
        File::open(self.fixture.data()).unwrap().sync_all().unwrap();
        self.model.end_flush_of_names(flush, self.position.now());
    }

    fn step(&mut self) {
        let names: Vec<(String, u32)> = self.model.names().clone().into_iter().collect();
        if names.len() < 3 {
            return self.create();
        }
        let (name, id) = names[self.random.below(names.len() as u64) as usize].clone();
        let offset = self.random.below(60_000);
        let length = 1 + self.random.below(20_000);
        let since = self.position.now();
        let mut what = self.random.below(20);
        if name.starts_with('f') && [16, 17].contains(&what) && self.random.below(8) > 0 {
            // Files of the backup are kept for long: they are what this is about.
            what = 0;
        }
        let story = format!("from {since}: {what} {name} (file {id}) {offset} {length}");
        self.story.push(story);
        match what {
            0..=6 => {
                let bytes = vec![self.random.below(127) as u8 + 1; length as usize];
                let file = self.descriptor(id, &name);
                let changed = self.model.change(id, since);
                if changed.len() < (offset + length) as usize {
                    changed.resize((offset + length) as usize, 0);
                }
                changed[offset as usize..(offset + length) as usize].copy_from_slice(&bytes);
                file.write_all_at(&bytes, offset).unwrap();
            }
            7..=10 => {
                let file = self.descriptor(id, &name);
                self.flush(id, &file);
            }
            11 => {
                let file = self.descriptor(id, &name);
                self.model.change(id, since).resize(offset as usize, 0);
                file.set_len(offset).unwrap();
            }
            12 => {
                // As PostgreSQL appends to its log: each write is flushed before it returns, and Linux flushes nothing else.
                let file = self.descriptor(id, &name);
                self.flush(id, &file);
                let since = self.position.now();
                let path = self.path(&name);
                let synchronous = rustix::fs::OFlags::DSYNC.bits() as i32;
                let mut options = File::options();
                let file = options.write(true).custom_flags(synchronous).open(path);
                let bytes = vec![self.random.below(127) as u8 + 1; length as usize];
                let changed = self.model.change(id, since);
                let from = changed.len() as u64;
                changed.extend(&bytes);
                let flush = self.model.begin_flush(id);
                file.unwrap().write_all_at(&bytes, from).unwrap();
                self.model.end_flush(flush, self.position.now());
            }
            13 => {
                let wanted = self.model.content(id);
                assert!(fs::read(self.path(&name)).unwrap() == wanted, "{name}");
            }
            14 | 15 => self.create(),
            16 => {
                fs::remove_file(self.path(&name)).unwrap();
                self.open.remove(&id);
                self.model.rename_all(since, |names| {
                    names.remove(&name);
                });
            }
            17 => {
                let to = format!("n{}", self.random.below(6));
                fs::rename(self.path(&name), self.path(&to)).unwrap();
                self.model.rename_all(since, |names| {
                    names.remove(&name);
                    names.insert(to, id);
                });
            }
            18 => self.flush_names(),
            _ if self.random.below(8) == 0 => self.fixture.kill_worker(),
            _ => {}
        }
    }

    fn create(&mut self) {
        let name = format!("n{}", self.random.below(6));
        if self.model.names().contains_key(&name) {
            return;
        }
        let since = self.position.now();
        File::create_new(self.path(&name)).unwrap();
        self.model.create(&name, since);
    }
}

/// What a mount did with a disk, and what may be found on the disk after a cut.
struct Run {
    fixture: Fixture,
    model: Model,
    images: CrashImages,
    story: Vec<String>,
    first_cut: usize,
    directory: tempfile::TempDir,
}

fn volatile(directory: &Path) -> (File, LoopDisk) {
    let formatted = loop_disk::formatted(directory, VOLUME_BYTES).unwrap();
    let image = Image::over(formatted.try_clone().unwrap(), directory).unwrap();
    let log = Log::in_directory(directory).unwrap();
    (formatted, LoopDisk::attach(image, Some(log)).unwrap())
}

fn live(seed: u64) -> Run {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let (formatted, disk) = volatile(directory.path());
    let mut volume = None;
    let mut fixture = Fixture::with_cache_on(
        "root",
        |data| {
            for (name, content) in base_files() {
                fs::write(data.join(name), content).unwrap();
            }
        },
        |root| volume = Some(Volume::mount(&disk, root).unwrap()),
    );
    fixture.serve();
    let options = MountOptions {
        passthrough: !seed.is_multiple_of(2),
        ..MountOptions::default()
    };
    fixture.mount(&options).unwrap();
    let position = disk.position();
    let first_cut = position.now();
    let mut worker = Worker {
        random: Random(seed * 2 + 1),
        model: Model::new(base_files(), first_cut),
        fixture: &fixture,
        open: BTreeMap::new(),
        story: Vec::new(),
        position,
    };
    for _ in 0..OPERATIONS {
        worker.step();
    }
    let Worker {
        model, open, story, ..
    } = worker;
    drop(open);
    fixture.unmount();
    volume.unwrap().unmount().unwrap();
    let log = disk.end().unwrap();
    Run {
        images: CrashImages::new(Arc::new(log), formatted, directory.path()),
        fixture,
        model,
        story,
        first_cut,
        directory,
    }
}

impl Run {
    /// What a cache holds, by its own files alone.
    fn files_of_cache(&self) -> Files {
        let entries = &self.fixture.entries;
        let store = Store::open(StoreParts {
            tree: Arc::new(Tree::from_entries(entries).unwrap()),
            disk: Arc::new(RealDisk::open(&self.fixture.place.cache_directory()).unwrap()),
            runtime: tempfile::tempfile_in(self.directory.path()).unwrap(),
            owner: Owner { user: 0, group: 0 },
        });
        let store = store.unwrap();
        let data = Place {
            parent: ROOT,
            name: "data",
        };
        let data = store.lookup(data).unwrap().ino;
        let read = |ino| {
            let node = store.node(ino).unwrap();
            let mut fetched = Vec::new();
            loop {
                match store.read(&node, 0, 2 << 20, &fetched).unwrap() {
                    Outcome::Done(bytes) => return bytes.to_vec(),
                    Outcome::Needs(need) => {
                        let bytes = self.backup_file(need.file);
                        let from = need.offset as usize;
                        fetched = vec![Arc::new(Fetched {
                            offset: need.offset,
                            bytes: bytes[from..from + need.length as usize].to_vec().into(),
                        })];
                    }
                }
            }
        };
        let names = store.list(data);
        let contents = names.iter().map(|(name, ino)| (name.to_owned(), read(ino)));
        contents.collect()
    }

    fn backup_file(&self, number: u32) -> Vec<u8> {
        let is_it = |kind: &TreeEntryKind| matches!(kind, TreeEntryKind::File { file, .. } if *file == number);
        let mut entries = self.fixture.entries.iter();
        let entry = entries.find(|entry| is_it(&entry.kind)).unwrap();
        fs::read(self.fixture.backup().join(&entry.path)).unwrap()
    }

    /// The same through a mount.
    fn files_of_mount(&self) -> Files {
        self.fixture.mount(&MountOptions::default()).unwrap();
        let read = |entry: fs::DirEntry| {
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read(entry.path()).unwrap())
        };
        let list = fs::read_dir(self.fixture.data()).unwrap();
        let files = list.map(|entry| read(entry.unwrap())).collect();
        self.fixture.unmount();
        files
    }

    /// Cuts the power before an entry of the log and says what is wrong with what is found.
    fn cut(
        &mut self,
        (cut, seed): (usize, u64),
        disk_is: (Flushes, Survivors),
    ) -> Result<(), String> {
        let mut random = Random(seed * 2 + 1);
        let image = self.images.cut(cut, disk_is, &mut random).unwrap();
        let disk = LoopDisk::attach(image, None).unwrap();
        let volume = Volume::mount(&disk, &self.fixture.place.cache_root)
            .map_err(|error| format!("mount the volume: {error}"))?;
        let found = match seed % MOUNTED_EVERY {
            0 => self.files_of_mount(),
            _ => self.files_of_cache(),
        };
        volume.unmount().unwrap();
        drop(disk);
        self.model.check(&found, cut)
    }

    fn cuts(&self, random: &mut Random, count: u64) -> Vec<usize> {
        let (first, end) = (self.first_cut as u64, self.images.log().entries().len());
        let mut cuts: Vec<usize> = (0..count)
            .map(|_| (first + random.below(end as u64 - first + 1)) as usize)
            .collect();
        cuts.sort_unstable();
        cuts
    }
}

/// Cuts the power of a run at so many moments; returns how many flushes users were answered, and how many the disk saw.
fn cut_at_any_moment(seed: u64, count: u64) -> (usize, usize) {
    let mut run = live(seed);
    let mut random = Random(seed * 2 + 1);
    for (number, cut) in run.cuts(&mut random, count).into_iter().enumerate() {
        let survivors = match random.below(6) {
            0 => Survivors::Nothing,
            1 => Survivors::Everything,
            _ => Survivors::Some,
        };
        let found = run.cut((cut, number as u64), (Flushes::Kept, survivors));
        let story = || run.story.join("\n");
        assert_eq!(
            found,
            Ok(()),
            "{}\nSEED={seed}, cut {number} before {cut}",
            story()
        );
    }
    let entries = run.images.log().entries().iter();
    let flushes = entries.filter(|entry| **entry == Entry::Flush).count();
    (run.model.flush_count(), flushes)
}

#[test]
fn what_was_flushed_is_found_on_a_real_disk_after_power_cuts_at_any_moment() {
    let first = only_seed().unwrap_or(1);
    let (began_at, count) = (Instant::now(), power_cuts(CUTS));
    for (seed, done) in (first..).zip((0..count).step_by(CUTS_OF_A_RUN as usize)) {
        let cuts = CUTS_OF_A_RUN.min(count - done);
        let (answered, flushes) = cut_at_any_moment(seed, cuts);
        println!(
            "SEED={seed}: {cuts} cuts, {answered} flushes answered to users, {flushes} seen by the disk; {} s",
            began_at.elapsed().as_secs()
        );
    }
}

#[test]
fn a_disk_that_ignores_flushes_is_found_out() {
    let mut run = live(7);
    let end = run.images.log().entries().len();
    let mut losses = Vec::new();
    // Each cut finds the disk as it was long before it: the disk said that it had flushed, and had not.
    for number in 1..=8 {
        let cut = run.first_cut + (end - run.first_cut) * number / 8;
        let ignored = (end - run.first_cut) / 8;
        let disk_is = (Flushes::IgnoredSince(ignored), Survivors::Nothing);
        losses.extend(run.cut((cut, number as u64), disk_is).err());
    }
    println!(
        "{} of 8 cuts lose something: {:?}",
        losses.len(),
        losses.first()
    );
    assert!(losses.len() > 4, "{losses:?}");
}

#[test]
fn a_loop_disk_writes_at_once_and_hands_every_flush_on() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let (_formatted, disk) = volatile(directory.path());
    let position = disk.position();
    let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
    let device = File::options()
        .write(true)
        .custom_flags(direct)
        .open(disk.device())
        .unwrap();
    // Aligned as direct writes must be.
    let room = vec![7; 8192];
    let from = room.as_ptr().align_offset(4096);
    const END_BYTES: u64 = VOLUME_BYTES - (1 << 20);
    let before = position.now();
    for number in 0..10 {
        device
            .write_all_at(&room[from..from + 4096], END_BYTES + 8192 * number)
            .unwrap();
        assert_eq!(
            position.now(),
            before + 1 + number as usize,
            "not yet there"
        );
    }
    device.sync_all().unwrap();
    assert_eq!(
        position.now(),
        before + 11,
        "one flush and nothing before it"
    );
    drop(device);

    // And a file system over it: an fsync of a file that was only overwritten is data and a flush.
    let at = directory.path().join("mounted");
    let volume = Volume::mount(&disk, &at).unwrap();
    let file = File::create(at.join("file")).unwrap();
    file.write_all_at(&room, 0).unwrap();
    file.sync_all().unwrap();
    let before = position.now();
    for _ in 0..50 {
        file.write_all_at(&room, 0).unwrap();
        file.sync_data().unwrap();
    }
    drop(file);
    volume.unmount().unwrap();
    let log = disk.end().unwrap();
    let flushes = log.entries()[before..]
        .iter()
        .filter(|entry| **entry == Entry::Flush);
    assert!(flushes.count() >= 50, "{:?}", log.entries());
}
