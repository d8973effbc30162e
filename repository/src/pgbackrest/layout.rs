//! Which backups of pgBackRest are slow to read at random, and what makes them fast.

use super::compression::Compression;
use crate::SlowLayout;

/// How the large files of a backup are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LargeFiles {
    /// Whether one is decoded from its beginning whatever page is read.
    pub(super) some_are_whole: bool,
    /// Whether one is in blocks: then those that are not have not changed for so long that pgBackRest makes none of them.
    pub(super) some_are_in_blocks: bool,
    pub(super) compression: Compression,
}

/// Why pages are slow; none if they are not.
pub(super) fn slow_layout(large: LargeFiles) -> Option<SlowLayout> {
    if !large.some_are_whole || large.some_are_in_blocks {
        return None;
    }
    let how = match large.compression {
        Compression::None => "encrypted whole".to_owned(),
        compression => format!("compressed whole ({})", compression.name()),
    };
    Some(SlowLayout {
        reason: format!(
            "pages are slow to read at random: large files are {how}, and each is decoded up to the page that is read"
        ),
        remedy: "set repo-bundle=y and repo-block=y (pgBackRest 2.46 or later) and take a full backup",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_files_that_are_decoded_whole_are_slow_unless_blocks_are_made_already() {
        let large = |some_are_whole, some_are_in_blocks, compression| LargeFiles {
            some_are_whole,
            some_are_in_blocks,
            compression,
        };
        for fast in [
            large(false, false, Compression::None),
            large(false, true, Compression::Zst),
            large(true, true, Compression::Zst),
        ] {
            assert_eq!(slow_layout(fast), None, "{fast:?}");
        }
        for (compression, wanted) in [
            (Compression::Gz, "compressed whole (gz)"),
            (Compression::None, "encrypted whole"),
        ] {
            let text = slow_layout(large(true, false, compression))
                .unwrap()
                .to_string();
            assert!(
                text.contains(wanted) && text.contains("repo-block=y"),
                "{text}"
            );
        }
    }
}
