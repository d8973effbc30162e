//! Who reads on and on: tells how far ahead of each reader the backup is to be asked.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::blocks::PIECE_BYTES_MAX;
use crate::cache::Ino;

/// Farthest that is asked ahead of a reader, in bytes.
const WINDOW_BYTES_MAX: u64 = 8 * PIECE_BYTES_MAX;
/// First window of a reader that was seen twice, in bytes.
const WINDOW_BYTES_FIRST: u64 = PIECE_BYTES_MAX;
/// The kernel asks for several pieces at once, and they come in any order: so far from the expected place is still in sequence.
const SLACK_BYTES: u64 = 4 * PIECE_BYTES_MAX;
/// Most files that are watched.
const STREAMS_MAX: usize = 512;

/// The readers, by node.
#[derive(Debug, Default)]
pub(super) struct Streams {
    streams: Mutex<HashMap<Ino, Stream>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Stream {
    // Where the next read in sequence begins.
    next: u64,
    window: u64,
    // Up to where was asked.
    ahead_to: u64,
}

impl Streams {
    /// Notes a read; gives back from where to where to ask ahead, if it is one of a sequence.
    pub(super) fn note(&self, ino: Ino, offset: u64, length: u64) -> Option<(u64, u64)> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if streams.len() >= STREAMS_MAX && !streams.contains_key(&ino) {
            streams.clear();
        }
        let end = offset + length;
        let stream = streams.entry(ino).or_default();
        let in_sequence = offset <= stream.next + SLACK_BYTES
            && end + SLACK_BYTES > stream.next
            && stream.next > 0;
        if !in_sequence || offset == 0 {
            *stream = Stream {
                next: end,
                window: 0,
                ahead_to: end,
            };
            return None;
        }
        if end <= stream.next {
            return None;
        }
        // What is near but leaves a hole is a reader that jumps.
        let is_next = offset <= stream.next;
        stream.next = end;
        stream.window = match is_next {
            true => (stream.window * 2).clamp(WINDOW_BYTES_FIRST, WINDOW_BYTES_MAX),
            false => stream.window / 2,
        };
        // To the end of a piece: the next question begins there.
        let target = (end + stream.window).next_multiple_of(PIECE_BYTES_MAX);
        let from = stream.ahead_to.max(end);
        // In large steps: a question costs more than its bytes.
        let step = (stream.window / 2).min(PIECE_BYTES_MAX);
        if stream.window == 0 || target < from + step {
            return None;
        }
        stream.ahead_to = target;
        Some((from, target))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1024;

    fn asked(reads: &[(u64, u64)]) -> Vec<(u64, u64)> {
        let streams = Streams::default();
        let note = |&(offset, length): &(u64, u64)| streams.note(7, offset, length);
        reads.iter().filter_map(note).collect()
    }

    #[test]
    fn a_reader_in_sequence_is_run_ahead_of_by_a_growing_bounded_window_without_holes() {
        let reads: Vec<_> = (0..200).map(|n| (n * 128 * KIB, 128 * KIB)).collect();
        let asked = asked(&reads);
        assert!(asked.windows(2).all(|pair| pair[0].1 == pair[1].0));
        let (from, to) = (asked[0].0, asked[asked.len() - 1].1);
        assert!(from <= 512 * KIB, "begins at {from}");
        let end = 200 * 128 * KIB;
        assert!(
            to > end && to <= end + WINDOW_BYTES_MAX + PIECE_BYTES_MAX,
            "ends at {to}"
        );
    }

    #[test]
    fn reads_here_and_there_are_not_run_ahead_of() {
        let reads: Vec<_> = (1..200)
            .map(|n| (n * 7919 * 8192 % (1 << 30), 8192))
            .collect();
        assert!(asked(&reads).len() < 10);
    }

    #[test]
    fn requests_of_one_reader_that_overtake_each_other_are_in_sequence() {
        let order = [0, 2, 1, 3, 5, 4, 6, 8, 7, 9];
        let reads = order.map(|n| (n * 1024 * KIB, 1024 * KIB));
        assert!(asked(&reads).last().is_some_and(|(_, to)| *to > 10 << 20));
    }
}
