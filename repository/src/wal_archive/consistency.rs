//! For fuzzing: whether what is read of an archive's files fits together.

use super::choice::{Begins, Chosen, HeldSegments, choose};
use super::history::{History, parse};
use super::names::{ArchiveNames, parse_segment, segment_name};
use super::shown::{SegmentRun, ShownWal};
use crate::Lsn;

/// The size of segments, and where the backup ends that they belong to: little that it brings along itself.
const SEGMENT_BYTES: u64 = 16 << 20;
const BROUGHT_COUNT: u64 = 3;

/// Takes text for the names of an archive's files, up to a line that is empty, and what follows for the newest history among
/// them. False if what is made of them does not fit together; what they are worth does not matter.
pub fn archive_is_consistent(text: &str) -> bool {
    let (listed, history) = text.split_once("\n\n").unwrap_or((text, ""));
    let mut names = ArchiveNames::default();
    for name in listed.lines() {
        let added = match name.strip_suffix(".partial") {
            Some(name) => names.add_partial(name),
            None => names.add(name),
        };
        if added.is_err() {
            return true;
        }
    }
    for name in names.segments() {
        for segment_bytes in [1 << 20, SEGMENT_BYTES, 1 << 30] {
            let Some((timeline, number)) = parse_segment(name, segment_bytes) else {
                continue;
            };
            if segment_name(timeline, number, segment_bytes) != name {
                return false;
            }
        }
    }
    let newest = names.histories().last();
    let history = newest.and_then(|timeline| {
        let parents = parse(history.as_bytes(), timeline).ok()?;
        Some(History { timeline, parents })
    });
    let histories: Vec<&History> = history.iter().collect();
    let held = HeldSegments::of(&names, SEGMENT_BYTES);
    let mut firsts = held.firsts().take(4);
    firsts.all(|(timeline, first)| {
        let start = first.saturating_mul(SEGMENT_BYTES);
        let begins = Begins {
            timeline,
            start_lsn: Lsn(start),
            stop_lsn: Lsn(start.saturating_add(BROUGHT_COUNT * SEGMENT_BYTES)),
            segment_bytes: SEGMENT_BYTES,
        };
        is_consistent(&choose(&begins, &held, &histories), &held)
    })
}

/// Every segment is held, they go forwards, and a file has the same number whichever way it is counted.
fn is_consistent(chosen: &Chosen, held: &HeldSegments) -> bool {
    let shown = ShownWal {
        segment_bytes: SEGMENT_BYTES,
        runs: chosen.runs.clone(),
        histories: Vec::new(),
        target_timeline: chosen.target_timeline,
        archived_at_s: 0,
        gap: None,
    };
    let is_held = |run: &SegmentRun| {
        let numbers = held.of_timeline(run.timeline);
        let count = numbers.map_or(0, |numbers| numbers.range(run.first..=run.last).count());
        count as u64 == run.count()
    };
    let pairs = chosen.runs.iter().zip(chosen.runs.iter().skip(1));
    let mut pairs = pairs.map(|(run, next)| run.last < next.first);
    chosen.runs.iter().all(is_held)
        && pairs.all(|goes_forwards| goes_forwards)
        && (0..)
            .zip(shown.files())
            .all(|(number, file)| shown.file(number) == Some(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_consistent_whatever_they_hold() {
        for text in [
            "",
            "000000010000000000000001\n000000010000000000000002\n000000010000000000000004",
            "000000010000000000000001\n000000020000000000000001\n00000002.history\n\n1\t0/1500000\tx",
            "000000010000000000000001\nFFFFFFFF.history\n\n1\tFFFFFFFF/FFFFFFFF\tx",
            "000000010000000000000001.partial\n000000010000000000000002\nFFFFFFFFFFFFFFFFFFFFFFFF\nFFFFFFFFFFFFFFFF000000FF",
        ] {
            assert!(archive_is_consistent(text), "{text:?}");
        }
    }
}
