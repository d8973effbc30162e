//! The backups of one repository, among which the parents of an incremental one are looked for.

use std::fmt;
use std::sync::OnceLock;

use super::backup_label::{BackupLabel, SMALL_FILE_BYTES_MAX, parse_backup_label};
use super::chain::{Known, find_chain};
use super::control::{CONTROL, CONTROL_BYTES, read_control};
use super::last_chain::LastChain;
use super::opened::{Content, Stored, began_in_archive, known_of_archive};
use super::place::Place;
use crate::{Lsn, OpenOptions, RepositoryError};

/// Lists the places of a repository's backups.
pub(crate) type ListPlaces<'a> = dyn Fn() -> Result<Vec<Place>, RepositoryError> + 'a;

/// The backups of one repository; what is known of them is found out when somebody asks, once.
pub(crate) struct Siblings<'a> {
    list: Box<ListPlaces<'a>>,
    options: &'a OpenOptions,
    plain: OnceLock<Vec<Sibling>>,
    /// Apart, because to look into archives takes long.
    archived: OnceLock<Vec<Sibling>>,
    opened_last: LastChain<Stored>,
}

#[derive(Debug, Clone)]
struct Sibling {
    place: Place,
    known: Known,
}

impl fmt::Debug for Siblings<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.plain.get().map(Vec::len);
        write!(f, "Siblings({count:?} plain)")
    }
}

impl<'a> Siblings<'a> {
    pub(crate) fn new(list: Box<ListPlaces<'a>>, options: &'a OpenOptions) -> Self {
        Self {
            list,
            options,
            plain: OnceLock::new(),
            archived: OnceLock::new(),
            opened_last: LastChain::new(),
        }
    }

    /// What was opened last.
    pub(crate) fn opened_last(&self) -> &LastChain<Stored> {
        &self.opened_last
    }

    /// The places of the backups that one stands on, from its parent to the full one.
    pub(crate) fn chain_of(&self, newest: &Known) -> Result<Vec<Place>, RepositoryError> {
        let plain = self.look(&self.plain, |place| !place.is_tar())?;
        let among_plain = pick(newest, plain);
        let archived = match among_plain {
            Err(_) => self.look(&self.archived, |place| place.is_tar())?,
            Ok(_) => &[],
        };
        if archived.is_empty() {
            return among_plain;
        }
        let all: Vec<_> = plain.iter().chain(archived).cloned().collect();
        pick(newest, &all)
    }

    fn look<'s>(
        &'s self,
        seen: &'s OnceLock<Vec<Sibling>>,
        is_wanted: impl Fn(&Place) -> bool,
    ) -> Result<&'s [Sibling], RepositoryError> {
        if let Some(seen) = seen.get() {
            return Ok(seen);
        }
        let places = (self.list)()?.into_iter().filter(is_wanted);
        // What cannot be read is nobody's parent; opening it says why.
        let siblings = places.filter_map(|place| {
            let known = known(&place, self.options)?;
            Some(Sibling { place, known })
        });
        let siblings = siblings.collect();
        Ok(seen.get_or_init(|| siblings))
    }
}

fn pick(newest: &Known, siblings: &[Sibling]) -> Result<Vec<Place>, RepositoryError> {
    let known: Vec<_> = siblings
        .iter()
        .map(|sibling| sibling.known.clone())
        .collect();
    let chain = find_chain(newest, &known)?;
    let places = chain.iter().filter_map(|place| siblings.get(*place));
    Ok(places.map(|sibling| sibling.place.clone()).collect())
}

fn known(place: &Place, options: &OpenOptions) -> Option<Known> {
    let (begins, system_identifier) = match place.is_tar() {
        false => {
            let file = place.file(CONTROL).ok()?;
            let mut beginning = [0; CONTROL_BYTES];
            file.read_full_at(0, &mut beginning).ok()?;
            let control = read_control(&beginning).ok()?;
            (read_plain_label(place)?, control.system_identifier)
        }
        true => known_of_archive(place).or_else(|| {
            let (content, _) = Content::scan(place, options).ok()?;
            let label = content.read_small("backup_label").ok()??;
            let control = content.control().ok()?;
            Some((parse_backup_label(&label).ok()?, control.system_identifier))
        })?,
    };
    Some(Known {
        label: place.label.clone(),
        begins,
        system_identifier,
    })
}

fn read_plain_label(place: &Place) -> Option<BackupLabel> {
    let file = place.file("backup_label").ok()?;
    let label = file.read_beginning(SMALL_FILE_BYTES_MAX).ok()?;
    parse_backup_label(&label).ok()
}

/// When and where in the WAL a backup was begun, as its label says; `None` where only opening it tells.
pub(crate) fn began(place: &Place) -> Option<(jiff::Timestamp, Lsn)> {
    if place.is_tar() {
        return began_in_archive(place);
    }
    let label = read_plain_label(place)?;
    Some((label.started_at?, label.start_lsn))
}
