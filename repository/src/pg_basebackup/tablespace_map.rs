//! `tablespace_map`: where the tablespaces were on the original.

use crate::name::parse_oid;
use crate::restore_point::Tablespace;
use crate::{Limits, RepositoryError};

/// Reads the content of a `tablespace_map`: a line `<oid> <path>` each, in which a backslash escapes line ends and itself.
pub fn parse_tablespace_map(content: &[u8]) -> Result<Vec<Tablespace>, RepositoryError> {
    let corrupt = |reason: String| RepositoryError::corrupt("tablespace_map", reason);
    let text = std::str::from_utf8(content).map_err(|_| corrupt("is not UTF-8".into()))?;
    let mut tablespaces: Vec<Tablespace> = Vec::new();
    let mut line = String::new();
    let mut rest = text.chars();
    loop {
        let (character, escaped) = match rest.next() {
            Some('\\') => (rest.next(), true),
            other => (other, false),
        };
        match character {
            Some('\n' | '\r') | None if !escaped => {
                if !line.is_empty() {
                    tablespaces.push(parse_line(&line).map_err(corrupt)?);
                    line.clear();
                }
                if character.is_none() {
                    break;
                }
            }
            Some(character) => line.push(character),
            None => return Err(corrupt("ends in a backslash".into())),
        }
    }
    tablespaces.sort_by_key(|tablespace| tablespace.oid);
    let twice = tablespaces.windows(2).find_map(|pair| match pair {
        [a, b] if a.oid == b.oid => Some(a.oid),
        _ => None,
    });
    match twice {
        Some(oid) => Err(corrupt(format!("has tablespace {oid} twice"))),
        None => Ok(tablespaces),
    }
}

fn parse_line(line: &str) -> Result<Tablespace, String> {
    let parsed = line.split_once(' ').and_then(|(oid, location)| {
        let fits = !location.is_empty() && location.len() <= Limits::default().path_bytes;
        fits.then_some(Tablespace {
            oid: parse_oid(oid)?,
            location: location.to_owned(),
        })
    });
    parsed.ok_or_else(|| format!("cannot be read: {line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oids_and_paths_are_read_with_their_escapes() {
        let read = parse_tablespace_map(b"16385 /srv/a b\n16384 /srv/x\\\ny\\\\z\n").unwrap();
        let read: Vec<_> = read.iter().map(|t| (t.oid, t.location.as_str())).collect();
        assert_eq!(read, [(16384, "/srv/x\ny\\z"), (16385, "/srv/a b")]);
        assert!(parse_tablespace_map(b"").unwrap().is_empty());
    }

    #[test]
    fn what_is_no_tablespace_is_refused() {
        for bad in [
            &b"x /srv"[..],
            b"16384",
            b"16384 ",
            b"0 /srv",
            b"99999999999 /srv",
            b"1 /a\n1 /b\n",
            b"1 /a\\",
            b"\xff",
        ] {
            assert!(parse_tablespace_map(bad).is_err(), "{bad:?}");
        }
    }
}
