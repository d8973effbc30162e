//! Which backups of `pg_basebackup` are slow to read at random, and what makes them fast.

use crate::{BackupFormat, SlowLayout};

/// Why pages of a backup of this format are slow; none if they are not.
pub(crate) fn slow_layout(format: BackupFormat) -> Option<SlowLayout> {
    let BackupFormat::PgBasebackupCompressedTar(codec) = format else {
        return None;
    };
    Some(SlowLayout {
        reason: format!(
            "pages are slow to read at random: the files are in tar archives compressed with {codec}, which are decoded once from \
             beginning to end before the first page can be read, and piece by piece after that"
        ),
        remedy: "take backups with pg_basebackup -Fp, or with -Ft and without compression",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Codec;

    #[test]
    fn only_compressed_archives_are_slow_and_a_setting_is_named() {
        for format in [
            BackupFormat::PgBasebackupPlain,
            BackupFormat::PgBasebackupTar,
        ] {
            assert_eq!(slow_layout(format), None);
        }
        for codec in [Codec::Gzip, Codec::Lz4, Codec::Zstd] {
            let hint = slow_layout(BackupFormat::PgBasebackupCompressedTar(codec));
            let text = hint.unwrap().to_string();
            assert!(
                text.contains(&codec.to_string()) && text.contains("-Fp"),
                "{text}"
            );
        }
    }
}
