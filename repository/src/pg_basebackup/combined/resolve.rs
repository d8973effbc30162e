//! Where each block of a file is, of which a chain of backups has increments; as `pg_combinebackup` has it.

use crate::pg_basebackup::increment::{BLOCK_BYTES, Increment};

/// What a chain of backups has of one file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Resolver<'a> {
    /// Its increments, newest first.
    pub(super) increments: &'a [&'a Increment],
    /// How many blocks the full file has that is behind all of them.
    pub(super) full_block_count: u64,
}

/// Where bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spot {
    /// No backup has them: the file was extended over them and nobody has written there yet.
    Zeros,
    /// From this byte on in an increment, by its place in the list; the full file comes behind the last.
    Stored { source: usize, at: u64 },
}

/// Bytes that lie together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) spot: Spot,
    pub(super) bytes: usize,
}

impl Resolver<'_> {
    /// Where the bytes from `offset` on are, as many of `bytes` as lie together.
    pub(super) fn run(&self, offset: u64, bytes: usize) -> Run {
        let block = offset / BLOCK_BYTES;
        let inside = offset % BLOCK_BYTES;
        let first = self.spot(block);
        let mut length = BLOCK_BYTES - inside;
        let mut count = 1;
        while length < bytes as u64 && self.spot(block + count) == first.moved(count) {
            length += BLOCK_BYTES;
            count += 1;
        }
        let spot = match first {
            Spot::Zeros => Spot::Zeros,
            Spot::Stored { source, at } => Spot::Stored {
                source,
                at: at + inside,
            },
        };
        Run {
            spot,
            bytes: usize::try_from(length).map_or(bytes, |length| length.min(bytes)),
        }
    }

    fn spot(&self, block: u64) -> Spot {
        let Ok(number) = u32::try_from(block) else {
            return Spot::Zeros;
        };
        let mut increments = self.increments.iter().enumerate();
        let Some((_, newest)) = increments.next() else {
            return self.in_full(block);
        };
        if let Some(at) = newest.block_at(number) {
            return Spot::Stored { source: 0, at };
        }
        // What is behind a truncation is new, so older backups have something else there.
        if number >= newest.truncation_block_count() {
            return Spot::Zeros;
        }
        let older = increments.find_map(|(source, older)| Some((source, older.block_at(number)?)));
        match older {
            Some((source, at)) => Spot::Stored { source, at },
            None => self.in_full(block),
        }
    }

    fn in_full(&self, block: u64) -> Spot {
        match block < self.full_block_count {
            true => Spot::Stored {
                source: self.increments.len(),
                at: block * BLOCK_BYTES,
            },
            false => Spot::Zeros,
        }
    }
}

impl Spot {
    /// Where bytes are that lie together with these, `count` blocks behind them.
    fn moved(self, count: u64) -> Self {
        match self {
            Self::Zeros => Self::Zeros,
            Self::Stored { source, at } => Self::Stored {
                source,
                at: at + count * BLOCK_BYTES,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg_basebackup::increment::tests::increment;

    fn stored(source: usize, block: u64) -> Spot {
        Spot::Stored {
            source,
            at: block * BLOCK_BYTES,
        }
    }

    #[test]
    fn the_newest_backup_that_has_a_block_gives_it() {
        let (newest, older) = (increment(6, &[1, 7]), increment(9, &[1, 2, 3, 6]));
        let resolver = Resolver {
            increments: &[&newest, &older],
            full_block_count: 5,
        };
        // The first block of an increment is behind one block of head and numbers.
        let wanted = [
            stored(2, 0),
            stored(0, 1),
            stored(1, 2),
            stored(1, 3),
            stored(2, 4),
            Spot::Zeros, // before the truncation, and in no backup
            Spot::Zeros, // behind the truncation, whatever older backups have there
            stored(0, 2),
        ];
        for (block, wanted) in (0..).zip(wanted) {
            assert_eq!(resolver.spot(block), wanted, "block {block}");
        }
    }

    #[test]
    fn what_lies_together_is_read_together() {
        let newest = increment(20, &[3, 4, 5, 7]);
        let resolver = Resolver {
            increments: &[&newest],
            full_block_count: 9,
        };
        let block = usize::try_from(BLOCK_BYTES).unwrap();
        for (offset, bytes, spot, together) in [
            (0, 10 * block, stored(1, 0), 3 * block),
            (100, 50, Spot::Stored { source: 1, at: 100 }, 50),
            (3 * BLOCK_BYTES, 10 * block, stored(0, 1), 3 * block),
            (4 * BLOCK_BYTES, block + 1, stored(0, 2), block + 1),
            (6 * BLOCK_BYTES, 10 * block, stored(1, 6), block),
            (9 * BLOCK_BYTES, 3 * block, Spot::Zeros, 3 * block),
        ] {
            let run = resolver.run(offset, bytes);
            assert_eq!((run.spot, run.bytes), (spot, together), "{offset}");
        }
    }
}
