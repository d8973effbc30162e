use super::*;
use std::sync::atomic::AtomicUsize;

/// `size` bytes, each its offset modulo 251; fails at `fails_at`.
struct Pattern {
    at: u64,
    size: u64,
    fails_at: u64,
}

impl ByteSource for Pattern {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, RepositoryError> {
        let left = usize::try_from(self.size - self.at).unwrap();
        let count = buffer.len().min(left).min(1 << 16);
        if self.at + count as u64 > self.fails_at {
            return Err(RepositoryError::corrupt("f", "is damaged"));
        }
        for byte in &mut buffer[..count] {
            *byte = (self.at % 251) as u8;
            self.at += 1;
        }
        Ok(count)
    }
}

struct Stage {
    store: DecodedStore,
    directory: tempfile::TempDir,
    opened: AtomicUsize,
    fails_at: AtomicU64,
}

const SIZE: u64 = 1 << 20;

fn stage(disk_bytes_max: u64) -> Stage {
    let directory = tempfile::tempdir().unwrap();
    let store = DecodedStore::new(DecodedLimits {
        directory: directory.path().to_owned(),
        disk_bytes_max,
        memory_bytes_max: 1 << 20,
    });
    Stage {
        store,
        directory,
        opened: AtomicUsize::new(0),
        fails_at: AtomicU64::new(u64::MAX),
    }
}

impl Stage {
    fn read(&self, file: u32, offset: u64, length: usize) -> Result<Vec<u8>, RepositoryError> {
        let mut buffer = vec![0; length];
        let read = DecodedRead {
            owner: 1,
            file,
            path: "f",
            size_bytes: SIZE,
            offset,
        };
        let count = self.store.read_at(read, &mut buffer, &|_| {
            self.opened.fetch_add(1, Ordering::Relaxed);
            Ok(Box::new(Pattern {
                at: 0,
                size: SIZE,
                fails_at: self.fails_at.load(Ordering::Relaxed),
            }))
        })?;
        buffer.truncate(count);
        for (at, byte) in (offset..).zip(&buffer) {
            assert_eq!(u64::from(*byte), at % 251, "byte {at} of file {file}");
        }
        Ok(buffer)
    }

    fn opened(&self) -> usize {
        self.opened.load(Ordering::Relaxed)
    }

    fn left(&self) -> u64 {
        self.store.space.bytes()
    }
}

#[test]
fn a_file_is_decoded_once_and_only_as_far_as_it_is_read() {
    let stage = stage(1 << 30);
    assert_eq!(stage.read(1, 10, 100).unwrap().len(), 100);
    let after_first = (1 << 30) - stage.left();
    assert!((110..=pieces::PIECE_BYTES as u64).contains(&after_first));
    assert_eq!(stage.read(1, SIZE - 5, 100).unwrap().len(), 5);
    assert_eq!(stage.read(1, SIZE, 100).unwrap().len(), 0);
    assert_eq!(stage.read(1, 500_000, 8192).unwrap().len(), 8192);
    assert_eq!((stage.opened(), stage.left()), (1, (1 << 30) - SIZE));
    let found = std::fs::read_dir(stage.directory.path()).unwrap();
    assert_eq!(found.count(), 0, "decoded files have no name");
    stage.store.forget(1);
    assert_eq!(stage.left(), 1 << 30);
}

#[test]
fn many_readers_at_once_read_the_same_pass() {
    let stage = stage(1 << 30);
    std::thread::scope(|scope| {
        for reader in 0..8_u64 {
            let stage = &stage;
            scope.spawn(move || {
                for step in 0..200 {
                    let offset = (reader * 7_919 + step * 104_729) % SIZE;
                    stage.read(1, offset, 8192).unwrap();
                }
            });
        }
    });
    assert!(stage.left() == (1 << 30) - SIZE);
}

#[test]
fn the_file_not_read_for_the_longest_time_makes_room() {
    let stage = stage(3 * SIZE);
    for file in [1, 2, 3, 1, 4, 1, 3, 4] {
        stage.read(file, SIZE - 10, 10).unwrap();
    }
    assert_eq!(stage.opened(), 4);
    stage.read(2, SIZE - 10, 10).unwrap();
    assert_eq!((stage.opened(), stage.left()), (5, 0));
}

#[test]
fn a_file_larger_than_the_place_is_refused() {
    let error = stage(SIZE - 1).read(1, 0, 10).unwrap_err();
    assert!(error.is_permanent() && error.remedy().contains("more bytes"));
}

#[test]
fn a_decoder_that_fails_fails_the_reads_that_need_it_and_is_begun_anew() {
    let stage = stage(1 << 30);
    stage.fails_at.store(600_000, Ordering::Relaxed);
    stage.read(1, 0, 8192).unwrap();
    assert!(stage.read(1, 700_000, 8192).is_err());
    assert_eq!(stage.left(), 1 << 30);
    assert!(stage.read(1, 700_000, 8192).is_err());
    stage.fails_at.store(u64::MAX, Ordering::Relaxed);
    stage.read(1, 700_000, 8192).unwrap();
    assert_eq!(stage.opened(), 3);
}
