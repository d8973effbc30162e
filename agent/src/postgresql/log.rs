//! What the session's PostgreSQL log tells.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Most bytes of the log's end that are looked at.
const TAIL_BYTES_MAX: u64 = 256 * 1024;

/// The last lines of a log; empty if there is none.
pub fn tail(path: &Path) -> Vec<String> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(size.saturating_sub(TAIL_BYTES_MAX)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    String::from_utf8_lossy(&bytes)
        .lines()
        .map(str::to_owned)
        .collect()
}

/// The last `count` of the lines.
pub fn last(lines: &[String], count: usize) -> Vec<String> {
    let skip = lines.len().saturating_sub(count);
    lines.iter().skip(skip).cloned().collect()
}

/// Time of the last transaction that recovery replayed, RFC 3339.
pub fn last_transaction_at(lines: &[String]) -> Option<String> {
    let text = last_after(lines, "last completed transaction was at log time ")?;
    let time: jiff::Timestamp = text.trim().parse().ok()?;
    Some(time.to_string())
}

/// Where redo ended, `X/X`.
pub fn redo_done_at(lines: &[String]) -> Option<String> {
    let text = last_after(lines, "redo done at ")?;
    Some(text.split_whitespace().next()?.to_owned())
}

fn last_after(lines: &[String], words: &str) -> Option<String> {
    lines
        .iter()
        .rev()
        .find_map(|line| Some(line.split_once(words)?.1.to_owned()))
}

/// Names of the parameters that the server refused, with the reason.
pub fn refused_parameters(text: &str) -> Vec<(String, String)> {
    let mut refused: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        let Some(reason) = ["LOG:  ", "WARNING:  ", "ERROR:  ", "FATAL:  "]
            .iter()
            .find_map(|level| Some(line.split_once(level)?.1))
        else {
            continue;
        };
        let named = [
            "unrecognized configuration parameter \"",
            "invalid value for parameter \"",
            "parameter \"",
        ]
        .iter()
        .find_map(|start| reason.strip_prefix(start)?.split('"').next());
        let named = named.or_else(|| {
            // "8 kB is outside the valid range for parameter "wal_buffers" (…)"
            reason.split_once("for parameter \"")?.1.split('"').next()
        });
        if let Some(name) = named
            && !refused.iter().any(|(known, _)| known == name)
        {
            refused.push((name.to_ascii_lowercase(), reason.to_owned()));
        }
    }
    refused
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_tells_where_recovery_ended() {
        let lines: Vec<String> = [
            "2026-01-01 00:00:00 UTC [1] LOG:  redo done at 0/2000100 system usage: CPU: user: 0.00 s",
            "2026-01-01 00:00:00 UTC [1] LOG:  last completed transaction was at log time 2021-05-20 13:41:24.526446+00",
        ]
        .map(str::to_owned)
        .into();
        assert_eq!(redo_done_at(&lines).as_deref(), Some("0/2000100"));
        let at = last_transaction_at(&lines);
        assert_eq!(at.as_deref(), Some("2021-05-20T13:41:24.526446Z"));
    }

    #[test]
    fn refused_parameters_are_named() {
        for (line, name) in [
            (
                "LOG:  unrecognized configuration parameter \"vacuum_defer_cleanup_age\" in file \"/x\" line 3",
                "vacuum_defer_cleanup_age",
            ),
            (
                "2026 [3] LOG:  invalid value for parameter \"lc_monetary\": \"xx_XX\"",
                "lc_monetary",
            ),
            (
                "LOG:  8 is outside the valid range for parameter \"work_mem\" (64 .. 2147483647)",
                "work_mem",
            ),
            (
                "LOG:  parameter \"data_directory_mode\" cannot be changed",
                "data_directory_mode",
            ),
        ] {
            assert_eq!(refused_parameters(line)[0].0, name);
        }
        assert!(refused_parameters("FATAL:  configuration file \"/x\" contains errors").is_empty());
    }
}
