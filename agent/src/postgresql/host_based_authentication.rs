//! Writes `pg_hba.conf`: who may connect to a published instance.

use std::path::Path;

/// The file's text: our private socket, the publisher's lines, then the backup's own lines if there are any.
pub fn text(lines: &[String], backup: Option<&str>, backup_directory: &Path) -> String {
    let mut text = String::from(
        "# Written by pginstant. The socket lies in a directory that only the OS user can enter.\n\
         local all all trust\nlocal replication all trust\n",
    );
    for line in lines {
        // One line each: a line break would smuggle in another rule.
        text.push_str(&line.replace(['\n', '\r'], " "));
        text.push('\n');
    }
    match backup {
        Some(backup) => {
            text.push_str("# Of the backup:\n");
            for line in backup.lines() {
                text.push_str(&with_absolute_files(line, backup_directory));
                text.push('\n');
            }
        }
        None => text.push_str("host all all samehost scram-sha-256\n"),
    }
    text
}

/// Text for an instance that stays and whose backup holds no `pg_hba.conf`: its socket is everybody's, so nobody is trusted there.
pub fn without_backup(lines: &[String]) -> String {
    let mut text = String::from(
        "# Written by pginstant: the backup holds no pg_hba.conf.\nlocal all all peer\nlocal replication all peer\n",
    );
    for line in lines {
        text.push_str(&line.replace(['\n', '\r'], " "));
        text.push('\n');
    }
    text.push_str("host all all samehost scram-sha-256\n");
    text
}

/// Text of `pg_ident.conf`: the backup's own user name maps.
pub fn name_maps(backup: Option<&str>, backup_directory: &Path) -> String {
    let lines = backup.unwrap_or_default().lines();
    lines
        .map(|line| with_absolute_files(line, backup_directory) + "\n")
        .collect()
}

/// Files that a line names are relative to the backup's file, not to ours.
fn with_absolute_files(line: &str, directory: &Path) -> String {
    let trimmed = line.trim_start();
    let absolute = |name: &str| {
        let path = directory.join(name.trim().trim_matches('"'));
        format!("\"{}\"", path.display())
    };
    for word in ["include_if_exists", "include_dir", "include"] {
        if let Some(rest) = trimmed.strip_prefix(word)
            && rest.starts_with(char::is_whitespace)
        {
            return format!("{word} {}", absolute(rest));
        }
    }
    if !line.contains('@') || trimmed.starts_with('#') {
        return line.to_owned();
    }
    let word = |word: &str| match word.strip_prefix('@') {
        Some(name) if !name.starts_with('/') => format!("@{}", directory.join(name).display()),
        _ => word.to_owned(),
    };
    line.split(' ')
        .map(|field| field.split(',').map(word).collect::<Vec<_>>().join(","))
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_socket_comes_first_then_the_publishers_lines_then_the_backups() {
        let directory = Path::new("/m/data");
        let backup = "local all all peer\ninclude hba.d/x.conf\nhost all @admins,joe all md5\n";
        let text = text(
            &["host all all 10.0.0.0/8 scram-sha-256\nlocal x".into()],
            Some(backup),
            directory,
        );
        let rules: Vec<_> = text.lines().filter(|l| !l.starts_with('#')).collect();
        assert_eq!(
            rules,
            [
                "local all all trust",
                "local replication all trust",
                "host all all 10.0.0.0/8 scram-sha-256 local x",
                "local all all peer",
                "include \"/m/data/hba.d/x.conf\"",
                "host all @/m/data/admins,joe all md5",
            ]
        );
    }

    #[test]
    fn files_included_by_name_maps_stay_where_the_backup_has_them() {
        let maps = name_maps(
            Some("m root postgres\ninclude_dir maps\n"),
            Path::new("/m/data"),
        );
        assert_eq!(maps, "m root postgres\ninclude_dir \"/m/data/maps\"\n");
    }

    #[test]
    fn an_instance_that_stays_trusts_nobody() {
        let text = without_backup(&["host all all 10.0.0.0/8 md5".into()]);
        assert!(!text.contains("trust") && text.contains("\nhost all all 10.0.0.0/8 md5\n"));
    }

    #[test]
    fn without_the_backups_file_only_the_host_itself_may_connect_with_a_password() {
        let text = text(&[], None, Path::new("/m"));
        assert!(text.ends_with("\nhost all all samehost scram-sha-256\n"));
    }
}
