//! What makes backups of Barman fast that are slow to read at random.

use crate::SlowLayout;

/// What is slow, with the setting of Barman in place of that of `pg_basebackup`.
pub(super) fn slow_layout(found: SlowLayout) -> SlowLayout {
    SlowLayout {
        remedy: "leave backup_compression out of Barman's configuration of the server, or set backup_compression_format = plain",
        ..found
    }
}

/// The same of backups that `barman-cloud-backup` took.
pub(super) fn slow_cloud_layout(found: SlowLayout) -> SlowLayout {
    SlowLayout {
        remedy: "take backups with barman-cloud-backup without --gzip and --bzip2",
        ..found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BackupFormat, Codec};

    #[test]
    fn compressed_archives_of_barman_are_slow_and_its_own_setting_is_named() {
        let tar = BackupFormat::PgBasebackupCompressedTar(Codec::Gzip);
        let found = crate::pg_basebackup::slow_layout(tar).unwrap();
        let text = slow_layout(found).to_string();
        assert!(
            text.contains("gzip") && text.contains("backup_compression") && !text.contains("-Fp"),
            "{text}"
        );
    }
}
