use std::sync::Barrier;
use std::sync::atomic::AtomicUsize;

use proptest::prelude::*;

use super::*;
use crate::decoded::{Decoded, DecodedLimits, DecodedStore};

const SIZE: u64 = 12 << 20;
const DISK_BYTES: u64 = 1 << 30;

/// The byte at a place: no two places look alike for long.
fn byte(at: u64) -> u8 {
    at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0]
}

/// A file in decoding, which fails at a place.
struct Pattern {
    at: u64,
    /// Bytes that were decoded of all files.
    decoded: Arc<AtomicU64>,
    fails_at: u64,
    /// Most bytes that it gives at a time.
    step: usize,
}

impl ByteSource for Pattern {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, RepositoryError> {
        if self.at == self.fails_at {
            return Err(RepositoryError::corrupt("f", "is damaged"));
        }
        let left = usize::try_from(SIZE.min(self.fails_at) - self.at).unwrap();
        let count = buffer.len().min(left).min(self.step);
        for (place, at) in buffer.iter_mut().zip(self.at..).take(count) {
            *place = byte(at);
        }
        self.at += count as u64;
        self.decoded.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

struct Stage {
    store: DecodedStore,
    _directory: tempfile::TempDir,
    passing: AtomicUsize,
    kept: AtomicUsize,
    fails_at: AtomicU64,
    decoded: Arc<AtomicU64>,
}

/// With memory for so many passes.
fn stage(pass_count: usize) -> Stage {
    let directory = tempfile::tempdir().unwrap();
    let store = DecodedStore::new(DecodedLimits {
        directory: directory.path().to_owned(),
        disk_bytes_max: DISK_BYTES,
        memory_bytes_max: crate::decoded::PASSES_PART * pass_count * PASS_BYTES,
    });
    Stage {
        store,
        _directory: directory,
        passing: AtomicUsize::new(0),
        kept: AtomicUsize::new(0),
        fails_at: AtomicU64::new(u64::MAX),
        decoded: Arc::default(),
    }
}

impl Stage {
    fn read(&self, file: u32, offset: u64, length: usize) -> Result<usize, RepositoryError> {
        let mut buffer = vec![0; length];
        let read = DecodedRead {
            owner: 1,
            file,
            path: "f",
            size_bytes: SIZE,
            offset,
        };
        let count = self.store.read_at(read, &mut buffer, &|purpose| {
            match purpose {
                Decoded::Passing => &self.passing,
                Decoded::Kept => &self.kept,
            }
            .fetch_add(1, Ordering::Relaxed);
            Ok(Box::new(Pattern {
                at: 0,
                decoded: Arc::clone(&self.decoded),
                fails_at: self.fails_at.load(Ordering::Relaxed),
                step: 100_000,
            }))
        })?;
        let left = usize::try_from(SIZE.saturating_sub(offset)).unwrap();
        assert_eq!(count, length.min(left));
        for (at, found) in (offset..).zip(&buffer[..count]) {
            assert_eq!(*found, byte(at), "byte {at} of file {file}");
        }
        Ok(count)
    }

    fn scan(&self, file: u32, length: usize) -> Result<(), RepositoryError> {
        let mut at = 0;
        while at < SIZE {
            at += self.read(file, at, length)? as u64;
        }
        Ok(())
    }

    /// How often a file was begun: to be read forwards, and to be kept.
    fn begun(&self) -> (usize, usize) {
        let count = |of: &AtomicUsize| of.load(Ordering::Relaxed);
        (count(&self.passing), count(&self.kept))
    }

    fn written(&self) -> u64 {
        DISK_BYTES - self.store.space.bytes()
    }

    /// The pieces that were made, once nobody has one any more.
    fn pieces_when_forgotten(&self) -> usize {
        self.store.forget(1);
        self.store.passes.pieces.free_count()
    }
}

#[test]
fn a_file_that_is_read_forwards_is_decoded_once_in_little_memory_and_not_written() {
    for length in [8192, 100_003, 1 << 20, 5 << 20] {
        let stage = stage(1);
        stage.scan(1, length).unwrap();
        assert_eq!(stage.read(1, SIZE, 1).unwrap(), 0);
        assert_eq!((stage.begun(), stage.written()), ((1, 0), 0), "{length}");
        // What stays, what is read, and what is decoded.
        assert!(stage.pieces_when_forgotten() <= 4, "{length}");
    }
}

#[test]
fn readers_that_take_turns_a_little_out_of_order_share_one_pass() {
    let stage = stage(1);
    let (next, length) = (AtomicU64::new(0), 1 << 17);
    let barrier = Barrier::new(4);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    // Each takes a place, and they begin to read in any order.
                    barrier.wait();
                    let at = next.fetch_add(1, Ordering::Relaxed) * length;
                    if at >= SIZE {
                        break;
                    }
                    stage.read(1, at, 1 << 17).unwrap();
                }
            });
        }
    });
    // Those that begin it at the same moment may each open it; one of them decodes it.
    let decoded = stage.decoded.load(Ordering::Relaxed);
    assert_eq!((decoded, stage.begun().1, stage.written()), (SIZE, 0, 0));
}

#[test]
fn a_read_that_finds_a_pass_begun_since_it_looked_goes_along_as_far_as_the_pass_reaches() {
    let stage = stage(1);
    let begin = |offset| {
        let read = DecodedRead {
            owner: 1,
            file: 1,
            path: "f",
            size_bytes: SIZE,
            offset,
        };
        let source = Pattern {
            at: 0,
            decoded: Arc::default(),
            fails_at: u64::MAX,
            step: 100_000,
        };
        let begun = stage.store.passes.begin(read, || Ok(Box::new(source)));
        begun.unwrap()
    };
    let first = begin(0).unwrap();
    for (offset, goes_along) in [(0, true), (1 << 17, true), (REACH_BYTES + 1, false)] {
        let found = begin(offset);
        assert_eq!(
            found.is_some_and(|found| Arc::ptr_eq(&found, &first)),
            goes_along,
            "{offset}"
        );
    }
}

#[test]
fn pieces_read_backwards_within_the_reach_are_still_there() {
    let stage = stage(1);
    let length = 1 << 18;
    for group in 0..SIZE / REACH_BYTES {
        for piece in (0..REACH_BYTES / length).rev() {
            let at = group * REACH_BYTES + piece * length;
            stage.read(1, at, 1 << 18).unwrap();
        }
    }
    assert_eq!((stage.begun(), stage.written()), ((1, 0), 0));
    assert!(stage.pieces_when_forgotten() <= window::PIECE_COUNT_MAX + 1);
}

#[test]
fn readers_at_different_places_do_not_take_the_pass_from_each_other() {
    let stage = stage(1);
    for step in 0..64 {
        let at = step * (SIZE / 2 / 64);
        stage.read(1, at, 8192).unwrap();
        stage.read(1, SIZE / 2 + at, 8192).unwrap();
        stage.read(1, SIZE - 8192 - at, 8192).unwrap();
    }
    assert_eq!(stage.begun(), (1, 1));
    assert!(stage.written() <= SIZE);
}

#[test]
fn a_file_that_is_read_again_and_again_is_kept() {
    let stage = stage(2);
    for _ in 0..usize::from(BEGUN_COUNT_MAX) {
        stage.scan(1, 1 << 20).unwrap();
    }
    assert_eq!((stage.begun(), stage.written()), ((2, 0), 0));
    for _ in 0..3 {
        stage.scan(1, 1 << 20).unwrap();
        stage.read(1, SIZE / 3, 8192).unwrap();
    }
    assert_eq!((stage.begun(), stage.written()), ((2, 1), SIZE));
    stage.store.forget_file(1, 1);
    stage.scan(1, 1 << 20).unwrap();
    assert_eq!((stage.begun(), stage.written()), ((3, 1), 0));
}

#[test]
fn more_files_than_there_is_memory_for_are_kept_and_those_that_ended_make_room() {
    let stage = stage(2);
    for file in [1, 2, 3] {
        stage.read(file, 0, 8192).unwrap();
    }
    assert_eq!(stage.begun(), (2, 1));
    for file in [1, 2] {
        stage.scan(file, 1 << 20).unwrap();
    }
    assert_eq!(stage.begun(), (2, 1));
    for file in [4, 5, 6] {
        stage.read(file, 0, 8192).unwrap();
    }
    assert_eq!(stage.begun(), (4, 2));
    // Nobody goes on with 4 and 5.
    for at in 0..=IDLE_READS {
        let at = SIZE / 2 + at * 1024;
        stage.read(3, at, 1024).unwrap();
    }
    stage.read(7, 0, 8192).unwrap();
    assert_eq!(stage.begun(), (5, 2));
    assert!(stage.pieces_when_forgotten() <= 2 * (window::PIECE_COUNT_MAX + 1));
}

#[test]
fn without_memory_for_it_every_file_is_kept() {
    let stage = stage(0);
    stage.scan(1, 1 << 20).unwrap();
    assert_eq!((stage.begun(), stage.written()), ((0, 1), SIZE));
}

#[test]
fn what_is_before_the_damage_is_read_and_the_damage_is_an_error_each_time() {
    for fails_at in [0, 1, 300_000, 5_000_000, SIZE - 1] {
        let stage = stage(1);
        stage.fails_at.store(fails_at, Ordering::Relaxed);
        let read = stage.read(1, 0, usize::try_from(fails_at).unwrap());
        assert_eq!(read.unwrap() as u64, fails_at);
        for _ in 0..4 {
            let error = stage.read(1, fails_at, 1).unwrap_err();
            assert!(error.is_permanent(), "{error}");
            assert!(stage.scan(1, 1 << 20).is_err());
        }
        assert_eq!(stage.written(), 0);
        stage.fails_at.store(u64::MAX, Ordering::Relaxed);
        stage.scan(1, 1 << 20).unwrap();
    }
}

/// One read of a reader.
#[derive(Debug, Clone)]
enum Move {
    On(usize),
    Skip(u64),
    Back(u64),
    Jump(u64),
}

fn moves() -> impl Strategy<Value = Vec<(usize, Move)>> {
    let one = prop_oneof![
        8 => (1_usize..1 << 20).prop_map(Move::On),
        2 => (1_u64..2 * REACH_BYTES).prop_map(Move::Skip),
        2 => (1_u64..1 << 20).prop_map(Move::Back),
        1 => (0..SIZE).prop_map(Move::Jump),
    ];
    prop::collection::vec((0_usize..3, one), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn whatever_the_order_of_reads_their_bytes_are_those_of_the_file_and_it_is_decoded_seldom(
        moves in moves(),
        damage in prop::option::of(0..SIZE),
    ) {
        let stage = stage(1);
        stage.fails_at.store(damage.unwrap_or(u64::MAX), Ordering::Relaxed);
        let mut places = [0_u64; 3];
        let mut failures = 0;
        for (reader, step) in moves {
            let place = &mut places[reader];
            let length = match step {
                Move::On(length) => length,
                Move::Skip(bytes) => {
                    *place = (*place + bytes).min(SIZE);
                    8192
                }
                Move::Back(bytes) => {
                    *place = place.saturating_sub(bytes);
                    8192
                }
                Move::Jump(to) => {
                    *place = to;
                    8192
                }
            };
            match stage.read(1, *place, length) {
                Ok(count) => *place += count as u64,
                Err(error) => {
                    prop_assert!(damage.is_some() && error.is_permanent());
                    failures += 1;
                }
            }
        }
        let (passing, kept) = stage.begun();
        prop_assert!(passing <= usize::from(BEGUN_COUNT_MAX) && kept <= 1 + failures);
        prop_assert!(stage.written() <= SIZE);
        prop_assert!(stage.pieces_when_forgotten() <= window::PIECE_COUNT_MAX + 1);
    }
}
