//! What of an original's configuration this host can serve: files, libraries, and the server's own judgement.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use common::problem::Problem;

use super::settings_file::{FileSource, SettingsFile, parse_boolean, parse_list};
use crate::hand::command::{CommandLine, run};

/// Largest configuration file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The host's own files.
#[derive(Debug, Clone, Copy)]
pub struct Disk;

impl FileSource for Disk {
    fn read(&self, path: &Path) -> io::Result<String> {
        read_limited(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        std::fs::read_dir(path)?.map(|e| Ok(e?.path())).collect()
    }
}

/// Reads a regular file; a pipe that a backup may hold must not block us.
pub fn read_limited(path: &Path) -> io::Result<String> {
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(nonblocking())
        .open(path)?;
    let facts = file.metadata()?;
    if !facts.is_file() || facts.len() > FILE_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "not a regular file of a sensible size",
        ));
    }
    let mut bytes = Vec::new();
    file.by_ref().take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn nonblocking() -> i32 {
    i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0)
}

/// Drops the names of libraries that are here; what cannot be known is not missing: a wrong guess would leave out what is there.
pub fn keep_missing_libraries(
    names: &mut Vec<String>,
    libraries: Option<&Path>,
    dynamic_library_path: &str,
) {
    let Some(libraries) = libraries else {
        names.clear();
        return;
    };
    let named = dynamic_library_path.split(':').map(Path::new);
    let directories: Vec<&Path> = std::iter::once(libraries)
        .chain(named.filter(|path| path.is_absolute()))
        .collect();
    names.retain(|name| {
        let file = if name.ends_with(".so") {
            name.clone()
        } else {
            format!("{name}.so")
        };
        let below = file.strip_prefix("$libdir/").unwrap_or(&file);
        !directories
            .iter()
            .any(|directory| directory.join(below).is_file())
    });
}

/// Whether TLS is on and all of its files can be read without asking anybody; they are relative to the data directory.
pub fn tls_usable(settings: &SettingsFile, data_directory: &Path) -> bool {
    let named = |name: &str, default: &str| {
        let value = settings.get(name).unwrap_or(default);
        (!value.is_empty()).then(|| data_directory.join(value))
    };
    let files = [
        named("ssl_cert_file", "server.crt"),
        named("ssl_key_file", "server.key"),
        named("ssl_ca_file", ""),
        named("ssl_crl_file", ""),
    ];
    parse_boolean(settings.get("ssl").unwrap_or_default())
        && parse_list(settings.get("ssl_passphrase_command").unwrap_or_default()).is_empty()
        && files
            .iter()
            .flatten()
            .all(|file| read_limited(file).is_ok())
}

/// The server's own judgement of a configuration file, and the value of a setting under it; the inner error is what it printed.
pub fn ask_server(
    programs: &Path,
    arguments: &[String],
    file: &Path,
    name: &str,
) -> Result<Result<String, String>, Problem> {
    let line = CommandLine::new(programs.join("postgres"))
        .args([
            "-C",
            name,
            "-c",
            &super::process::configuration_argument(file),
        ])
        .args(arguments);
    let answer = run(&line)?;
    Ok(if answer.success {
        Ok(answer.stdout.trim().to_owned())
    } else {
        Err(answer.stderr)
    })
}
