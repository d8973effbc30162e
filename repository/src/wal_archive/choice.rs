//! Decides which segments of an archive belong to the future of a backup. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::history::History;
use super::names::{ArchiveNames, parse_segment, segment_name};
use super::shown::{SegmentRun, WalGap};
use crate::Lsn;

/// Where a backup was begun and finished.
#[derive(Debug, Clone, Copy)]
pub(super) struct Begins {
    pub(super) timeline: u32,
    pub(super) start_lsn: Lsn,
    pub(super) stop_lsn: Lsn,
    pub(super) segment_bytes: u64,
}

/// What was decided.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chosen {
    pub(super) runs: Vec<SegmentRun>,
    /// The timeline of the last segment.
    pub(super) target_timeline: u32,
    pub(super) gap: Option<WalGap>,
}

/// The segments that an archive has, by timeline and number.
#[derive(Debug, Clone, Default)]
pub(super) struct HeldSegments {
    /// All of them.
    all: BTreeMap<u32, BTreeSet<u64>>,
    /// Those of which only a part is there.
    partial: BTreeSet<(u32, u64)>,
}

impl HeldSegments {
    /// The segments among an archive's names.
    pub(super) fn of(names: &ArchiveNames, segment_bytes: u64) -> Self {
        let mut held = Self::default();
        for name in names.segments() {
            if let Some((timeline, number)) = parse_segment(name, segment_bytes) {
                held.add(timeline, number);
                if names.is_partial(name) {
                    held.partial.insert((timeline, number));
                }
            }
        }
        held
    }

    fn add(&mut self, timeline: u32, number: u64) {
        self.all.entry(timeline).or_default().insert(number);
    }

    /// The numbers of one timeline's.
    pub(super) fn of_timeline(&self, timeline: u32) -> Option<&BTreeSet<u64>> {
        self.all.get(&timeline)
    }

    /// The timelines, each with its first segment.
    pub(super) fn firsts(&self) -> impl Iterator<Item = (u32, u64)> {
        let firsts = self.all.iter();
        firsts.filter_map(|(timeline, numbers)| Some((*timeline, *numbers.first()?)))
    }
}

/// Chooses: from the backup's start along the newest timeline that comes from it, up to the first segment that is missing or of
/// which only a part is there: recovery ends in it.
///
/// A segment in which a timeline was left is taken from its successor, which has all of it up to there; the old one's may go on
/// with what never was on the new one. What recovery needs up to the backup's end the backup brings along, if need be.
pub(super) fn choose(begins: &Begins, held: &HeldSegments, histories: &[&History]) -> Chosen {
    let size = begins.segment_bytes;
    let path = newest_path(begins, histories);
    let timeline_at = |number: u64| {
        let part = path.iter().rev().find(|(_, from)| *from <= number);
        part.map_or(begins.timeline, |(timeline, _)| *timeline)
    };
    let has = |timeline: u32, number: u64| {
        held.of_timeline(timeline)
            .is_some_and(|numbers| numbers.contains(&number))
    };
    let last_of_backup = begins.stop_lsn.0.saturating_sub(1) / size;
    let mut chosen = Chosen {
        runs: Vec::new(),
        target_timeline: begins.timeline,
        gap: None,
    };
    let mut number = begins.start_lsn.0 / size;
    // The one that is missing, wholly or partly.
    let lacking = loop {
        let timeline = timeline_at(number);
        let is_brought = number <= last_of_backup && timeline == begins.timeline;
        let is_partial = held.partial.contains(&(timeline, number));
        // Recovery takes from the archive what is there rather than the whole one that the backup brings.
        if has(timeline, number) && !(is_partial && is_brought) {
            extend(&mut chosen.runs, timeline, number);
        } else if !is_brought {
            break number;
        }
        chosen.target_timeline = timeline;
        number += 1;
        if is_partial && !is_brought {
            break number - 1;
        }
    };
    let later = path.iter().filter_map(|(timeline, _)| {
        let numbers = held.of_timeline(*timeline)?.range(number..);
        let mut fitting = numbers.filter(|next| timeline_at(**next) == *timeline);
        fitting.next().map(|next| (*next, *timeline))
    });
    chosen.gap = later.min().map(|(next, timeline)| WalGap {
        first_missing: segment_name(timeline_at(lacking), lacking, size),
        next: segment_name(timeline, next, size),
    });
    chosen
}

/// The timelines from the backup's on, each with the first segment that is taken from it, to the newest one that comes from it. One
/// that was left before the backup's end leads elsewhere.
fn newest_path(begins: &Begins, histories: &[&History]) -> Vec<(u32, u64)> {
    let own = (begins.timeline, 0);
    let comes_from_it = |history: &&&History| {
        let mut parents = history.parents.iter();
        parents
            .any(|(timeline, left_at)| *timeline == begins.timeline && *left_at >= begins.stop_lsn)
    };
    let newest = histories
        .iter()
        .filter(comes_from_it)
        .max_by_key(|history| history.timeline);
    let Some(newest) = newest else {
        return vec![own];
    };
    let mut path = vec![own];
    let since = newest
        .parents
        .iter()
        .skip_while(|(timeline, _)| *timeline != begins.timeline);
    let since: Vec<&(u32, Lsn)> = since.collect();
    for (place, (_, left_at)) in since.iter().enumerate() {
        let next = since
            .get(place + 1)
            .map_or(newest.timeline, |(timeline, _)| *timeline);
        path.push((next, left_at.0 / begins.segment_bytes));
    }
    path
}

fn extend(runs: &mut Vec<SegmentRun>, timeline: u32, number: u64) {
    match runs.last_mut() {
        Some(run) if run.timeline == timeline && run.last + 1 == number => run.last = number,
        _ => runs.push(SegmentRun {
            timeline,
            first: number,
            last: number,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 16 << 20;

    fn at(segment: u64, offset: u64) -> Lsn {
        Lsn(segment * SIZE + offset)
    }

    fn history(timeline: u32, parents: &[(u32, Lsn)]) -> History {
        History {
            timeline,
            parents: parents.to_vec(),
        }
    }

    /// A backup on timeline 1 from segment 2 to segment 3.
    fn check(
        held: &[(u32, std::ops::RangeInclusive<u64>)],
        histories: &[History],
        runs: &[(u32, u64, u64)],
        target: u32,
        gap: Option<(&str, &str)>,
    ) {
        let held = all_of(held);
        check_held(&held, histories, runs, target, gap);
    }

    fn all_of(ranges: &[(u32, std::ops::RangeInclusive<u64>)]) -> HeldSegments {
        let mut held = HeldSegments::default();
        for (timeline, numbers) in ranges {
            numbers
                .clone()
                .for_each(|number| held.add(*timeline, number));
        }
        held
    }

    fn check_held(
        held: &HeldSegments,
        histories: &[History],
        runs: &[(u32, u64, u64)],
        target: u32,
        gap: Option<(&str, &str)>,
    ) {
        let begins = Begins {
            timeline: 1,
            start_lsn: at(2, 40),
            stop_lsn: at(3, 100),
            segment_bytes: SIZE,
        };
        let histories: Vec<&History> = histories.iter().collect();
        let chosen = choose(&begins, held, &histories);
        let runs: Vec<SegmentRun> = runs
            .iter()
            .map(|(timeline, first, last)| SegmentRun {
                timeline: *timeline,
                first: *first,
                last: *last,
            })
            .collect();
        assert_eq!(chosen.runs, runs);
        assert_eq!(chosen.target_timeline, target);
        let found = chosen.gap.as_ref();
        let found = found.map(|gap| (gap.first_missing.as_str(), gap.next.as_str()));
        assert_eq!(found, gap);
    }

    #[test]
    fn the_run_goes_from_the_backups_start_to_the_end_of_the_archive() {
        check(&[(1, 1..=9)], &[], &[(1, 2, 9)], 1, None);
        check(&[(1, 1..=3)], &[], &[(1, 2, 3)], 1, None);
    }

    #[test]
    fn what_the_backup_brings_along_may_be_missing_in_the_archive() {
        check(&[(1, 4..=6)], &[], &[(1, 4, 6)], 1, None);
        check(&[], &[], &[], 1, None);
    }

    #[test]
    fn the_run_ends_at_the_first_gap_and_the_gap_is_told() {
        let gap = Some(("000000010000000000000006", "000000010000000000000008"));
        check(&[(1, 2..=5), (1, 8..=9)], &[], &[(1, 2, 5)], 1, gap);
    }

    #[test]
    fn a_partial_segment_with_others_behind_it_ends_the_run_and_is_told_as_a_gap() {
        let mut held = all_of(&[(1, 2..=8)]);
        held.partial.insert((1, 6));
        let gap = Some(("000000010000000000000006", "000000010000000000000007"));
        check_held(&held, &[], &[(1, 2, 6)], 1, gap);
        // The last one is being received, and what the backup brings along is whole.
        held.partial = [(1, 3), (1, 8)].into();
        check_held(&held, &[], &[(1, 2, 2), (1, 4, 8)], 1, None);
    }

    #[test]
    fn a_partial_segment_of_a_timeline_that_was_left_in_it_is_no_gap() {
        let mut held = all_of(&[(1, 2..=5), (2, 5..=7)]);
        held.partial.insert((1, 5));
        let second = history(2, &[(1, at(5, 7))]);
        check_held(&held, &[second], &[(1, 2, 4), (2, 5, 7)], 2, None);
    }

    #[test]
    fn the_newest_timeline_that_comes_from_the_backup_is_followed() {
        let second = history(2, &[(1, at(5, 7))]);
        let third = history(3, &[(1, at(5, 7)), (2, at(7, 0))]);
        let held = [(1, 2..=6), (2, 5..=9), (3, 7..=8)];
        check(
            &held,
            std::slice::from_ref(&second),
            &[(1, 2, 4), (2, 5, 9)],
            2,
            None,
        );
        check(
            &held,
            &[second, third],
            &[(1, 2, 4), (2, 5, 6), (3, 7, 8)],
            3,
            None,
        );
    }

    #[test]
    fn a_timeline_that_was_left_before_the_backups_end_is_not_followed() {
        let held = [(1, 2..=6), (2, 3..=9)];
        check(
            &held,
            &[history(2, &[(1, at(3, 50))])],
            &[(1, 2, 6)],
            1,
            None,
        );
        check(
            &held,
            &[history(3, &[(2, at(9, 0))])],
            &[(1, 2, 6)],
            1,
            None,
        );
    }

    #[test]
    fn a_timeline_may_begin_in_the_segment_in_which_the_backup_ends() {
        let second = history(2, &[(1, at(3, 200))]);
        let held = [(1, 2..=3), (2, 3..=5)];
        check(
            &held,
            std::slice::from_ref(&second),
            &[(1, 2, 2), (2, 3, 5)],
            2,
            None,
        );
    }

    #[test]
    fn a_new_timeline_of_which_nothing_is_archived_yet_ends_the_old_one_where_it_was_left() {
        let second = history(2, &[(1, at(5, 7))]);
        check(
            &[(1, 2..=6)],
            std::slice::from_ref(&second),
            &[(1, 2, 4)],
            1,
            None,
        );
        let gap = Some(("000000020000000000000005", "000000020000000000000006"));
        check(&[(1, 2..=6), (2, 6..=7)], &[second], &[(1, 2, 4)], 1, gap);
    }
}
