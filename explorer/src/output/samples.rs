//! Sample data for the tests of what people read.

use common::bus::IncomingMessage;
use common::messages::{
    BackupList, BackupListed, CacheStatistics, ListedArchive, ListedKind, ListedRestoreInterval,
    Mounted, Published, SessionKind, SessionStatus, SessionSummary, Step, StepTiming, Waiting,
    WalGap,
};
use common::problem::{ErrorCode, Problem};

pub(crate) const ID: &str = "0190b5a8-7c3a-7def-8123-456789abcdef";
pub(crate) const OTHER_ID: &str = "0190b5a8-7c3a-7def-8123-556789abcdef";

pub(crate) fn problem() -> Problem {
    Problem::new(
        ErrorCode::InstanceFailed,
        "PostgreSQL on db1 ended with status 1",
        "look at its log, then retry",
    )
}

pub(crate) fn cache() -> CacheStatistics {
    CacheStatistics {
        cache_bytes: 3 << 29,
        files_complete: 3,
        files_partial: 2,
        files_local: 7,
        hydration_done_bytes: 1 << 30,
        hydration_total_bytes: 2 << 30,
        read_hits: 95,
        read_misses: 5,
        ..CacheStatistics::default()
    }
}

pub(crate) fn timings() -> Vec<StepTiming> {
    [
        (Step::Validate, 210),
        (Step::Mount, 480),
        (Step::Start, 1_250),
    ]
    .map(|(step, duration_ms)| StepTiming { step, duration_ms })
    .to_vec()
}

pub(crate) fn published() -> Published {
    Published {
        host: "db1.example.com".into(),
        port: 5433,
        socket_directory: format!("/var/tmp/pginstant/{ID}/socket").into(),
        data_directory: format!("/tmp/pginstant/{ID}/data").into(),
        version: "15.14".into(),
        backup: "base_2026-11-20".parse().unwrap(),
        timeline: 2,
        reached_lsn: "0/2000100".into(),
        reached_at: Some("2026-11-20T01:02:03Z".parse().unwrap()),
        steps: timings(),
    }
}

pub(crate) fn mounted() -> Mounted {
    Mounted {
        mount_point: format!("/tmp/pginstant/{ID}").into(),
        data_directory: format!("/tmp/pginstant/{ID}/data").into(),
        backup: "base_2026-11-20".parse().unwrap(),
        steps: timings().into_iter().take(2).collect(),
    }
}

pub(crate) fn waiting() -> Waiting {
    Waiting {
        step: Some(Step::Start),
        attempt: 2,
        automatic_retries_max: 0,
        next_attempt_at: None,
        problem: problem(),
    }
}

pub(crate) fn sessions() -> Vec<SessionSummary> {
    let first = SessionSummary {
        session_id: ID.parse().unwrap(),
        server: "backup1".parse().unwrap(),
        kind: SessionKind::Publish,
        status: SessionStatus::Published,
        step: None,
        repository: "main".parse().unwrap(),
        backup: Some("base_2026-11-20".parse().unwrap()),
        target: "db1".parse().unwrap(),
        port: Some(5433),
        started_at: "2026-11-21T04:00:00Z".parse().unwrap(),
        ended_at: None,
        attempt: 1,
        problem: None,
    };
    let second = SessionSummary {
        session_id: OTHER_ID.parse().unwrap(),
        status: SessionStatus::WaitingForManualRetry,
        step: Some(Step::Start),
        backup: None,
        port: None,
        attempt: 2,
        problem: Some(problem()),
        ..first.clone()
    };
    vec![first, second]
}

pub(crate) fn backup_list() -> BackupList {
    let first = BackupListed {
        repository: "main".parse().unwrap(),
        label: "base_2026-11-20".parse().unwrap(),
        format: "pg_basebackup plain".into(),
        kind: Some(ListedKind::Full),
        references: Vec::new(),
        postgresql_major: 15,
        started_at: Some("2026-11-20T01:00:00Z".parse().unwrap()),
        stopped_at: None,
        size_bytes: 3 << 29,
        file_count: 1204,
        tablespace_count: 1,
        recoverable: Some(ListedRestoreInterval {
            from_lsn: "0/2000100".into(),
            to_lsn: "0/2000100".into(),
            from: Some("2026-11-20T01:02:00Z".parse().unwrap()),
            to: None,
            archive: None,
        }),
        slow_layout: None,
    };
    let second = BackupListed {
        label: "old".parse().unwrap(),
        format: "pg_basebackup tar".into(),
        kind: None, // of a service that does not tell it
        postgresql_major: 14,
        started_at: None,
        size_bytes: 10_240,
        file_count: 3,
        tablespace_count: 0,
        recoverable: None,
        ..first.clone()
    };
    let [incremental, full] = of_pgbackrest(&first);
    BackupList {
        backups: vec![first, second, incremental, full],
        problems: vec![Problem::new(
            ErrorCode::UnreadableBackup,
            "repository cold: no such directory",
            "mount it, or correct its path in the configuration",
        )],
        truncated: false,
    }
}

/// The longest label that there is, and the one that it stands on.
fn of_pgbackrest(of: &BackupListed) -> [BackupListed; 2] {
    let archive = ListedArchive {
        last_segment: "000000010000000000000005".into(),
        timeline: 1,
        archived_at: Some("2026-11-22T01:02:00Z".parse().unwrap()),
        gap: None,
    };
    let recoverable = |gap| ListedRestoreInterval {
        from_lsn: "0/2000100".into(),
        to_lsn: "0/6000000".into(),
        from: None,
        to: None,
        archive: Some(ListedArchive {
            gap,
            ..archive.clone()
        }),
    };
    let full = BackupListed {
        repository: "rest".parse().unwrap(),
        label: "20261120-010000F".parse().unwrap(),
        format: "pgBackRest full".into(),
        stopped_at: Some("2026-11-20T01:30:00Z".parse().unwrap()),
        recoverable: Some(recoverable(Some(WalGap {
            first_missing: "000000010000000000000006".into(),
            next: "000000010000000000000008".into(),
        }))),
        slow_layout: Some("pages are slow to read at random; set repo-block=y".into()),
        ..of.clone()
    };
    let incremental = BackupListed {
        label: "20261120-010000F_20261121-230000I".parse().unwrap(),
        format: "pgBackRest incr".into(),
        kind: Some(ListedKind::Incr),
        references: vec![full.label.clone()],
        started_at: Some("2026-11-21T23:00:00Z".parse().unwrap()),
        stopped_at: Some("2026-11-21T23:59:59Z".parse().unwrap()),
        size_bytes: (1 << 40) - 1,
        recoverable: Some(recoverable(None)),
        ..full.clone()
    };
    [incremental, full]
}

pub(crate) fn parked() -> IncomingMessage {
    let headers = [
        ("x-reason", "the message is not a CloudEvent"),
        ("x-reason-code", "malformed_message"),
        ("x-remedy", "send what docs/asyncapi.yaml describes"),
        ("x-first-failed-at", "2026-11-21T04:00:00Z"),
        ("x-last-failed-at", "2026-11-21T04:00:00Z"),
        ("x-original-exchange", "cmd"),
        ("x-original-routing-key", "mount.backup1"),
        ("cloudEvents:id", ID),
    ];
    IncomingMessage {
        message_id: Some(ID.into()),
        type_name: Some("io.pginstant.command.publish.v1".into()),
        correlation_id: None,
        reply_to: None,
        exchange: String::new(),
        routing_key: "parked".into(),
        redelivered: false,
        delivery_count: None,
        headers: headers
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        stream_offset: None,
        body: b"{\"specversion\":\"0.3\"}".to_vec(),
    }
}
