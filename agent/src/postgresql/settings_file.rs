//! Reads `postgresql.conf` and what it includes, as PostgreSQL's own scanner does.

use std::io;
use std::path::{Path, PathBuf};

/// Deepest nesting of includes, PostgreSQL's own limit.
const DEPTH_MAX: u32 = 10;

/// One setting as a file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Its name, lower case.
    pub name: String,
    /// Its value, without quotes.
    pub value: String,
}

/// What a file and its includes hold, in order: the last of a name wins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SettingsFile {
    /// The settings.
    pub settings: Vec<Setting>,
    /// Sentences about lines and includes that could not be read.
    pub remarks: Vec<String>,
}

/// What a settings file may refer to.
pub trait FileSource {
    /// The text of a file.
    fn read(&self, path: &Path) -> io::Result<String>;
    /// The files of a directory.
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>>;
}

impl SettingsFile {
    /// Reads a file with all that it includes.
    pub fn read(path: &Path, source: &dyn FileSource) -> io::Result<Self> {
        let mut file = Self::default();
        let text = source.read(path)?;
        file.take(&text, path, source, DEPTH_MAX);
        Ok(file)
    }

    /// What a text without includes holds, as `postgresql.auto.conf` is.
    pub fn of_text(text: &str) -> Self {
        let mut file = Self::default();
        for line in text.lines() {
            if let Line::Setting(setting) = parse_line(line) {
                file.settings.push(setting);
            }
        }
        file
    }

    /// The value that holds, if any line sets it.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.settings
            .iter()
            .rev()
            .find(|s| s.name.eq_ignore_ascii_case(name))
            .map(|s| s.value.as_str())
    }

    fn take(&mut self, text: &str, path: &Path, source: &dyn FileSource, depth: u32) {
        for (index, line) in text.lines().enumerate() {
            match parse_line(line) {
                Line::Empty => {}
                Line::Setting(setting) => self.follow(setting, path, source, depth),
                Line::Malformed => self.remarks.push(format!(
                    "line {} of {} is not a setting and was left out",
                    index + 1,
                    path.display()
                )),
            }
        }
    }

    fn follow(&mut self, setting: Setting, path: &Path, source: &dyn FileSource, depth: u32) {
        let target = path.parent().unwrap_or(Path::new("/")).join(&setting.value);
        let optional = setting.name == "include_if_exists";
        let files = match setting.name.as_str() {
            "include" | "include_if_exists" => Ok(vec![target.clone()]),
            "include_dir" => source.list(&target).map(configuration_files),
            _ => {
                self.settings.push(setting);
                return;
            }
        };
        let texts = files.and_then(|files| {
            let read = |file: PathBuf| source.read(&file).map(|text| (file, text));
            files.into_iter().map(read).collect::<io::Result<Vec<_>>>()
        });
        match texts {
            Ok(_) if depth == 0 => self.remarks.push(format!(
                "{} is included too deeply and was left out",
                target.display()
            )),
            Ok(texts) => {
                for (file, text) in texts {
                    self.take(&text, &file, source, depth - 1);
                }
            }
            Err(_) if optional => {}
            Err(error) => self.remarks.push(format!(
                "the included {} was left out: {error}",
                target.display()
            )),
        }
    }
}

fn configuration_files(mut files: Vec<PathBuf>) -> Vec<PathBuf> {
    files.retain(|file| {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        name.ends_with(".conf") && !name.starts_with('.')
    });
    files.sort();
    files
}

enum Line {
    Empty,
    Setting(Setting),
    Malformed,
}

/// `name [=] value [# comment]`, where the value is a bare word or quoted with `''` and backslash escapes.
fn parse_line(line: &str) -> Line {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Line::Empty;
    }
    let is_name =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '$') || !c.is_ascii();
    let end = line.find(|c| !is_name(c)).unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    let parsed = match rest.strip_prefix('\'') {
        Some(quoted) => unquote(quoted),
        None => {
            let end = rest
                .find(|c: char| c.is_whitespace() || c == '#')
                .unwrap_or(rest.len());
            let (value, rest) = rest.split_at(end);
            let sound = !value.is_empty() && !value.contains(['\'', '=']);
            sound.then(|| (value.to_owned(), rest))
        }
    };
    match parsed {
        Some((value, rest)) if !name.is_empty() && is_comment(rest) => Line::Setting(Setting {
            name: name.to_ascii_lowercase(),
            value,
        }),
        _ => Line::Malformed,
    }
}

fn is_comment(rest: &str) -> bool {
    let rest = rest.trim_start();
    rest.is_empty() || rest.starts_with('#')
}

fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices().peekable();
    while let Some((at, character)) = characters.next() {
        match character {
            '\'' if characters.peek().is_some_and(|(_, next)| *next == '\'') => {
                characters.next();
                value.push('\'');
            }
            '\'' => return Some((value, text.get(at + 1..)?)),
            '\\' => {
                let (_, escaped) = characters.next()?;
                match escaped {
                    'n' => value.push('\n'),
                    't' => value.push('\t'),
                    'r' => value.push('\r'),
                    'b' => value.push('\u{8}'),
                    'f' => value.push('\u{c}'),
                    '0'..='7' => value.push(octal(escaped, &mut characters)),
                    other => value.push(other),
                }
            }
            other => value.push(other),
        }
    }
    None
}

fn octal(first: char, rest: &mut std::iter::Peekable<std::str::CharIndices<'_>>) -> char {
    let mut number = first.to_digit(8).unwrap_or(0);
    for _ in 0..2 {
        let Some(digit) = rest.peek().and_then(|(_, c)| c.to_digit(8)) else {
            break;
        };
        number = number * 8 + digit;
        rest.next();
    }
    char::from_u32(number & 0xff).unwrap_or(' ')
}

/// A value as a settings file wants it.
pub fn quote(value: &str) -> String {
    let mut quoted = String::with_capacity(value.len() + 2);
    quoted.push('\'');
    for character in value.chars() {
        match character {
            '\'' => quoted.push_str("''"),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            other => quoted.push(other),
        }
    }
    quoted.push('\'');
    quoted
}

/// A size in bytes; `unit_bytes` is what a number without a unit counts.
pub fn parse_size(value: &str, unit_bytes: u64) -> Option<u64> {
    let value = value.trim();
    let end = value
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(value.len());
    let (number, unit) = value.split_at(end);
    let factor = match unit.trim() {
        "" => unit_bytes,
        "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        "TB" => 1 << 40,
        _ => return None,
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor);
    }
    let (whole, fraction) = number.split_once('.')?;
    let tenth = fraction
        .chars()
        .next()
        .and_then(|c| c.to_digit(10))
        .unwrap_or(0);
    let whole = whole.parse::<u64>().unwrap_or(0).checked_mul(factor)?;
    whole.checked_add(factor / 10 * u64::from(tenth))
}

/// A boolean as PostgreSQL spells it.
pub fn parse_boolean(value: &str) -> bool {
    let value = value.to_ascii_lowercase();
    !value.is_empty()
        && (value == "1"
            || value == "on"
            || "true".starts_with(&value)
            || "yes".starts_with(&value))
}

/// The names of a comma-separated list such as `shared_preload_libraries`.
pub fn parse_list(value: &str) -> Vec<String> {
    value
        .split(',')
        .map(|name| name.trim().trim_matches('"').to_owned())
        .filter(|name| !name.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    struct Files(BTreeMap<&'static str, &'static str>);

    impl FileSource for Files {
        fn read(&self, path: &Path) -> io::Result<String> {
            let text = self.0.get(path.to_str().unwrap());
            Ok((*text.ok_or(io::ErrorKind::NotFound)?).to_owned())
        }
        fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
            let inside = |name: &&&str| Path::new(name).parent() == Some(path);
            Ok(self.0.keys().filter(inside).map(PathBuf::from).collect())
        }
    }

    fn check(text: &'static str, expected: &[(&str, &str)]) {
        let files = Files(BTreeMap::from([("/d/postgresql.conf", text)]));
        let read = SettingsFile::read(Path::new("/d/postgresql.conf"), &files).unwrap();
        let got: Vec<_> = read
            .settings
            .iter()
            .map(|s| (s.name.as_str(), s.value.as_str()))
            .collect();
        assert_eq!(got, expected, "{text}");
    }

    #[test]
    fn lines_are_read_as_postgresql_reads_them() {
        check("port = 5432 # the port", &[("port", "5432")]);
        check("PORT 5433", &[("port", "5433")]);
        check(
            "a='it''s' #x\n  b = 'a\\'b'",
            &[("a", "it's"), ("b", "a'b")],
        );
        check("c='\\101\\n'", &[("c", "A\n")]);
        check("pg_cron.x = on", &[("pg_cron.x", "on")]);
        check("# port = 1\n\n\t", &[]);
        check("shared_buffers=128MB", &[("shared_buffers", "128MB")]);
        check("a=''", &[("a", "")]);
        check("a='open\nb=1", &[("b", "1")]);
        check("just_a_name\n= 3\na = 1 2\nb=2", &[("b", "2")]);
    }

    #[test]
    fn includes_are_followed_relative_to_their_file_and_the_last_wins() {
        let files = Files(BTreeMap::from([
            (
                "/d/a.conf",
                "x=1\ninclude 'sub/b.conf'\ninclude_dir='conf.d'\ninclude_if_exists=no\ninclude='gone'",
            ),
            ("/d/sub/b.conf", "x=2\ninclude='c.conf'"),
            ("/d/sub/c.conf", "y=3"),
            ("/d/conf.d/2.conf", "x=5"),
            ("/d/conf.d/1.conf", "x=4"),
            ("/d/conf.d/.hidden.conf", "x=6"),
            ("/d/conf.d/readme", "x=7"),
        ]));
        let read = SettingsFile::read(Path::new("/d/a.conf"), &files).unwrap();
        assert_eq!(read.get("x"), Some("5"));
        assert_eq!(read.get("y"), Some("3"));
        assert_eq!(read.remarks.len(), 1);
        assert!(read.remarks[0].contains("/d/gone"));
    }

    #[test]
    fn a_file_that_includes_itself_ends() {
        let files = Files(BTreeMap::from([("/d/a.conf", "x=1\ninclude='a.conf'")]));
        let read = SettingsFile::read(Path::new("/d/a.conf"), &files).unwrap();
        assert!(read.remarks[0].contains("too deeply"));
    }

    #[test]
    fn sizes_have_units() {
        for (text, expected) in [
            ("16384", Some(16384 * 8192)),
            ("128MB", Some(128 << 20)),
            ("1.5GB", Some((1 << 30) + (1 << 30) / 10 * 5)),
            ("64 kB", Some(65536)),
            ("12XB", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(parse_size(text, 8192), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_quoted_reads_back_the_same(value in "[^\0]{0,40}") {
            let line = format!("x = {}", quote(&value));
            match parse_line(&line) {
                Line::Setting(setting) => prop_assert_eq!(setting.value, value),
                _ => prop_assert!(false, "{}", line),
            }
        }
    }
}
