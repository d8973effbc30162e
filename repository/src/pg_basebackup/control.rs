//! The little that is read of `pg_control`: which cluster a backup is of, and whether its pages have checksums.

use crate::RepositoryError;

/// Its path.
pub(crate) const CONTROL: &str = "global/pg_control";
/// How many bytes of its beginning are looked at.
pub(crate) const CONTROL_BYTES: usize = 256;

/// `pg_control_version` of PostgreSQL 17 and 18, of which the place of `data_checksum_version` is known.
const KNOWN_VERSIONS: [u32; 2] = [1700, 1800];
const CHECKSUM_VERSION_AT: usize = 252;

/// What `pg_control` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ControlFacts {
    /// The cluster's identity.
    pub(crate) system_identifier: u64,
    /// Whether pages have checksums, where the version is known to tell it.
    pub(crate) has_page_checksums: Option<bool>,
}

/// Reads the beginning of `pg_control`; its numbers are in the byte order of the machine that wrote it.
pub(crate) fn read_control(
    beginning: &[u8; CONTROL_BYTES],
) -> Result<ControlFacts, RepositoryError> {
    let number = |at: usize| {
        let bytes = beginning.get(at..).and_then(<[u8]>::first_chunk);
        u32::from_ne_bytes(bytes.copied().unwrap_or_default())
    };
    let identifier = beginning.first_chunk().copied().unwrap_or_default();
    let system_identifier = u64::from_ne_bytes(identifier);
    if system_identifier == 0 {
        return Err(RepositoryError::corrupt(CONTROL, "names no cluster"));
    }
    let is_known = KNOWN_VERSIONS.contains(&number(8));
    Ok(ControlFacts {
        system_identifier,
        has_page_checksums: is_known.then(|| number(CHECKSUM_VERSION_AT) != 0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_file_tells_its_cluster_and_whether_pages_have_checksums() {
        let mut content = [0; CONTROL_BYTES];
        assert!(read_control(&content).is_err());
        content[..8].copy_from_slice(&7_710_659_439_516_546_990_u64.to_ne_bytes());
        for (version, checksums, wanted) in [
            (1800_u32, 1_u32, Some(true)),
            (1700, 0, Some(false)),
            (1300, 1, None),
        ] {
            content[8..12].copy_from_slice(&version.to_ne_bytes());
            content[252..].copy_from_slice(&checksums.to_ne_bytes());
            let facts = read_control(&content).unwrap();
            assert_eq!(facts.system_identifier, 7_710_659_439_516_546_990);
            assert_eq!(facts.has_page_checksums, wanted);
        }
    }
}
