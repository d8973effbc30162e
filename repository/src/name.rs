//! Which paths a backup may hold.

use crate::{Limits, RepositoryError};

/// Checks a path below PGDATA: relative, normal, printable, and within the limits. What passes can be joined
/// to a directory without leaving it.
pub(crate) fn check_path(path: &str, limits: &Limits) -> Result<(), RepositoryError> {
    let refuse = |reason: &str| Err(RepositoryError::corrupt(path, reason));
    if path.is_empty() {
        return refuse("a name is empty");
    }
    if path.len() > limits.path_bytes {
        return refuse(&format!(
            "the name is longer than {} bytes",
            limits.path_bytes
        ));
    }
    if path.starts_with('/') {
        return refuse("the name is absolute");
    }
    if path.chars().any(char::is_control) {
        return refuse("the name has control characters");
    }
    let mut depth = 0_usize;
    for part in path.split('/') {
        depth += 1;
        match part {
            "" => return refuse("the name has an empty part"),
            "." | ".." => return refuse("the name has a part '.' or '..'"),
            part if part.len() > 255 => {
                return refuse("a part of the name is longer than 255 bytes");
            }
            _ => {}
        }
    }
    if depth > limits.depth {
        return refuse(&format!(
            "the name is more than {} directories deep",
            limits.depth
        ));
    }
    Ok(())
}

/// Takes a name that must be UTF-8; `place` says where it was found if it is not.
pub(crate) fn utf8_name<'a>(name: &'a [u8], place: &str) -> Result<&'a str, RepositoryError> {
    std::str::from_utf8(name).map_err(|_| {
        let shown = String::from_utf8_lossy(name);
        RepositoryError::corrupt(format!("{place}: {shown}"), "the name is not UTF-8")
    })
}

/// The oid, if the text is one: a decimal number of 32 bits, not 0, without leading zeros.
pub(crate) fn parse_oid(text: &str) -> Option<u32> {
    let plain = !text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_could_leave_the_tree_is_refused() {
        let limits = Limits::default();
        let long = "a/".repeat(3000) + "a";
        let wide = "a".repeat(256);
        let deep = "a/".repeat(40) + "a";
        for bad in [
            "",
            "/",
            "/etc/passwd",
            "..",
            "../x",
            "a/../b",
            "a/..",
            ".",
            "./a",
            "a/./b",
            "a//b",
            "a/",
            "a\0b",
            "a\nb",
            "a\x1bb",
            "a\u{85}b",
            &long,
            &wide,
            &deep,
        ] {
            assert!(check_path(bad, &limits).is_err(), "{bad:?}");
        }
        for good in [
            "a",
            "base/1/1259",
            "pg_tblspc/16384/PG_15_202209061/5/1",
            "..a",
            "a..",
            "ä b",
        ] {
            assert!(check_path(good, &limits).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn an_oid_has_one_spelling() {
        assert_eq!(parse_oid("16384"), Some(16384));
        assert_eq!(parse_oid("4294967295"), Some(u32::MAX));
        for bad in ["", "0", "01", "-1", "+1", "4294967296", "1a", " 1"] {
            assert_eq!(parse_oid(bad), None, "{bad:?}");
        }
    }
}
