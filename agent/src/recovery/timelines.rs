//! Keeps a recovery clear of the timelines that the original had: its archive has files of them, and takes no others of those names.
//!
//! A server that ends recovery takes the first number for which it finds no history file. So the published instance is given the
//! histories of the original that was set aside, before its first start; the instance that stays comes after it. One that was
//! published before there was anything to set aside knows none of them: then the instance that stays is given them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::agent::hand::{InstanceOptions, SessionPlace};
use common::problem::{ErrorCode, Problem};

use super::io_failed;
use super::record::Record;
use crate::hand::os_user::Account;
use crate::hand::write_durably;
use crate::postgresql::control_data::ControlData;
use crate::postgresql::host_files::read_limited;

/// Most timelines between the backup's and the original's: beyond, the number in `pg_control` is nonsense.
const TIMELINES_MAX: u32 = 10_000;

/// What a history file says whose own is not known: that there is such a timeline.
const UNKNOWN: &str = "# This timeline was used by an instance that pginstant has set aside.\n";

/// Gives the prepared instance the histories of the original that was set aside; nothing set aside is fine.
pub(crate) fn keep_clear(
    place: &SessionPlace,
    options: &InstanceOptions,
    account: &Account,
) -> Result<(), Problem> {
    let record = Record::load(place)?;
    give(&record, &place.data_directory(), options, account).map(drop)
}

/// Gives a data directory whose server does not run the histories of the original that was set aside; tells the last timeline that
/// is used.
pub(super) fn give(
    record: &Record,
    data: &Path,
    options: &InstanceOptions,
    account: &Account,
) -> Result<u32, Problem> {
    let programs = &options.program_directory;
    let mut aside = record.aside().map(|(_, to)| to);
    let original = aside.find(|to| to.join("pg_wal").exists());
    account.act(|| {
        let ours = timeline(&ControlData::read(programs, data)?)?;
        let Some(original) = original else {
            return Ok(ours);
        };
        // What is no sound data directory has used no timeline that an archive could have.
        let used = ControlData::read(programs, original).and_then(|control| timeline(&control));
        let known = histories(original)?;
        let mut last = ours;
        for (number, text) in missing(ours, used.unwrap_or_default(), known) {
            last = number;
            let path = data.join("pg_wal").join(format!("{number:08X}.history"));
            if !path.exists() {
                write_durably(&path, &text, 0o600)
                    .map_err(|error| io_failed(format!("write {}", path.display()), error))?;
            }
        }
        Ok(last)
    })?
}

/// The timeline that a server of this control file goes on from.
pub(super) fn timeline(control: &ControlData) -> Result<u32, Problem> {
    let number = control.number("Latest checkpoint's TimeLineID");
    number
        .and_then(|number| u32::try_from(number).ok())
        .ok_or_else(|| {
            Problem::new(
                ErrorCode::Internal,
                "pg_controldata names no timeline",
                "report this with the PostgreSQL version",
            )
        })
}

/// The history files of a data directory.
fn histories(data: &Path) -> Result<BTreeMap<u32, PathBuf>, Problem> {
    let directory = data.join("pg_wal");
    let entries = std::fs::read_dir(&directory)
        .map_err(|error| io_failed(format!("read {}", directory.display()), error))?;
    let numbered = entries.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let number = u32::from_str_radix(name.strip_suffix(".history")?, 16).ok()?;
        Some((number, entry.path()))
    });
    Ok(numbered.collect())
}

/// Numbers and texts of history files, without a gap from our own timeline to the last that was used.
fn missing(ours: u32, used: u32, known: BTreeMap<u32, PathBuf>) -> Vec<(u32, String)> {
    let last = known.keys().copied().max().unwrap_or_default().max(used);
    if last.saturating_sub(ours) > TIMELINES_MAX {
        return Vec::new();
    }
    (ours.saturating_add(1)..=last)
        .map(|number| {
            let text = known.get(&number).and_then(|path| read_limited(path).ok());
            (number, text.unwrap_or_else(|| UNKNOWN.to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(ours: u32, used: u32, known: &[u32]) -> Vec<u32> {
        let known = known.iter().map(|number| (*number, PathBuf::new()));
        let missing = missing(ours, used, known.collect());
        missing.into_iter().map(|(number, _)| number).collect()
    }

    #[test]
    fn every_timeline_that_the_original_used_since_the_backup_is_named_without_a_gap() {
        assert_eq!(numbers(1, 3, &[3]), [2, 3]);
        assert_eq!(numbers(1, 1, &[2, 3]), [2, 3]);
        assert_eq!(numbers(3, 3, &[2, 3]), [] as [u32; 0]);
        assert_eq!(numbers(1, 1, &[]), [] as [u32; 0]);
        assert_eq!(numbers(1, u32::MAX, &[]), [] as [u32; 0]);
    }
}
