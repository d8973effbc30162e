//! Names of archives, and what they say.

use crate::RepositoryError;
use crate::name::parse_oid;
use crate::seekable::Codec;
use crate::storage::Storage;

/// Whose names the archives of a backup have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Naming {
    /// `pg_basebackup`'s: `base.tar`, `<oid>.tar`, `pg_wal.tar`.
    PgBasebackup,
    /// Those of `barman-cloud-backup`: `data.tar`, `<oid>.tar`, and what did not fit into one of these in `data_0001.tar` and so on.
    BarmanCloud,
}

/// The name of an archive, and what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ArchiveName {
    pub(crate) name: String,
    pub(crate) part: Part,
    /// Which of several archives of this part it is, from 0.
    pub(crate) piece: u32,
    pub(crate) codec: Option<Codec>,
}

/// What an archive holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Base,
    Tablespace(u32),
    Wal,
}

/// The archives in the directory, that of the data directory first. The same one twice, compressed and not, is refused, as is a missing one
/// of several.
pub(crate) fn archive_names(
    directory: &Storage,
    naming: Naming,
) -> Result<Vec<ArchiveName>, RepositoryError> {
    let unreadable = |error| RepositoryError::unreadable(".", "list directory", error);
    let mut names: Vec<ArchiveName> = Vec::new();
    for name in directory.names("").map_err(unreadable)? {
        let Some(name) = archive_name(&name, naming)? else {
            // Nothing else here is of interest.
            continue;
        };
        let is_same = |other: &&ArchiveName| (other.part, other.piece) == (name.part, name.piece);
        if let Some(other) = names.iter().find(is_same) {
            let (a, b) = (&other.name, &name.name);
            let (first, second) = if a < b { (a, b) } else { (b, a) };
            return Err(RepositoryError::unsupported(
                second,
                format!("lies beside {first}, and only one of them can be the backup's"),
                "remove the one that is not needed, for example what was left by compressing or decompressing by hand",
            ));
        }
        names.push(name);
    }
    names.sort_by_key(|name| (name.part, name.piece));
    refuse_holes(&names)?;
    Ok(names)
}

fn refuse_holes(names: &[ArchiveName]) -> Result<(), RepositoryError> {
    let mut next = None;
    for name in names {
        let expected = match next {
            Some((part, piece)) if part == name.part => piece,
            _ => 0,
        };
        if name.piece != expected {
            let reason = format!(
                "is part {} of several archives, and part {expected} is not there",
                name.piece
            );
            return Err(RepositoryError::corrupt(&name.name, reason));
        }
        next = Some((name.part, expected + 1));
    }
    Ok(())
}

/// What a file's name says, if it is an archive's.
pub(crate) fn archive_name(
    name: &str,
    naming: Naming,
) -> Result<Option<ArchiveName>, RepositoryError> {
    let Some((stem, extension)) = name.split_once('.') else {
        return Ok(None);
    };
    let Some((part, piece)) = part_of(stem, naming) else {
        return Ok(None);
    };
    let codec = match (extension, naming) {
        ("tar", _) => None,
        ("tar.gz", _) | ("tgz", Naming::PgBasebackup) => Some(Codec::Gzip),
        ("tar.lz4", _) => Some(Codec::Lz4),
        ("tar.zst", _) => Some(Codec::Zstd),
        ("tar.bz2", Naming::BarmanCloud) => Some(Codec::Bzip2),
        (other, Naming::BarmanCloud) if other.starts_with("tar.") => {
            let codec = other.trim_start_matches("tar.");
            return Err(RepositoryError::unsupported(
                name,
                format!("is compressed by {codec}, which cannot be read"),
                "take backups with barman-cloud-backup --gzip or --bzip2, or without compression",
            ));
        }
        _ => return Ok(None),
    };
    Ok(Some(ArchiveName {
        name: name.to_owned(),
        part,
        piece,
        codec,
    }))
}

fn part_of(stem: &str, naming: Naming) -> Option<(Part, u32)> {
    match naming {
        Naming::PgBasebackup => {
            let part = match stem {
                "base" => Part::Base,
                "pg_wal" => Part::Wal,
                stem => Part::Tablespace(parse_oid(stem)?),
            };
            Some((part, 0))
        }
        Naming::BarmanCloud => {
            let (stem, piece) = match stem.split_once('_') {
                None => (stem, 0),
                Some((stem, digits)) => {
                    let is_number = digits.len() >= 4 && digits.bytes().all(|b| b.is_ascii_digit());
                    let piece = digits.parse().ok().filter(|piece| is_number && *piece > 0);
                    (stem, piece?)
                }
            };
            let part = match stem {
                "data" => Part::Base,
                stem => Part::Tablespace(parse_oid(stem)?),
            };
            Some((part, piece))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_an_archive_says_what_it_holds_and_how_it_is_compressed() {
        let table = [
            ("base.tar", Some((Part::Base, None))),
            ("base.tar.gz", Some((Part::Base, Some(Codec::Gzip)))),
            ("base.tgz", Some((Part::Base, Some(Codec::Gzip)))),
            ("pg_wal.tar.lz4", Some((Part::Wal, Some(Codec::Lz4)))),
            (
                "16384.tar.zst",
                Some((Part::Tablespace(16384), Some(Codec::Zstd))),
            ),
            ("016384.tar", None),
            ("base.tar.xz", None),
            ("base.tar.gz.tmp", None),
            ("base", None),
            ("data.tar", None),
            ("16384_0001.tar", None),
            ("backup_manifest", None),
        ];
        for (name, wanted) in table {
            let found = archive_name(name, Naming::PgBasebackup).unwrap();
            let found = found.map(|found| (found.part, found.codec));
            assert_eq!(found, wanted, "{name}");
        }
    }

    #[test]
    fn archives_of_barman_cloud_are_numbered_and_a_codec_that_is_not_known_is_refused() {
        let table = [
            ("data.tar", Some((Part::Base, 0, None))),
            ("data_0001.tar.gz", Some((Part::Base, 1, Some(Codec::Gzip)))),
            ("data_10000.tar", Some((Part::Base, 10_000, None))),
            (
                "16384_0002.tar.bz2",
                Some((Part::Tablespace(16384), 2, Some(Codec::Bzip2))),
            ),
            ("data_1.tar", None),
            ("data_0000.tar", None),
            ("data_00x1.tar", None),
            ("base.tar", None),
            ("backup.info", None),
        ];
        for (name, wanted) in table {
            let found = archive_name(name, Naming::BarmanCloud).unwrap();
            let found = found.map(|found| (found.part, found.piece, found.codec));
            assert_eq!(found, wanted, "{name}");
        }
        for (name, codec) in [("data.tar.snappy", "snappy"), ("16384_0001.tar.xz", "xz")] {
            let error = archive_name(name, Naming::BarmanCloud).unwrap_err();
            assert_eq!(error.file(), name);
            let text = format!("{error}; {}", error.remedy());
            assert!(text.contains(codec) && text.contains("--gzip"), "{text}");
        }
    }

    #[test]
    fn a_hole_among_several_archives_is_refused_by_the_name_behind_it() {
        let directory = tempfile::tempdir().unwrap();
        let storage = Storage::directory(directory.path()).unwrap();
        let put = |name: &str| std::fs::write(directory.path().join(name), "").unwrap();
        ["data_0002.tar", "16384.tar", "data.tar", "data_0001.tar"]
            .into_iter()
            .for_each(put);
        let names = archive_names(&storage, Naming::BarmanCloud).unwrap();
        let names: Vec<_> = names.into_iter().map(|name| name.name).collect();
        assert_eq!(
            names,
            ["data.tar", "data_0001.tar", "data_0002.tar", "16384.tar"]
        );
        put("16384_0002.tar");
        let error = archive_names(&storage, Naming::BarmanCloud).unwrap_err();
        assert_eq!(error.file(), "16384_0002.tar");
    }
}
