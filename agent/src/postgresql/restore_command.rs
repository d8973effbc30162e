//! The command by which PostgreSQL takes WAL from the archive in the mount. Pure.

use std::path::Path;

/// `restore_command` for a directory: a file that is not there ends it with 1, quietly, as PostgreSQL wants it (it asks for files that
/// may not exist); what is there and cannot be read ends it with 126, which ends recovery, for going on without it would lose WAL.
pub fn restore_command(directory: &Path) -> String {
    let directory = shell_word(&directory.display().to_string());
    // The directory is looked at first: if the mount is away, nothing in it "is not there". `%p` is below the data directory, in which
    // PostgreSQL runs its commands. `cat` and not `cp`: the copy must not be read-only as what is in the mount.
    format!(
        "test -d {directory}/. || exit 126; test -e {directory}/%f || exit 1; cat {directory}/%f > \"%p\" || exit 126"
    )
}

/// A word that the shell takes as it is, and in which PostgreSQL replaces nothing.
fn shell_word(text: &str) -> String {
    let quoted = text.replace('\'', "'\\''").replace('%', "%%");
    format!("'{quoted}'")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As PostgreSQL replaces it.
    fn replaced(command: &str, file: &str, to: &Path) -> String {
        let to = to.display().to_string();
        let parts: Vec<String> = command
            .split("%%")
            .map(|part| part.replace("%f", file).replace("%p", &to))
            .collect();
        parts.join("%")
    }

    #[test]
    fn the_command_copies_what_is_there_from_a_directory_of_any_name() {
        let root = tempfile::tempdir().unwrap();
        let to = root.path().join("RECOVERYXLOG");
        for name in ["plain", "it's", "a b;c", "100%f", "$HOME", "\"q\"", "ä\\n"] {
            let directory = root.path().join(name);
            std::fs::create_dir(&directory).unwrap();
            std::fs::write(directory.join("000000010000000000000001"), name).unwrap();
            std::fs::create_dir(directory.join("000000010000000000000009")).unwrap();
            let run = |file: &str| {
                let command = replaced(&restore_command(&directory), file, &to);
                let mut shell = std::process::Command::new("sh");
                let output = shell.arg("-c").arg(command).output().unwrap();
                (output.status.code(), output.stderr)
            };
            assert_eq!(run("000000010000000000000001"), (Some(0), vec![]), "{name}");
            assert_eq!(std::fs::read_to_string(&to).unwrap(), name);
            assert_eq!(run("00000002.history"), (Some(1), vec![]), "{name}");
            assert_eq!(run("000000010000000000000009").0, Some(126), "{name}");
            std::fs::remove_dir_all(&directory).unwrap();
            assert_eq!(run("000000010000000000000001").0, Some(126), "{name}");
        }
    }
}
