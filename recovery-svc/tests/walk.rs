//! Random walks of the state machine over the real SQLite journal, which is closed and opened again at random points: what is read back is what was in memory,
//! messages and numbers included.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests, which may panic"
)]

use common::agent::hand::Replace;
use common::env::Env;
use common::ids::*;
use common::journal::{Journal, JournalError, LogEntry, Record, RecordKey};
use common::messages::*;
use common::problem::{ErrorCode, Problem};
use common::session::*;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Move {
    StepDone,
    StepFailed(bool),
    Stale,
    Retry,
    RetryDue,
    Cancel,
    Unpublish,
    UndoDone,
    UndoFailed,
    Lost,
    Switchover,
    Warning(bool),
    /// The service is killed and begins again.
    Reopen,
    /// It is killed within a commit.
    TornCommit,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        12 => Just(Move::StepDone),
        2 => any::<bool>().prop_map(Move::StepFailed),
        1 => Just(Move::Stale),
        2 => Just(Move::Retry),
        2 => Just(Move::RetryDue),
        1 => Just(Move::Cancel),
        1 => Just(Move::Unpublish),
        3 => Just(Move::UndoDone),
        1 => Just(Move::UndoFailed),
        1 => Just(Move::Lost),
        2 => Just(Move::Switchover),
        1 => any::<bool>().prop_map(Move::Warning),
        2 => Just(Move::Reopen),
        1 => Just(Move::TornCommit),
    ];
    proptest::collection::vec(one, 1..60)
}

fn problem(permanent: bool) -> Problem {
    let code = if permanent {
        ErrorCode::CorruptBackup
    } else {
        ErrorCode::TargetUnreachable
    };
    Problem::new(code, "it failed", "mend it")
}

fn kinds() -> impl Strategy<Value = SessionKind> {
    prop_oneof![
        Just(SessionKind::Publish),
        Just(SessionKind::Mount),
        Just(SessionKind::Recover)
    ]
}

fn begin(kind: SessionKind, automatic_max: u32) -> (SessionState, Vec<Effect>) {
    let id: CommandId = "0190b5a8-7c3a-7def-8123-456789abcdef".parse().unwrap();
    let place = common::agent::hand::SessionPlace {
        session_id: id.into(),
        mount_root: "/tmp/pginstant".into(),
        cache_root: "/var/tmp/pginstant".into(),
        os_user: OsUser::new("postgres").unwrap(),
    };
    accept(Accept {
        session_id: id.into(),
        command_id: id,
        spec: SessionSpec {
            hydrate: None,
            recovery_target: RecoveryTarget::Latest,
            kind,
            repository: RepositoryName::new("r").unwrap(),
            backup: None,
            target: TargetName::new("t").unwrap(),
            place,
            port: Some(5999),
            reason: None,
            recovery: (kind == SessionKind::Recover).then(|| RecoverySpec {
                data_directory: "/srv/pg".into(),
                tablespaces: [(16_400, "/srv/ts".into())].into(),
                replace: Replace::MoveAside,
                lag_max_bytes: 1,
            }),
        },
        switchover: SwitchoverMode::Manual,
        retry: RetryPolicy {
            automatic_max,
            every_s: 300,
        },
    })
}

fn input(state: &SessionState, chosen: &Move) -> Option<Input> {
    let epoch = state.epoch;
    let step = state.step().unwrap_or(Step::Validate);
    let what = match &state.phase {
        Phase::Undoing { pending, .. } => pending[0],
        _ => Undo::ReleaseMount,
    };
    let done = |epoch| Input::StepDone {
        step,
        epoch,
        outcome: StepOutcome::Done,
        duration_ms: 1,
    };
    Some(match chosen {
        Move::StepDone => done(epoch),
        Move::Stale => done(epoch.saturating_sub(1)),
        Move::StepFailed(permanent) => Input::StepFailed {
            step,
            epoch,
            problem: problem(*permanent),
        },
        Move::Retry => Input::Retry,
        Move::RetryDue => Input::RetryDue {
            attempt: state.attempt + 1,
            epoch,
        },
        Move::Cancel => Input::Cancel,
        Move::Unpublish => Input::Unpublish,
        Move::UndoDone => Input::UndoDone { what, epoch },
        Move::UndoFailed => Input::UndoFailed {
            what,
            epoch,
            problem: problem(false),
        },
        Move::Switchover => Input::Switchover(SwitchoverOrder::Now),
        Move::Lost => Input::InstanceLost {
            epoch,
            problem: problem(false),
        },
        Move::Warning(on) => Input::MountWarning {
            code: WarningCode::BaseUnreachable,
            text: on.then(|| "x".to_owned()),
        },
        Move::Reopen | Move::TornCommit => return None,
    })
}

fn key() -> RecordKey {
    RecordKey {
        kind: "session",
        id: "s".to_owned(),
    }
}

/// Writes a transition as the service does: state, numbered events, in one commit.
async fn write(journal: &Journal, state: SessionState, effects: Vec<Effect>, torn: bool) {
    let result = journal
        .commit(move |t| {
            t.put_record(&key(), &state, state.is_ended())?;
            for effect in effects {
                if let Effect::Emit(body, _) = effect {
                    let sequence = t.next_sequence("s")?;
                    let entry = LogEntry {
                        at: jiff::Timestamp::UNIX_EPOCH,
                        sequence,
                        event_type: body.type_name().to_owned(),
                        text: String::new(),
                    };
                    t.append_log("s", &entry)?;
                }
            }
            if torn {
                return Err(JournalError::Closing);
            }
            Ok(())
        })
        .await;
    assert_eq!(result.is_err(), torn);
}

async fn check(journal: &Journal, memory: &SessionState, told: &[&'static str]) {
    let (record, log) = journal
        .commit(|t| {
            let record: Record<SessionState> = t.record(&key())?.unwrap();
            Ok::<_, JournalError>((record, t.log("s", 10_000)?))
        })
        .await
        .unwrap();
    assert_eq!(&record.body, memory);
    assert_eq!(record.ended, memory.is_ended());
    let types: Vec<&str> = log.iter().map(|entry| entry.event_type.as_str()).collect();
    assert_eq!(types, told);
    let numbers: Vec<u64> = log.iter().map(|entry| entry.sequence).collect();
    assert_eq!(numbers, (1..=told.len() as u64).collect::<Vec<_>>());
}

fn types(effects: &[Effect]) -> impl Iterator<Item = &'static str> {
    effects.iter().filter_map(|effect| match effect {
        Effect::Emit(body, _) => Some(body.type_name()),
        _ => None,
    })
}

async fn walk(kind: SessionKind, automatic_max: u32, moves: Vec<Move>) {
    let directory = tempfile::tempdir().unwrap();
    let open = || Journal::open(directory.path(), Env::system()).unwrap();
    let mut journal = open();
    let (mut memory, effects) = begin(kind, automatic_max);
    let mut told: Vec<&'static str> = types(&effects).collect();
    write(&journal, memory.clone(), effects, false).await;
    for chosen in moves {
        let (given, torn) = match (&chosen, input(&memory, &chosen)) {
            (_, Some(input)) => (input, false),
            (Move::TornCommit, None) => (Input::Cancel, true),
            (_, None) => (Input::Restarted, false),
        };
        if matches!(chosen, Move::Reopen) {
            drop(journal);
            journal = open();
            check(&journal, &memory, &told).await;
        }
        let Ok((next, effects)) = apply(&memory, given) else {
            continue;
        };
        if !torn {
            told.extend(types(&effects));
            memory = next.clone();
        }
        write(&journal, next, effects, torn).await;
    }
    drop(journal);
    check(&open(), &memory, &told).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]
    #[test]
    fn what_the_journal_gives_back_is_what_was_in_memory(kind in kinds(), automatic_max in 0_u32..3, moves in moves()) {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(walk(kind, automatic_max, moves));
    }
}
