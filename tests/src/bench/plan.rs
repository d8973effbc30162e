//! Every line of the table, and how large what is measured is.

use super::line::{Better, Goal, Spec};

pub mod repositories;

/// Lines that are measured together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// From the command to the first query.
    FirstQuery,
    /// The same with very much in the backup.
    Terabyte,
    /// Transactions on the disk.
    Throughput,
    /// Transactions with everything in memory.
    CpuBound,
    /// A sequential scan.
    Scan,
    /// `pg_basebackup`.
    BaseBackup,
    /// An instant recovery's switchover.
    Switchover,
    /// Memory of the agent.
    Memory,
    /// The broker's way.
    Commands,
    /// From the command to the first query, from repositories of other tools.
    RepositoryFirstQuery,
    /// Pages and whole files of each layout of a repository.
    RepositoryReads,
    /// Memory that a repository's lists and maps take.
    RepositoryMemory,
}

/// How large, how long, how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizes {
    /// Scales of pgbench, ascending.
    pub scales: [u32; 3],
    /// Rounds of everything that takes seconds.
    pub rounds: usize,
    /// Rounds of the large instance.
    pub terabyte_rounds: usize,
    /// Segments of 1 GiB in the large instance.
    pub segments: u32,
    /// Small files in the large instance.
    pub small_files: u32,
    /// Scale of transactions, of the scan and of `pg_basebackup`.
    pub load_scale: u32,
    /// One measured run of transactions, in seconds.
    pub load_s: u64,
    /// The first minute, in seconds.
    pub cold_s: u64,
    /// Scale of what is in memory.
    pub cpu_scale: u32,
    /// Files in the backup of which memory is measured.
    pub memory_files: u32,
    /// Commands that are sent at once.
    pub burst_commands: usize,
    /// Commands that are sent one after the other.
    pub single_commands: usize,
    /// Scales of pgbench in repositories of other tools, ascending.
    pub repository_scales: [u32; 2],
    /// Rounds of everything about such repositories.
    pub repository_rounds: usize,
    /// Data of which pages and files are read in each layout, in MiB.
    pub layout_mib: u32,
    /// Pages that are read at random in one round.
    pub page_count: usize,
    /// Files in the manifest of which memory is measured.
    pub manifest_files: u32,
    /// Block maps of which memory is measured, in MiB as they are stored.
    pub map_mib: u32,
}

impl Sizes {
    /// What the goals are about.
    pub fn full() -> Self {
        Self {
            scales: [10, 100, 300],
            rounds: 3,
            terabyte_rounds: 2,
            segments: 1000,
            small_files: 300_000,
            load_scale: 100,
            load_s: 30,
            cold_s: 60,
            cpu_scale: 10,
            memory_files: 100_000,
            burst_commands: 1000,
            single_commands: 500,
            repository_scales: [10, 100],
            repository_rounds: 3,
            layout_mib: 1024,
            page_count: 3000,
            manifest_files: 1_000_000,
            map_mib: 500,
        }
    }

    /// All of it in less than ten minutes.
    pub fn quick() -> Self {
        Self {
            scales: [5, 20, 50],
            rounds: 2,
            terabyte_rounds: 1,
            segments: 1000,
            small_files: 30_000,
            load_scale: 20,
            load_s: 3,
            cold_s: 5,
            cpu_scale: 5,
            memory_files: 20_000,
            burst_commands: 200,
            single_commands: 100,
            repository_scales: [1, 5],
            repository_rounds: 1,
            layout_mib: 96,
            page_count: 300,
            manifest_files: 200_000,
            map_mib: 10,
        }
    }

    /// Whether it works at all.
    pub fn tiny() -> Self {
        Self {
            scales: [1, 2, 3],
            rounds: 1,
            terabyte_rounds: 1,
            segments: 20,
            small_files: 500,
            load_scale: 2,
            load_s: 1,
            cold_s: 2,
            cpu_scale: 1,
            memory_files: 500,
            burst_commands: 20,
            single_commands: 20,
            repository_scales: [1, 2],
            repository_rounds: 1,
            layout_mib: 32,
            page_count: 60,
            manifest_files: 5_000,
            map_mib: 1,
        }
    }
}

/// Formats of backups: name of the lines, and what restoring one natively is.
pub const FORMATS: [(&str, &str); 2] = [
    ("directory", "cp -a, then start"),
    ("tar", "tar x, then start"),
];

/// Loads of pgbench: name of the lines, and arguments.
pub const LOADS: [(&str, &[&str]); 2] = [("tpcb", &[]), ("select", &["-S"])];

/// The name of a line about the first query.
pub fn first_query_name(format: &str, scale: u32) -> String {
    format!("first-query/{format}/scale-{scale}")
}

/// Every line.
pub fn lines(sizes: &Sizes) -> Vec<Spec> {
    let mut lines = Vec::new();
    first_query(sizes, &mut lines);
    let mut add = |name: &str, group, unit, better, peer_name, goal| {
        lines.push(Spec {
            name: name.to_owned(),
            group,
            unit,
            better,
            peer_name,
            goal,
        });
    };
    use Better::{Higher, Lower};
    add(
        "first-query/terabyte",
        Group::Terabyte,
        "s",
        Lower,
        Some("cp -a (sparse), then start"),
        Some(Goal::OursAtMost(5.0)),
    );
    for (load, _) in LOADS {
        for (state, least) in [("hydrated", 0.95), ("warm", 0.85), ("first-minute", 0.5)] {
            add(
                &format!("{load}/{state}"),
                Group::Throughput,
                "tps",
                Higher,
                Some("native"),
                Some(Goal::RatioAtLeast(least)),
            );
        }
    }
    for (load, least) in [("select", 0.95), ("update", 0.90)] {
        add(
            &format!("cpu/{load}"),
            Group::CpuBound,
            "tps",
            Higher,
            Some("native on tmpfs"),
            Some(Goal::RatioAtLeast(least)),
        );
    }
    let near = Some(Goal::RatioAtLeast(0.9));
    let cold = Some("native, cold");
    add("scan/untouched", Group::Scan, "MiB/s", Higher, cold, near);
    add(
        "pg_basebackup/untouched",
        Group::BaseBackup,
        "MiB/s",
        Higher,
        cold,
        near,
    );
    let most = |most| Some(Goal::OursAtMost(most));
    let stopped = Some("stop, cp -a, start");
    for (pause, most_s) in [("writes", 5.0), ("service", 10.0)] {
        // As clients see it: no commit, no answer to a query.
        let name = format!("switchover/{pause}-pause");
        add(&name, Group::Switchover, "s", Lower, stopped, most(most_s));
        // As the session reports it.
        let name = format!("switchover/{pause}-pause-reported");
        add(&name, Group::Switchover, "s", Lower, None, most(most_s));
    }
    add("memory/peak", Group::Memory, "MiB", Lower, None, most(64.0));
    // A tenth is what allocators move to and fro.
    add("memory/growth", Group::Memory, "x", Lower, None, most(1.1));
    add(
        "commands/rate",
        Group::Commands,
        "per s",
        Higher,
        None,
        None,
    );
    add(
        "commands/accepted-p99",
        Group::Commands,
        "ms",
        Lower,
        None,
        None,
    );
    repositories::add_lines(sizes, &mut lines);
    lines
}

fn first_query(sizes: &Sizes, lines: &mut Vec<Spec>) {
    for (format, peer_name) in FORMATS {
        let mut add = |name: String, unit, goal| {
            lines.push(Spec {
                name,
                group: Group::FirstQuery,
                unit,
                better: Better::Lower,
                peer_name: Some(peer_name),
                goal: Some(goal),
            });
        };
        let [small, middle, large] = sizes.scales;
        for scale in [small, middle] {
            add(first_query_name(format, scale), "s", Goal::OursAtMost(3.0));
        }
        add(
            first_query_name(format, large),
            "s",
            Goal::OursAtMostAndRatioAtLeast(3.0, 10.0),
        );
        // The slowest of the scales over the fastest.
        add(
            format!("first-query/{format}/flatness"),
            "x",
            Goal::OursAtMost(1.2),
        );
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_line_has_a_name_of_its_own() {
        for sizes in [Sizes::full(), Sizes::quick(), Sizes::tiny()] {
            let lines = lines(&sizes);
            let names: BTreeSet<&str> = lines.iter().map(|line| line.name.as_str()).collect();
            assert_eq!(names.len(), lines.len());
            assert_eq!(lines.len(), 27 + 8 + 12 + 3 + 2);
        }
    }
}
