//! Which PostgreSQL versions are installed here.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use common::agent::hand::PostgresqlInstallation;
use common::problem::{ErrorCode, Problem};

use crate::hand::command::{CommandLine, run};

/// The installation of one major version; directories named by the asker win.
pub fn find(major: u32, extra: &[PathBuf]) -> Result<PostgresqlInstallation, Problem> {
    let all = list(extra);
    if let Some(found) = all.iter().find(|i| i.major == major) {
        return Ok(found.clone());
    }
    let known: Vec<String> = all
        .iter()
        .map(|i| format!("{} in {}", i.version, i.program_directory.display()))
        .collect();
    let known = match known.as_slice() {
        [] => "none is installed".to_owned(),
        some => format!("installed: {}", some.join(", ")),
    };
    Err(Problem::new(
        ErrorCode::PostgresqlNotFound,
        format!("this host has no PostgreSQL {major} ({known})"),
        format!(
            "install the server package of PostgreSQL {major}, or name its program directory for this target"
        ),
    ))
}

/// Every installation, in the order in which one would be chosen.
pub fn list(extra: &[PathBuf]) -> Vec<PostgresqlInstallation> {
    let mut seen = BTreeSet::new();
    candidates(extra)
        .into_iter()
        .filter(|directory| directory.join("postgres").is_file())
        .filter(|directory| {
            let real = std::fs::canonicalize(directory.join("postgres"));
            seen.insert(real.unwrap_or_else(|_| directory.clone()))
        })
        .filter_map(|directory| inspect(&directory))
        .collect()
}

/// What lies in one directory of programs.
pub fn inspect(directory: &Path) -> Option<PostgresqlInstallation> {
    let answer = run(&CommandLine::new(directory.join("postgres")).args(["--version"])).ok()?;
    let (major, version) = parse_version(&answer.stdout)?;
    // A link to the programs is followed: libraries lie beside the real ones.
    let real = std::fs::canonicalize(directory.join("postgres")).ok()?;
    Some(PostgresqlInstallation {
        major,
        version,
        library_directory: library_directory(directory, real.parent()?),
        program_directory: directory.to_owned(),
    })
}

fn candidates(extra: &[PathBuf]) -> Vec<PathBuf> {
    let mut found = extra.to_vec();
    let mut packaged = children(Path::new("/usr/lib/postgresql"), "");
    packaged.extend(children(Path::new("/usr"), "pgsql-"));
    packaged.sort();
    found.extend(packaged.into_iter().rev());
    found.push("/usr/local/pgsql/bin".into());
    let path = std::env::var_os("PATH").unwrap_or_default();
    found.extend(std::env::split_paths(&path).filter(|p| p.is_absolute()));
    found
}

fn children(directory: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with(prefix))
        .map(|e| e.path().join("bin"))
        .collect()
}

fn parse_version(text: &str) -> Option<(u32, String)> {
    let version = text.strip_prefix("postgres (PostgreSQL) ")?;
    let version = version.split_whitespace().next()?;
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    Some((digits.parse().ok()?, version.to_owned()))
}

fn library_directory(programs: &Path, real: &Path) -> Option<PathBuf> {
    let asked = run(&CommandLine::new(programs.join("pg_config")).args(["--pkglibdir"])).ok();
    let asked = asked.map(|a| PathBuf::from(a.stdout.trim()));
    // Debian's pg_config is in a package of its own and may be missing; wheels and tarballs were built elsewhere.
    let parent = real.parent().unwrap_or(real);
    let beside = ["lib/postgresql", "lib", "lib64/pgsql", "lib64"].map(|name| parent.join(name));
    asked
        .into_iter()
        .chain(beside)
        .find(|directory| directory.join("plpgsql.so").is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packaged_postgresql_is_found_with_its_libraries() {
        let found = find(15, &[]).unwrap();
        assert!(found.version.starts_with("15."));
        assert!(
            found
                .library_directory
                .unwrap()
                .join("plpgsql.so")
                .is_file()
        );
    }

    #[test]
    fn a_missing_major_version_says_what_is_there() {
        let problem = find(9, &[]).unwrap_err();
        assert_eq!(problem.code, ErrorCode::PostgresqlNotFound);
        assert!(
            problem.message.contains("/usr/lib/postgresql/15/bin"),
            "{}",
            problem.message
        );
    }

    #[test]
    fn version_texts_of_distributions_and_betas_are_understood() {
        for (text, expected) in [
            (
                "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n",
                Some((15, "15.18")),
            ),
            ("postgres (PostgreSQL) 18beta1\n", Some((18, "18beta1"))),
            ("postgres (PostgreSQL) 12.22", Some((12, "12.22"))),
            ("bash: postgres: no", None),
        ] {
            let expected = expected.map(|(major, version)| (major, version.to_owned()));
            assert_eq!(parse_version(text), expected, "{text}");
        }
    }
}
