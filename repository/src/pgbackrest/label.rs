//! Labels of backups: `20261121-124036F`, `20261121-124036F_20261121-124041D`, `…I` (local time of the backup's host).

use crate::backup::BackupKind;

/// What kind of backup a label is of; none if it is no label. What passes is safe as a part of a path.
pub(crate) fn label_kind(label: &str) -> Option<BackupKind> {
    let (full, own) = match label.split_once('_') {
        None => (label, None),
        Some((full, own)) => (full, Some(own)),
    };
    if full.strip_suffix('F').is_none_or(|time| !is_time(time)) {
        return None;
    }
    let Some(own) = own else {
        return Some(BackupKind::Full);
    };
    let (kind, time) = match own.strip_suffix('D') {
        Some(time) => (BackupKind::Differential, time),
        None => (BackupKind::Incremental, own.strip_suffix('I')?),
    };
    is_time(time).then_some(kind)
}

/// Whether a backup may stand on another: one of the same full backup, and older. This rules out cycles.
pub(crate) fn may_stand_on(label: &str, other: &str) -> bool {
    let full = |label: &str| label.split('_').next().map(str::to_owned);
    label_kind(other).is_some() && full(label) == full(other) && other < label
}

fn is_time(text: &str) -> bool {
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    text.split_once('-')
        .is_some_and(|(day, time)| day.len() == 8 && time.len() == 6 && digits(day) && digits(time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_pgbackrest_writes_is_a_label() {
        let table = [
            ("20261121-124036F", Some(BackupKind::Full)),
            (
                "20261121-124036F_20261121-124041D",
                Some(BackupKind::Differential),
            ),
            (
                "20261121-124036F_20261121-124041I",
                Some(BackupKind::Incremental),
            ),
            ("20261121-124036D", None),
            ("20261121-124036F_20261121-124041F", None),
            ("20261121-124036F_", None),
            ("20261121-12403xF", None),
            ("../../../../../F", None),
            ("", None),
            ("latest", None),
        ];
        for (label, wanted) in table {
            assert_eq!(label_kind(label), wanted, "{label}");
        }
    }

    #[test]
    fn a_backup_stands_only_on_older_ones_of_its_set() {
        let full = "20261121-124036F";
        let diff = "20261121-124036F_20261121-124041D";
        assert!(may_stand_on(diff, full));
        assert!(!may_stand_on(full, diff) && !may_stand_on(diff, diff));
        assert!(!may_stand_on(diff, "20261121-124035F"));
    }
}
