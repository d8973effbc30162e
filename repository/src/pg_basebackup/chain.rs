//! Which backups an incremental one stands on: `backup_label` says where its parent began, and the parent has to begin there.

use super::backup_label::BackupLabel;
use crate::{Lsn, RepositoryError};

/// Most backups in a chain, each with open files of its own.
const CHAIN_COUNT_MAX: usize = 250;

/// What is known of a backup before it is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    /// Its label in the repository.
    pub(crate) label: String,
    /// What its `backup_label` says.
    pub(crate) begins: BackupLabel,
    /// Its cluster, as `pg_control` says.
    pub(crate) system_identifier: u64,
}

/// The backups that `newest` stands on, from its parent to the full one, as places in `others`.
pub(crate) fn find_chain(newest: &Known, others: &[Known]) -> Result<Vec<usize>, RepositoryError> {
    let mut chain = Vec::new();
    let mut child = newest;
    while let Some((from_lsn, timeline)) = child.begins.incremental_from {
        // So no chain comes back to where it was.
        if from_lsn >= child.begins.start_lsn {
            let reason = format!(
                "of backup {} says that its parent began at {from_lsn}, and it began itself at {}",
                child.label, child.begins.start_lsn
            );
            return Err(RepositoryError::corrupt("backup_label", reason));
        }
        if chain.len() == CHAIN_COUNT_MAX {
            return Err(RepositoryError::unsupported(
                "backup_label",
                format!("is that of a backup that stands on more than {CHAIN_COUNT_MAX} others"),
                "take a full backup more often",
            ));
        }
        let parent = find_parent(child, from_lsn, timeline, others)?;
        chain.push(parent);
        match others.get(parent) {
            Some(parent) => child = parent,
            None => break,
        }
    }
    Ok(chain)
}

fn find_parent(
    child: &Known,
    from_lsn: Lsn,
    timeline: u32,
    others: &[Known],
) -> Result<usize, RepositoryError> {
    let begin_there = |(_, other): &(usize, &Known)| other.begins.start_lsn == from_lsn;
    let begin_there: Vec<_> = others.iter().enumerate().filter(begin_there).collect();
    let fits = |(_, other): &&(usize, &Known)| {
        other.begins.timeline == timeline && other.system_identifier == child.system_identifier
    };
    // Copies of one backup are as good as each other; a full one makes the chain shorter.
    let fitting = begin_there.iter().filter(fits);
    let fitting =
        fitting.min_by_key(|(_, other)| (other.begins.incremental_from.is_some(), &other.label));
    if let Some((place, _)) = fitting {
        return Ok(*place);
    }
    let wanted = format!(
        "of backup {} says that its parent began at {from_lsn} on timeline {timeline}",
        child.label
    );
    let reason = match begin_there.first() {
        Some((_, other)) if other.system_identifier != child.system_identifier => format!(
            "{wanted}, and backup {}, which began there, is of cluster {} and not of {}",
            other.label, other.system_identifier, child.system_identifier
        ),
        Some((_, other)) => format!(
            "{wanted}, and backup {}, which began there, did so on timeline {}",
            other.label, other.begins.timeline
        ),
        None => format!("{wanted}, and no backup beside it did"),
    };
    Err(RepositoryError::unsupported(
        "backup_label",
        reason,
        "put the backups that it stands on beside it, each in a directory of its own, or use another backup",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(label: &str, start: u64, from: Option<u64>) -> Known {
        Known {
            label: label.to_owned(),
            begins: BackupLabel {
                start_lsn: Lsn(start),
                start_wal_file: String::new(),
                timeline: 1,
                started_at: None,
                incremental_from: from.map(|lsn| (Lsn(lsn), 1)),
            },
            system_identifier: 7,
        }
    }

    #[test]
    fn a_chain_leads_from_parent_to_parent_to_a_full_backup() {
        let newest = known("c", 30, Some(20));
        let full = known("a", 10, None);
        let mut foreign = known("0", 10, None);
        foreign.system_identifier = 8;
        let others = [
            foreign,
            known("x", 40, Some(30)),
            full.clone(),
            known("b", 20, Some(10)),
        ];
        assert_eq!(find_chain(&newest, &others).unwrap(), [3, 2]);
        assert!(find_chain(&full, &others).unwrap().is_empty());
        // Of two that begin at the same place the full one; of copies the first by name.
        let others = [
            known("b2", 20, Some(10)),
            known("b3", 20, None),
            known("b1", 20, None),
        ];
        assert_eq!(find_chain(&newest, &others).unwrap(), [2]);
    }

    #[test]
    fn a_chain_that_leads_nowhere_is_refused_in_one_sentence() {
        let parent = known("b", 20, Some(10));
        let other_cluster = Known {
            system_identifier: 8,
            ..known("b", 20, None)
        };
        let mut other_timeline = known("b", 20, None);
        other_timeline.begins.timeline = 2;
        for (newest, others, wanted) in [
            (known("c", 30, Some(20)), vec![], "no backup beside it did"),
            (
                known("c", 30, Some(20)),
                vec![parent.clone()],
                "of backup b says",
            ),
            (
                known("c", 30, Some(20)),
                vec![other_cluster],
                "is of cluster 8 and not of 7",
            ),
            (
                known("c", 30, Some(20)),
                vec![other_timeline],
                "did so on timeline 2",
            ),
            (
                known("c", 30, Some(30)),
                vec![parent.clone()],
                "began itself at",
            ),
            (
                known("c", 30, Some(20)),
                vec![known("b", 20, Some(25))],
                "began itself at",
            ),
        ] {
            let error = find_chain(&newest, &others).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(wanted) && error.is_permanent(), "{text}");
            assert_eq!(error.file(), "backup_label");
        }
        let long: Vec<_> = (1..=300)
            .map(|n| known(&n.to_string(), n, (n > 1).then(|| n - 1)))
            .collect();
        let error = find_chain(&long[299], &long[..299]).unwrap_err();
        assert!(error.to_string().contains("more than 250"), "{error}");
    }
}
