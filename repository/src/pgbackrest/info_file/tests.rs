use super::*;

/// An info file of these lines, with its head and checksum.
pub(crate) fn sealed(lines: &[(&str, &str, &str)]) -> String {
    let mut sum = InfoSum::default();
    let mut text = String::new();
    let mut last = String::new();
    let head = [
        ("backrest", "backrest-format", "5"),
        ("backrest", "backrest-version", "\"2.55\""),
    ];
    for &(section, key, value) in head.iter().chain(lines) {
        if last != section {
            text += &format!("\n[{section}]\n");
            section.clone_into(&mut last);
        }
        text += &format!("{key}={value}\n");
        let line = InfoLine {
            section,
            key,
            value,
        };
        sum.add(line);
    }
    let sum = sum.finish();
    format!(
        "{}\n[backrest]\nbackrest-checksum=\"{sum}\"\n",
        text.trim_start()
    )
}

fn lines_of(text: &str) -> Result<Vec<(String, String, String)>, RepositoryError> {
    let mut lines = Vec::new();
    let version = read_info(text.as_bytes(), "backup.info", &mut |line| {
        lines.push((line.section.into(), line.key.into(), line.value.into()));
        Ok(())
    })?;
    assert_eq!(version, "2.55");
    Ok(lines)
}

#[test]
fn a_key_may_hold_whatever_a_file_name_may() {
    let keys = [
        "pg_data/=equal=more===",
        "=",
        "#",
        "[",
        " mail\t",
        "a\\b\"c",
        "x={\"size\":1",
        "pg_data/ä",
        "[a]=[b]",
    ];
    let wanted: Vec<_> = keys.iter().map(|key| ("db", *key, "{\"a\":[1]}")).collect();
    let found = lines_of(&sealed(&wanted)).unwrap();
    let found: Vec<_> = found.iter().map(|(_, key, _)| key.as_str()).collect();
    assert_eq!(found, keys);
}

// Written by pgBackRest 2.55.1.
#[test]
fn the_checksum_is_the_one_that_pgbackrest_writes() {
    let text = include_str!("archive.info");
    let mut count = 0;
    let version = read_info(text.as_bytes(), "archive.info", &mut |_| {
        count += 1;
        Ok(())
    });
    assert_eq!((version.unwrap().as_str(), count), ("2.55.1", 4));
}

#[test]
fn a_changed_or_cut_file_is_refused() {
    let text = sealed(&[("a", "k", "1"), ("b", "l", "\"x\"")]);
    assert_eq!(lines_of(&text).unwrap().len(), 2);
    for (from, to) in [("k=1", "k=2"), ("[b]", "[c]"), ("l=", "m=")] {
        assert!(lines_of(&text.replace(from, to)).is_err(), "{from}");
    }
    for length in 0..text.len() {
        assert!(lines_of(&text[..length]).is_err(), "{length}");
    }
    assert!(lines_of(&format!("{text}k=1\n")).is_err());
    let other = text.replace("backrest-format=5", "backrest-format=6");
    assert!(matches!(
        lines_of(&other).unwrap_err(),
        RepositoryError::Unsupported { .. }
    ));
}
