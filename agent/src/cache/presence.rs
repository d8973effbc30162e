//! Which granules of a file are in the cache: a bitmap that grows to its highest set bit.

use std::ops::Range;

/// A set of granule numbers. Most files are small, and a backup may have very many: what fits into one word takes no memory of
/// its own.
#[derive(Debug, Clone)]
pub enum Presence {
    /// Granules below 64.
    Few(u64),
    /// Any granules.
    Many(Box<Counted>),
}

/// A bitmap, and how many of its bits are set.
#[derive(Debug, Clone, Default)]
pub struct Counted {
    words: Vec<u64>,
    count: u64,
}

impl Default for Presence {
    fn default() -> Self {
        Self::Few(0)
    }
}

fn place(granule: u64) -> (usize, u64) {
    (
        usize::try_from(granule / 64).unwrap_or(usize::MAX),
        1 << (granule % 64),
    )
}

impl Presence {
    fn words(&self) -> &[u64] {
        match self {
            Self::Few(word) => std::slice::from_ref(word),
            Self::Many(many) => &many.words,
        }
    }

    /// Changes words, of which there are at least `word_count`, and counts again.
    fn change(&mut self, word_count: usize, change: impl FnOnce(&mut [u64])) {
        if let Self::Few(word) = self
            && word_count > 1
        {
            let words = vec![*word];
            *self = Self::Many(Box::new(Counted { words, count: 0 }));
        }
        match self {
            Self::Few(word) => change(std::slice::from_mut(word)),
            Self::Many(many) => {
                if many.words.len() < word_count {
                    many.words.resize(word_count, 0);
                }
                change(&mut many.words);
                many.count = count_of(&many.words);
            }
        }
    }

    /// Whether the granule is here.
    pub fn contains(&self, granule: u64) -> bool {
        let (word, bit) = place(granule);
        self.words().get(word).is_some_and(|w| w & bit != 0)
    }

    /// Whether all granules of the range are here.
    pub fn contains_all(&self, range: Range<u64>) -> bool {
        range.into_iter().all(|granule| self.contains(granule))
    }

    /// How many granules are here.
    pub fn count(&self) -> u64 {
        match self {
            Self::Few(word) => u64::from(word.count_ones()),
            Self::Many(many) => many.count,
        }
    }

    /// Whether none is here.
    pub fn is_empty(&self) -> bool {
        self.count() == 0
    }

    /// Adds a granule; says whether it was new.
    pub fn insert(&mut self, granule: u64) -> bool {
        if self.contains(granule) {
            return false;
        }
        let (word, bit) = place(granule);
        match self {
            Self::Few(first) if word == 0 => *first |= bit,
            // Granules come one by one, and to count all of them each time would take long.
            Self::Many(many) if word < many.words.len() => {
                if let Some(w) = many.words.get_mut(word) {
                    *w |= bit;
                    many.count += 1;
                }
            }
            _ => self.change(word + 1, |words| {
                if let Some(w) = words.get_mut(word) {
                    *w |= bit;
                }
            }),
        }
        true
    }

    /// Adds all granules of a range.
    pub fn insert_range(&mut self, range: Range<u64>) {
        for granule in range {
            self.insert(granule);
        }
    }

    /// Removes all granules of a range.
    pub fn remove_range(&mut self, range: Range<u64>) {
        let end = range.end.min(self.words().len() as u64 * 64);
        if !self.contains_any(range.start..end) {
            return;
        }
        self.change(0, |words| {
            for granule in range.start..end {
                let (word, bit) = place(granule);
                if let Some(w) = words.get_mut(word) {
                    *w &= !bit;
                }
            }
        });
    }

    /// Whether any granule of the range is here.
    pub fn contains_any(&self, range: Range<u64>) -> bool {
        range.into_iter().any(|granule| self.contains(granule))
    }

    /// Adds the granules of another set.
    pub fn insert_all(&mut self, other: &Presence) {
        let more = other.words();
        self.change(more.len(), |words| {
            for (w, o) in words.iter_mut().zip(more) {
                *w |= o;
            }
        });
    }

    /// The granules that are in both.
    #[must_use]
    pub fn common_with(&self, other: &Presence) -> Self {
        let mut common = self.clone();
        let with = other.words();
        common.change(0, |words| {
            for (number, w) in words.iter_mut().enumerate() {
                *w &= with.get(number).copied().unwrap_or(0);
            }
        });
        common
    }

    /// Removes every granule from `first` on.
    pub fn remove_from(&mut self, first: u64) {
        let (word, bit) = place(first);
        if let Self::Many(many) = self {
            many.words.truncate(word + 1);
        }
        self.change(0, |words| {
            if let Some(w) = words.get_mut(word) {
                *w &= bit - 1;
            }
        });
    }

    /// Removes the granules of another set.
    pub fn remove_all(&mut self, other: &Presence) {
        self.change(0, |words| {
            for (w, o) in words.iter_mut().zip(other.words()) {
                *w &= !o;
            }
        });
    }

    /// Removes everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// The set as ascending, disjoint ranges of (first, count).
    pub fn ranges(&self) -> Vec<(u64, u64)> {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for (index, word) in self.words().iter().enumerate() {
            if *word == 0 {
                continue;
            }
            for bit in 0..64 {
                if word & (1 << bit) == 0 {
                    continue;
                }
                let granule = index as u64 * 64 + bit;
                match ranges.last_mut() {
                    Some((first, count)) if *first + *count == granule => *count += 1,
                    _ => ranges.push((granule, 1)),
                }
            }
        }
        ranges
    }
}

fn count_of(words: &[u64]) -> u64 {
    words.iter().map(|w| u64::from(w.count_ones())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_behaves_as_a_set_of_numbers(steps in proptest::collection::vec((0u8..4, 0u64..500), 0..60)) {
            let mut presence = Presence::default();
            let mut model = BTreeSet::new();
            for (what, number) in steps {
                let range = number..number + 9;
                prop_assert_eq!(presence.contains_any(range.clone()), model.range(range).next().is_some());
                match what {
                    3 => { presence.remove_range(number..number + 70); model.retain(|n| !(number..number + 70).contains(n)); }
                    0 => prop_assert_eq!(presence.insert(number), model.insert(number)),
                    1 => { presence.insert_range(number..number + 9); model.extend(number..number + 9); }
                    _ => { presence.remove_from(number); model.retain(|n| *n < number); }
                }
                prop_assert_eq!(presence.count(), model.len() as u64);
            }
            let listed: Vec<u64> = presence.ranges().into_iter().flat_map(|(f, c)| f..f + c).collect();
            prop_assert_eq!(listed, model.into_iter().collect::<Vec<_>>());
        }

        #[test]
        fn sets_are_joined_and_cut_as_sets_of_numbers_are(
            a in proptest::collection::btree_set(0u64..300, 0..40),
            b in proptest::collection::btree_set(0u64..300, 0..40),
        ) {
            let set = |numbers: &BTreeSet<u64>| {
                let mut presence = Presence::default();
                numbers.iter().for_each(|number| { presence.insert(*number); });
                presence
            };
            let listed = |set: &Presence| -> Vec<u64> {
                set.ranges().into_iter().flat_map(|(f, c)| f..f + c).collect()
            };
            let mut joined = set(&a);
            joined.insert_all(&set(&b));
            prop_assert_eq!(listed(&joined), a.union(&b).copied().collect::<Vec<_>>());
            prop_assert_eq!(joined.count(), a.union(&b).count() as u64);
            let common = set(&a).common_with(&set(&b));
            prop_assert_eq!(listed(&common), a.intersection(&b).copied().collect::<Vec<_>>());
            prop_assert_eq!(common.count(), a.intersection(&b).count() as u64);
        }
    }
}
