//! Instant recoveries with real servers: published, copied under load, switched over; the original set aside and put back.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

mod recovery_support;
mod support;

use std::path::Path;

use agent::postgresql::process;
use common::agent::hand::{
    RecoveryAction, RecoveryResponse, Replace, ReplicationStatus, Request, SetAside,
};
use common::problem::ErrorCode;
use recovery_support::{Load, Walk, entries, psql, tree, wait_for};
use support::{Cluster, Published, account, as_postgres, directory, postgresql};

fn stop(cluster: &Cluster) {
    let data = cluster.root.path().join("data");
    as_postgres(
        &cluster.programs.join("pg_ctl"),
        &["-D", data.to_str().unwrap(), "-m", "fast", "-w", "stop"],
    );
}

fn set_aside(walk: &Walk) -> SetAside {
    match walk.twice(RecoveryAction::SetAside) {
        RecoveryResponse::SetAside(moved) => moved,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_published_instance_under_load_becomes_one_that_stays_and_no_row_is_lost() {
    for programs in postgresql() {
        let cluster = Cluster::start(&programs);
        let root = directory();
        let (data, space) = (root.path().join("data"), root.path().join("space"));
        let walk = Walk::begin(Published::of(&cluster), &data, &[&space]);
        walk.start_published();
        walk.published.value("ALTER SYSTEM SET work_mem = '7MB'");
        let load = walk.load();
        let RecoveryResponse::Checked {
            running_port,
            occupied,
        } = walk.ask(RecoveryAction::Check).unwrap()
        else {
            unreachable!()
        };
        assert_eq!((running_port, occupied.len()), (None, 0));
        assert!(!data.exists());
        let moved = set_aside(&walk);
        assert!(!moved.was_running && moved.moved.is_empty());
        walk.replicate();
        walk.start_standby();
        // Not in the copy and not in the WAL.
        walk.published
            .value("ALTER SYSTEM SET maintenance_work_mem = '33MB'");
        let switched = walk.switch_over();
        let acknowledged = load.acknowledged();

        let socket = cluster.root.path().join("s");
        let rows: u64 = walk
            .final_value(&socket, "SELECT count(*) FROM pgbench_history")
            .parse()
            .unwrap();
        assert!(
            (acknowledged..=acknowledged + Load::CLIENTS).contains(&rows),
            "{acknowledged} {rows}"
        );
        assert!(rows > 0);
        for (name, value) in [
            ("archive_mode", "on"),
            ("work_mem", "7MB"),
            ("maintenance_work_mem", "33MB"),
            ("shared_preload_libraries", "pg_stat_statements"),
            ("default_transaction_read_only", "off"),
            ("restore_command", ""),
        ] {
            wait_for(name, || {
                walk.final_value(&socket, &format!("SHOW {name}")) == value
            });
        }
        assert_eq!(
            walk.final_value(&socket, "SHOW data_directory"),
            data.to_str().unwrap()
        );
        let location = walk.final_value(
            &socket,
            "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'space'",
        );
        assert_eq!(location, space.to_str().unwrap());
        assert_eq!(
            walk.final_value(&socket, "SELECT count(*) FROM in_tablespace"),
            "1000"
        );
        walk.final_value(
            &socket,
            "CREATE TABLE written (x int); SELECT pg_switch_wal()",
        );
        let archive = cluster.root.path().join("archive");
        wait_for("the new timeline is archived", || {
            archive.join("00000003.history").exists()
        });
        wait_for("WAL is archived", || {
            let names = entries(&archive);
            names.iter().any(|n| {
                n.file_name()
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .starts_with("0000000300")
            })
        });
        assert!(
            switched.manager.contains("pg_ctl -D"),
            "{}",
            switched.manager
        );
        for words in ["port is", "no_such_library", "take a backup"] {
            assert!(
                switched.remarks.iter().any(|r| r.contains(words)),
                "{words}"
            );
        }
        let removal = RecoveryAction::RemoveStandby { instance: None };
        assert_eq!(
            walk.ask(removal).unwrap_err().code,
            ErrorCode::NotPossibleNow
        );
    }
}

#[test]
fn the_instance_that_stays_takes_no_timeline_that_its_archive_has() {
    for programs in postgresql() {
        let cluster = Cluster::start(&programs);
        let root = directory();
        let (data, space) = (root.path().join("data"), root.path().join("space"));
        let walk = Walk::begin(Published::of(&cluster), &data, &[&space]);
        walk.start_published();
        let archive = cluster.root.path().join("archive");
        // Of an instance that nobody here knows; and a program that hands out what there is.
        std::fs::write(
            archive.join("00000003.history"),
            "1\t0/1000000\tno reason\n",
        )
        .unwrap();
        let fetch = format!("cp ''{}/%f'' %p", archive.display());
        walk.published
            .value(&format!("ALTER SYSTEM SET restore_command = '{fetch}'"));
        set_aside(&walk);
        walk.replicate();
        walk.start_standby();
        let switched = walk.switch_over();
        assert_eq!(switched.timeline, 4, "{:?}", switched.remarks);
        let socket = cluster.root.path().join("s");
        wait_for("the original's restore_command is back", || {
            walk.final_value(&socket, "SHOW restore_command") == fetch.replace("''", "'")
        });
        wait_for("the new timeline is archived", || {
            archive.join("00000004.history").exists()
        });
    }
}

#[test]
fn an_instance_published_before_the_original_was_set_aside_leads_to_no_timeline_of_it_either() {
    let programs = postgresql().remove(0);
    let cluster = Cluster::start(&programs);
    stop(&cluster);
    let root = cluster.root.path();
    let (data, space) = (root.join("data"), root.join("space"));
    let walk = Walk::begin(Published::of(&cluster), &data, &[&space]);
    walk.start_published();
    // The published instance has timeline 2, and the original had 3 by then.
    std::fs::write(
        data.join("pg_wal/00000003.history"),
        "1\t0/1000000\tno reason\n",
    )
    .unwrap();
    set_aside(&walk);
    walk.replicate();
    walk.start_standby();
    assert_eq!(walk.switch_over().timeline, 4);
}

#[test]
fn an_original_that_is_set_aside_and_put_back_is_as_it_was_to_the_last_byte() {
    for programs in postgresql() {
        let cluster = Cluster::start(&programs);
        stop(&cluster);
        let (data, space) = (
            cluster.root.path().join("data"),
            cluster.root.path().join("space"),
        );
        let before = (tree(&data), tree(&space));
        let walk = Walk::begin(Published::of(&cluster), &data, &[&space]);
        walk.start_published();
        let moved = set_aside(&walk);
        assert_eq!((moved.was_running, moved.moved.len()), (false, 2));
        let aside = |path: &Path| {
            moved
                .moved
                .iter()
                .find(|(from, _)| from == path)
                .unwrap()
                .1
                .clone()
        };
        assert_eq!((tree(&aside(&data)), tree(&aside(&space))), before);
        walk.replicate();
        walk.start_standby();
        let removal = Request::RemoveSession {
            place: walk.published.place.clone(),
        };
        assert_eq!(
            walk.published.answer(removal).unwrap_err().code,
            ErrorCode::CacheInUse
        );
        let early = walk.ask(RecoveryAction::PutBack).unwrap_err();
        assert_eq!(early.code, ErrorCode::NotPossibleNow);
        let instance = Some(walk.instance());
        walk.twice(RecoveryAction::RemoveStandby { instance });
        assert_eq!(
            walk.published
                .value("SELECT count(*) FROM pg_replication_slots"),
            "0"
        );
        assert_eq!((entries(&data).len(), entries(&space).len()), (0, 0));
        walk.twice(RecoveryAction::PutBack);
        assert_eq!((tree(&data), tree(&space)), before);
        assert!(!aside(&data).exists() && !aside(&space).exists());
        // And once more: a cancelled recovery leaves nothing in the way of the next.
        set_aside(&walk);
        walk.twice(RecoveryAction::PutBack);
        assert_eq!((tree(&data), tree(&space)), before);
    }
}

#[test]
fn an_original_that_ran_is_stopped_and_runs_again_when_it_is_put_back() {
    for programs in postgresql() {
        let cluster = Cluster::start(&programs);
        let (data, space, socket) = (
            cluster.root.path().join("data"),
            cluster.root.path().join("space"),
            cluster.root.path().join("s"),
        );
        let ask = |sql: &str| psql(&programs, &socket, cluster.port, sql);
        // The backup has it; the original could not start with it.
        ask("ALTER SYSTEM RESET shared_preload_libraries");
        let walk = Walk::begin(Published::of(&cluster), &data, &[&space]);
        let RecoveryResponse::Checked {
            running_port,
            occupied,
        } = walk.ask(RecoveryAction::Check).unwrap()
        else {
            unreachable!()
        };
        assert_eq!((running_port, occupied.len()), (Some(cluster.port), 2));
        let moved = set_aside(&walk);
        assert!(moved.was_running && moved.manager.unwrap().contains("pg_ctl"));
        let aside = &moved
            .moved
            .iter()
            .find(|(from, _)| *from == data)
            .unwrap()
            .1;
        assert!(!aside.join("postmaster.pid").exists());
        walk.twice(RecoveryAction::PutBack);
        walk.wait_until_up(&socket, cluster.port);
        assert_eq!(ask("SELECT count(*) FROM in_tablespace"), "1000");
    }
}

#[test]
fn a_copy_that_was_killed_begins_again_over_its_leftovers() {
    let programs = postgresql().remove(0);
    let cluster = Cluster::start(&programs);
    let root = directory();
    let (data, space) = (root.path().join("data"), root.path().join("space"));
    let walk = Walk::begin(Published::of(&cluster), &data, &[&space]);
    walk.start_published();
    walk.published
        .value("CREATE TABLE big AS SELECT g, repeat('x', 500) FROM generate_series(1, 300000) g");
    set_aside(&walk);
    walk.begin_replication();
    wait_for("something is copied", || data.join("base").exists());
    let argument = format!("--pgdata={}", data.display());
    let copying = process::with_argument("pg_basebackup", &argument, account().uid);
    process::kill_all(&copying, rustix::process::Signal::KILL);
    wait_for("the copy has failed", || {
        matches!(walk.replication(), ReplicationStatus::Failed { .. })
    });
    assert!(!entries(&data).is_empty());
    walk.replicate();
    walk.start_standby();
    let instance = Some(walk.instance());
    walk.twice(RecoveryAction::RemoveStandby { instance });
    assert!(
        !data.exists() && !space.exists(),
        "what was not there is there"
    );
}

#[test]
fn read_only_is_for_all_that_begins_and_is_taken_back() {
    let programs = postgresql().remove(0);
    let cluster = Cluster::start(&programs);
    let root = directory();
    let (data, space) = (root.path().join("data"), root.path().join("space"));
    let walk = Walk::begin(Published::of(&cluster), &data, &[&space]);
    walk.start_published();
    walk.published.value("CREATE TABLE t (x int)");
    let load = walk.load();
    wait_for("the load has begun", || {
        walk.published.value("SELECT count(*) FROM pgbench_history") != "0"
    });
    let mut defiant = walk.session("SET default_transaction_read_only = off; SELECT pg_sleep(300)");
    let asleep = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%sleep(300)' AND pid <> pg_backend_pid()";
    wait_for("a session that defies", || {
        walk.published.value(asleep) == "1"
    });
    assert!(walk.freeze() >= 1);
    assert!(!defiant.wait().unwrap().success());
    load.acknowledged();
    let refused = walk
        .published
        .query("INSERT INTO t VALUES (1)")
        .unwrap_err();
    assert!(refused.message.contains("read-only"), "{refused}");
    let instance = walk.instance();
    walk.twice(RecoveryAction::Thaw {
        instance: instance.clone(),
    });
    wait_for("writes are taken", || {
        walk.published.query("INSERT INTO t VALUES (1)").is_ok()
    });
    walk.freeze();
    walk.published.stop();
    walk.twice(RecoveryAction::Thaw { instance });
    wait_for("writes are taken", || {
        walk.published.query("INSERT INTO t VALUES (2)").is_ok()
    });
}

#[test]
fn directories_that_cannot_be_used_are_refused_before_anything_is_touched() {
    let programs = postgresql().remove(0);
    let cluster = Cluster::start(&programs);
    let root = directory();
    let (data, space) = (root.path().join("data"), root.path().join("space"));
    let mut walk = Walk::begin(Published::of(&cluster), &data, &[&space]);
    let roots = root.path().join("roots");
    std::fs::create_dir(&roots).unwrap();
    let original = cluster.root.path().join("data");
    let session = walk.published.place.session_directory();
    for (path, expected) in [
        (
            Path::new("relative/data").to_owned(),
            ErrorCode::InvalidField,
        ),
        (root.path().join("a/../b"), ErrorCode::InvalidField),
        (root.path().join("no/parent"), ErrorCode::InvalidField),
        (session.join("data"), ErrorCode::InvalidField),
        (space.join("data"), ErrorCode::InvalidField),
        (roots, ErrorCode::PermissionDenied),
        (original, ErrorCode::DirectoryNotEmpty),
    ] {
        walk.final_place.data_directory = path.clone();
        walk.final_place.replace = Replace::Never;
        for action in [RecoveryAction::Check, RecoveryAction::SetAside] {
            let problem = walk.ask(action).unwrap_err();
            assert_eq!(problem.code, expected, "{}: {problem}", path.display());
        }
    }
    walk.final_place.data_directory = data.clone();
    assert!(!data.exists() && !space.exists());
}

#[test]
fn setting_aside_and_putting_back_go_on_wherever_they_were_killed() {
    let programs = postgresql().remove(0);
    let cluster = Cluster::start(&programs);
    stop(&cluster);
    let (data, space) = (
        cluster.root.path().join("data"),
        cluster.root.path().join("space"),
    );
    let before = (tree(&data), tree(&space));
    let walk = Walk::begin(Published::of(&cluster), &data, &[&space]);
    let record = walk.record_path();
    let moved = set_aside(&walk).moved;
    let written = std::fs::read(&record).unwrap();
    for killed in 0..4 {
        let (from, to) = &moved[killed / 2];
        std::fs::write(&record, &written).unwrap();
        // Killed after its new directory was to be made, or before the old one was renamed.
        std::fs::remove_dir(from).unwrap();
        if killed % 2 == 1 {
            std::fs::rename(to, from).unwrap();
        }
        assert_eq!(set_aside(&walk).moved, moved);
        assert!(
            moved
                .iter()
                .all(|(from, to)| entries(from).is_empty() && to.exists())
        );
    }
    for (from, to) in &moved {
        // Killed after one came back, before it was written down.
        std::fs::write(&record, &written).unwrap();
        if to.exists() {
            std::fs::rename(to, from).unwrap();
        }
        walk.twice(RecoveryAction::PutBack);
        assert_eq!((tree(&data), tree(&space)), before);
    }
}

#[test]
fn settling_goes_on_wherever_it_was_killed_and_never_recovers_twice() {
    let programs = postgresql().remove(0);
    let cluster = Cluster::start(&programs);
    let root = directory();
    let (data, space) = (root.path().join("data"), root.path().join("space"));
    let walk = Walk::begin(Published::of(&cluster), &data, &[&space]);
    walk.start_published();
    set_aside(&walk);
    walk.replicate();
    walk.start_standby();
    walk.stop_both();
    let settle = || {
        let instance = walk.instance();
        walk.ask(RecoveryAction::Settle { instance })
    };
    let first = settle().unwrap();
    let configured = tree(&data);
    walk.edit_record(|record| record["settling"] = record["settled"].take());
    for again in ["standby.signal", "postgresql.auto.conf"] {
        // As it was before the one or the other was done.
        as_postgres(
            Path::new("/usr/bin/touch"),
            &[data.join(again).to_str().unwrap()],
        );
        assert_eq!(settle().unwrap(), first);
        walk.edit_record(|record| record["settling"] = record["settled"].take());
    }
    assert!(!data.join("standby.signal").exists() && data.join("recovery.signal").exists());
    assert_eq!(configured.lines().count(), tree(&data).lines().count());
    // The host has started it before we wrote down that it is settled.
    settle().unwrap();
    let instance = walk.instance();
    walk.twice(RecoveryAction::StartFinal { instance });
    wait_for("recovery has ended", || {
        !data.join("recovery.signal").exists()
    });
    walk.edit_record(|record| record["settling"] = record["settled"].take());
    assert_eq!(settle().unwrap(), first);
    assert!(!data.join("recovery.signal").exists());
}

#[test]
fn an_instance_that_stays_and_was_killed_before_it_took_its_timeline_takes_one_at_the_next_start() {
    for programs in postgresql() {
        for started_by_host in [false, true] {
            let cluster = Cluster::start(&programs);
            let root = directory();
            let (data, space) = (root.path().join("data"), root.path().join("space"));
            let walk = Walk::begin(Published::of(&cluster), &data, &[&space]);
            walk.start_published();
            walk.replicate();
            walk.start_standby();
            let published_on = walk.stop_both();
            let instance = walk.instance();
            walk.twice(RecoveryAction::Settle { instance });
            // The end of recovery removes the signal and writes the new history before it goes over.
            std::fs::remove_file(data.join("recovery.signal")).unwrap();
            let history = data.join(format!("pg_wal/{:08X}.history", published_on + 1));
            std::fs::write(&history, "2\t0/0\tkilled\n").unwrap();
            if started_by_host {
                let (data, log) = (data.to_str().unwrap(), data.join("log/host.log"));
                let start = ["-D", data, "-w", "-l", log.to_str().unwrap(), "start"];
                as_postgres(&programs.join("pg_ctl"), &start);
            }
            let timeline = walk.start_final();
            assert_eq!(timeline, published_on + 2, "{started_by_host}");
        }
    }
}
