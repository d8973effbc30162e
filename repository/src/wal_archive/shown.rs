//! What a mount shows of an archive, fixed at its first look: enough to make the same files again, whatever became of the archive.

use serde::{Deserialize, Serialize};

use super::names::{history_name, segment_name};
use crate::Lsn;

/// What is shown of an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownWal {
    /// Size of each segment.
    pub segment_bytes: u64,
    /// The segments, in the order of recovery.
    pub runs: Vec<SegmentRun>,
    /// Histories of timelines, by timeline: recovery looks into them, and takes for itself a timeline that is not among them.
    pub histories: Vec<ShownHistory>,
    /// The timeline of the last segment.
    pub target_timeline: u32,
    /// When the last segment was archived: its file's time, in seconds since the epoch.
    pub archived_at_s: i64,
    /// The hole behind the last segment, if the archive goes on after one.
    pub gap: Option<WalGap>,
}

/// Segments of one timeline without a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentRun {
    /// The timeline.
    pub timeline: u32,
    /// Number of the first: its position over the size of segments.
    pub first: u64,
    /// Number of the last.
    pub last: u64,
}

/// The history of a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownHistory {
    /// The timeline.
    pub timeline: u32,
    /// Size of the file.
    pub size_bytes: u64,
}

/// Segments that are missing in an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalGap {
    /// Name of the first that is missing.
    pub first_missing: String,
    /// Name of the next that is there.
    pub next: String,
}

impl SegmentRun {
    /// How many segments it has.
    pub fn count(&self) -> u64 {
        (self.last + 1).saturating_sub(self.first)
    }
}

impl ShownWal {
    /// Name and size of every file, in an order that stays.
    pub fn files(&self) -> impl Iterator<Item = (String, u64)> {
        let segments = self.runs.iter().flat_map(move |run| {
            (run.first..=run.last)
                .map(move |number| segment_name(run.timeline, number, self.segment_bytes))
        });
        let histories = self.histories.iter();
        segments
            .map(|name| (name, self.segment_bytes))
            .chain(histories.map(|history| (history_name(history.timeline), history.size_bytes)))
    }

    /// Name and size of the file of this number, in the order of [`ShownWal::files`].
    pub(super) fn file(&self, number: u32) -> Option<(String, u64)> {
        let mut left = u64::from(number);
        for run in &self.runs {
            if left < run.count() {
                let name = segment_name(run.timeline, run.first + left, self.segment_bytes);
                return Some((name, self.segment_bytes));
            }
            left -= run.count();
        }
        let history = self.histories.get(usize::try_from(left).ok()?)?;
        Some((history_name(history.timeline), history.size_bytes))
    }

    /// How many segments there are.
    pub fn segment_count(&self) -> u64 {
        self.runs.iter().map(SegmentRun::count).sum()
    }

    /// The end of the last segment.
    pub fn end_lsn(&self) -> Option<Lsn> {
        let last = self.runs.last()?;
        Some(Lsn((last.last + 1).checked_mul(self.segment_bytes)?))
    }

    /// Name of the last segment.
    pub fn last_segment(&self) -> Option<String> {
        let run = self.runs.last()?;
        Some(segment_name(run.timeline, run.last, self.segment_bytes))
    }

    /// Whether recovery can be told the timeline by its number: PostgreSQL wants the history of every one but the first.
    pub fn has_history_of_target(&self) -> bool {
        let mut histories = self.histories.iter();
        self.target_timeline == 1
            || histories.any(|history| history.timeline == self.target_timeline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_the_same_numbers_whichever_way_they_are_counted() {
        let run = |timeline, first, last| SegmentRun {
            timeline,
            first,
            last,
        };
        let shown = ShownWal {
            segment_bytes: 16 << 20,
            runs: vec![run(1, 2, 4), run(2, 5, 5)],
            histories: vec![ShownHistory {
                timeline: 2,
                size_bytes: 41,
            }],
            target_timeline: 2,
            archived_at_s: 0,
            gap: None,
        };
        let all: Vec<_> = shown.files().collect();
        assert_eq!(all.len(), 5);
        assert_eq!(all[3], ("000000020000000000000005".to_owned(), 16 << 20));
        assert_eq!(all[4], ("00000002.history".to_owned(), 41));
        for (number, file) in (0..).zip(&all) {
            assert_eq!(shown.file(number).as_ref(), Some(file));
        }
        assert_eq!(shown.file(5), None);
        assert_eq!(shown.end_lsn(), Some(Lsn(6 * (16 << 20))));
        assert!(shown.has_history_of_target());
    }
}
