//! The beginning of `base.tar`, where `backup_label` and `tablespace_map` are: what it says is known without decoding the rest.

use std::sync::Arc;

use super::{ArchiveName, Part, archive_names, open_sized};
use crate::pg_basebackup::place::Place;
use crate::pg_basebackup::tar_index::{MemberKind, read_tar_index};
use crate::seekable::{Codec, decode_beginning};
use crate::{Limits, RepositoryError};

/// Enough for both files, and for what another tar may put before them.
const BEGINNING_BYTES: usize = 64 << 10;

/// What the names of the archives and the beginning of the first say.
#[derive(Debug)]
pub(crate) struct TarBeginning {
    /// How `base.tar` is compressed.
    pub(crate) codec: Option<Codec>,
    /// Tablespaces that have an archive.
    pub(crate) tablespace_oids: Vec<u32>,
    /// `backup_label`, if it is there.
    pub(crate) label: Option<Vec<u8>>,
    /// `tablespace_map`, if it is there.
    pub(crate) tablespace_map: Option<Vec<u8>>,
}

/// Reads the beginning of a backup's `base.tar`; none if there is no such archive.
pub(crate) fn read_tar_beginning(place: &Place) -> Result<Option<TarBeginning>, RepositoryError> {
    let directory = place.open()?;
    let names = archive_names(&directory, place.naming)?;
    let Some(base) = names.first().filter(|first| first.part == Part::Base) else {
        return Ok(None);
    };
    let ArchiveName { name, codec, .. } = base;
    let (file, _) = open_sized(&directory, name)?;
    let bytes = match codec {
        Some(codec) => decode_beginning(name, *codec, Arc::new(file), BEGINNING_BYTES)?,
        None => {
            let mut bytes = vec![0; BEGINNING_BYTES];
            let count = file.read_full_at(0, &mut bytes);
            let count =
                count.map_err(|error| RepositoryError::unreadable(name, "read archive", error))?;
            bytes.truncate(count);
            bytes
        }
    };
    let oids = names.iter().filter_map(|name| match name.part {
        Part::Tablespace(oid) => Some(oid),
        Part::Base | Part::Wal => None,
    });
    let mut beginning = TarBeginning {
        codec: *codec,
        tablespace_oids: oids.collect(),
        label: None,
        tablespace_map: None,
    };
    note_files(&mut beginning, name, &bytes);
    Ok(Some(beginning))
}

/// Takes the two files from the beginning of an archive.
fn note_files(beginning: &mut TarBeginning, name: &str, bytes: &[u8]) {
    let mut source = bytes;
    let cut_off = read_tar_index(&mut source, name, &Limits::default(), &mut |member| {
        let slot = match member.name.as_str() {
            "backup_label" => &mut beginning.label,
            "tablespace_map" => &mut beginning.tablespace_map,
            _ => return Ok(()),
        };
        if let MemberKind::File(size_bytes) = member.kind
            && let Ok(start) = usize::try_from(member.offset)
            && let Ok(size) = usize::try_from(size_bytes)
        {
            *slot = bytes.get(start..start + size).map(<[u8]>::to_vec);
        }
        Ok(())
    });
    // The archive goes on behind its beginning: that it seems to be cut off is no news.
    drop(cut_off);
}
