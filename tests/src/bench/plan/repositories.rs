//! The lines about repositories of other tools.

use super::{Group, Sizes};
use crate::bench::line::{Better, Goal, Spec};

/// Backups from which a first query is asked: name of the lines, and what restoring one natively is.
pub const FIRST_QUERIES: [(&str, &str); 4] = [
    ("pgbackrest-zst-blocks", "pgbackrest restore, then start"),
    ("pgbackrest-zst", "pgbackrest restore, then start"),
    ("pgbackrest-gz", "pgbackrest restore, then start"),
    ("barman", "barman recover, then start"),
];

/// Layouts of which pages are read at random.
pub const PAGE_LAYOUTS: [&str; 6] = ["none", "zst", "gz", "zst-blocks", "encrypted", "tar-gz"];

/// Codecs of whole files that are read from beginning to end.
pub const SCAN_CODECS: [&str; 3] = ["gz", "lz4", "zst"];

/// Percentiles of the time that a page takes.
pub const PERCENTILES: [u32; 2] = [50, 99];

/// Most memory that a list of a million files, or block maps, may take.
const MEMORY_MIB_MAX: f64 = 300.0;
/// Least speed of a scan against the codec's own.
const SCAN_RATIO_MIN: f64 = 0.8;

/// The name of a line about the first query.
pub fn first_query_name(backup: &str, scale: u32) -> String {
    format!("repository/first-query/{backup}/scale-{scale}")
}

/// The name of a line about pages at random.
pub fn page_name(layout: &str, percentile: u32) -> String {
    format!("repository/random-page/{layout}/p{percentile}")
}

/// The name of a line about whole files.
pub fn scan_name(codec: &str) -> String {
    format!("repository/scan/{codec}")
}

/// Memory of a manifest with very many files.
pub const MANIFEST_MEMORY: &str = "repository/memory/manifest";
/// Memory of very many block maps.
pub const MAP_MEMORY: &str = "repository/memory/block-maps";

pub(super) fn add_lines(sizes: &Sizes, lines: &mut Vec<Spec>) {
    for (backup, peer_name) in FIRST_QUERIES {
        for scale in sizes.repository_scales {
            lines.push(Spec {
                name: first_query_name(backup, scale),
                group: Group::RepositoryFirstQuery,
                unit: "s",
                better: Better::Lower,
                peer_name: Some(peer_name),
                goal: None,
            });
        }
    }
    for layout in PAGE_LAYOUTS {
        for percentile in PERCENTILES {
            lines.push(Spec {
                name: page_name(layout, percentile),
                group: Group::RepositoryReads,
                unit: "ms",
                better: Better::Lower,
                peer_name: Some("pread from a plain directory"),
                goal: None,
            });
        }
    }
    for codec in SCAN_CODECS {
        lines.push(Spec {
            name: scan_name(codec),
            group: Group::RepositoryReads,
            unit: "MiB/s",
            better: Better::Higher,
            peer_name: Some("the codec alone"),
            goal: Some(Goal::RatioAtLeast(SCAN_RATIO_MIN)),
        });
    }
    for name in [MANIFEST_MEMORY, MAP_MEMORY] {
        lines.push(Spec {
            name: name.to_owned(),
            group: Group::RepositoryMemory,
            unit: "MiB",
            better: Better::Lower,
            peer_name: None,
            goal: Some(Goal::OursAtMost(MEMORY_MIB_MAX)),
        });
    }
}
