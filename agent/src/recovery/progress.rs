//! What the log of `pg_basebackup --progress --verbose` tells.

/// Said last, when everything is copied and durable.
const COMPLETE: &str = "base backup completed";

/// Copied and total bytes, from the last line that has them: `  1024/47370 kB (2%), 0/1 tablespace`.
pub(super) fn bytes(lines: &[String]) -> Option<(u64, Option<u64>)> {
    lines.iter().rev().find_map(|line| {
        let (numbers, _) = line.split_once(" kB (")?;
        let numbers = numbers.split_whitespace().last()?;
        let (done, total) = numbers.split_once('/')?;
        let bytes = |text: &str| text.parse::<u64>().ok()?.checked_mul(1024);
        // The total was counted at the beginning: what has grown since makes the part larger than the whole.
        let done = bytes(done)?;
        Some((done, bytes(total).map(|total| total.max(done))))
    })
}

/// Whether it ended well.
pub(super) fn is_complete(lines: &[String]) -> bool {
    lines.iter().any(|line| line.ends_with(COMPLETE))
}

/// The lines that say why it failed: those of the progress are left out.
pub(super) fn words(lines: &[String]) -> Vec<String> {
    let is_progress = |line: &&String| line.contains(" kB (");
    lines
        .iter()
        .filter(|line| !is_progress(line))
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn the_last_line_with_numbers_tells_how_far_the_copy_is() {
        for (text, expected) in [
            ("pg_basebackup: waiting for checkpoint\n", None),
            (
                "    0/47370 kB (0%), 0/1 tablespace\n 1024/47370 kB (2%), 0/2 tablespaces (/x y)\n",
                Some((1 << 20, Some(47370 << 10))),
            ),
            (
                "50/40 kB (100%), 1/1 tablespace",
                Some((51200, Some(51200))),
            ),
        ] {
            assert_eq!(bytes(&lines(text)), expected, "{text}");
        }
    }

    #[test]
    fn only_the_last_word_means_that_everything_is_copied() {
        let begun =
            "pg_basebackup: initiating base backup\npg_basebackup: syncing data to disk ...";
        assert!(!is_complete(&lines(begun)));
        assert!(is_complete(&lines("pg_basebackup: base backup completed")));
        let failed = lines(" 1/2 kB (50%), 0/1 tablespace\npg_basebackup: error: lost");
        assert_eq!(words(&failed), ["pg_basebackup: error: lost"]);
    }
}
