//! A real backup of a real cluster, copied to a mount point, prepared, started, killed and started again through the hand.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use common::agent::hand::{InstanceStatus, Request, Response};
use common::problem::ErrorCode;
use support::{Cluster, Published, postgresql};

#[test]
fn a_published_instance_runs_on_its_own_timeline_harms_nobody_and_keeps_writes_over_a_crash() {
    for programs in postgresql() {
        let cluster = Cluster::start(&programs);
        let published = Published::of(&cluster);
        let prepared = published.prepare();
        assert_eq!(prepared.missing_libraries, ["no_such_library"]);
        published.start();
        let InstanceStatus::Ready {
            timeline,
            reached_lsn,
            ..
        } = published.wait_until_ready()
        else {
            unreachable!()
        };
        assert_eq!(timeline, 2);
        assert!(
            reached_lsn.contains('/') && reached_lsn != "0/0",
            "{reached_lsn}"
        );

        for (name, value) in [
            ("archive_mode", "off"),
            ("primary_conninfo", ""),
            ("shared_preload_libraries", "pg_stat_statements"),
            ("work_mem", "5MB"),
            ("maintenance_work_mem", "31MB"),
            ("max_connections", "123"),
        ] {
            assert_eq!(published.value(&format!("SHOW {name}")), value, "{name}");
        }
        assert_eq!(
            published.value("SELECT count(*) FROM in_tablespace"),
            "1000"
        );
        let place = published
            .value("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname='space'");
        assert!(
            place.starts_with(published.place.mount_point().to_str().unwrap()),
            "{place}"
        );

        published.value("CREATE TABLE kept (x int)");
        published.value("INSERT INTO kept VALUES (42)");
        published.value("ALTER SYSTEM SET archive_mode = 'on'");
        published.value("ALTER SYSTEM SET work_mem = '6MB'");
        published.value("SELECT pg_switch_wal()");
        published.kill_all();
        assert!(matches!(published.status(), InstanceStatus::Stopped { .. }));
        // A retry prepares again: an instance that has ended recovery must not go back into it.
        published.prepare();
        published.start();
        let again = published.wait_until_ready();
        assert!(
            matches!(&again, InstanceStatus::Ready { timeline: 2, reached_lsn: lsn, .. } if *lsn == reached_lsn),
            "{again:?}"
        );
        assert_eq!(published.value("SELECT x FROM kept"), "42");
        assert_eq!(published.value("SHOW archive_mode"), "off");
        assert_eq!(published.value("SHOW work_mem"), "6MB");

        published.stop();
        assert!(
            matches!(published.status(), InstanceStatus::Stopped { last_log_lines } if !last_log_lines.is_empty())
        );
        published.stop();
        published.start();
        published.wait_until_ready();
        published.start();
        let removal = published.answer(Request::RemoveSession {
            place: published.place.clone(),
        });
        assert_eq!(removal.unwrap_err().code, ErrorCode::CacheInUse);
        published.stop();
        assert_eq!(
            cluster.archived_of_published(),
            0,
            "the published instance archived WAL"
        );
    }
}

#[test]
fn settings_that_this_server_does_not_know_are_left_out_by_name() {
    let programs = postgresql().remove(0);
    let cluster = Cluster::start(&programs);
    let published = Published::of(&cluster);
    published.append_to_configuration(
        "a_removed_setting = on\nlc_monetary = 'xx_XX.nowhere'\nthis is no setting\n",
    );
    let prepared = published.prepare();
    for name in ["a_removed_setting", "lc_monetary", "line "] {
        assert!(
            prepared.remarks.iter().any(|r| r.contains(name)),
            "{name}: {:?}",
            prepared.remarks
        );
    }
    published.start();
    published.wait_until_ready();
    assert_eq!(published.value("SHOW work_mem"), "5MB");
    published.stop();
}

#[test]
fn a_port_in_use_a_wrong_version_and_an_unprepared_session_are_refused_clearly() {
    let programs = postgresql().remove(0);
    let cluster = Cluster::start(&programs);
    let mut published = Published::of(&cluster);
    let start = |published: &Published| {
        published
            .answer(Request::StartInstance {
                place: published.place.clone(),
                instance: published.options.clone(),
            })
            .unwrap_err()
            .code
    };
    assert_eq!(start(&published), ErrorCode::NotPossibleNow);
    published.prepare();
    let taken = std::net::TcpListener::bind(("127.0.0.1", published.options.port)).unwrap();
    assert_eq!(start(&published), ErrorCode::PortInUse);
    drop(taken);
    published.options.settings = BTreeMap::from([("archive_mode".into(), "on".into())]);
    let refused = published.answer(Request::Prepare {
        place: published.place.clone(),
        instance: published.options.clone(),
    });
    assert_eq!(refused.unwrap_err().code, ErrorCode::InvalidField);
    published.options.settings.clear();
    std::fs::write(published.place.data_directory().join("PG_VERSION"), "11\n").unwrap();
    let refused = published.answer(Request::Prepare {
        place: published.place.clone(),
        instance: published.options.clone(),
    });
    assert_eq!(refused.unwrap_err().code, ErrorCode::PostgresqlNotFound);
}

#[test]
fn a_query_brings_back_a_limited_number_of_rows_and_the_servers_refusal() {
    let programs = postgresql().remove(0);
    let cluster = Cluster::start(&programs);
    let published = Published::of(&cluster);
    published.prepare();
    published.start();
    published.wait_until_ready();
    let rows = published
        .query("SELECT NULL, g FROM generate_series(1, 5000) g")
        .unwrap();
    let Response::Rows(rows) = rows else {
        unreachable!()
    };
    assert_eq!(rows.len(), 1000);
    assert_eq!(rows[0], [None, Some("1".to_owned())]);
    assert!(
        published
            .query("SELECT nothing")
            .unwrap_err()
            .message
            .contains("nothing")
    );
    let started = std::time::Instant::now();
    published.stop();
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_server_that_does_not_react_is_killed_after_its_time() {
    let programs = postgresql().remove(0);
    let cluster = Cluster::start(&programs);
    let published = Published::of(&cluster);
    published.prepare();
    published.start();
    published.wait_until_ready();
    published.freeze();
    let stop = Request::StopInstance {
        place: published.place.clone(),
        instance: published.options.clone(),
        timeout_s: 1,
    };
    assert_eq!(published.answer(stop).unwrap(), Response::Done);
    assert!(matches!(published.status(), InstanceStatus::Stopped { .. }));
    published.start();
    published.wait_until_ready();
    published.stop();
}

#[test]
fn a_published_instance_that_was_killed_before_it_took_its_timeline_takes_one_at_the_next_start() {
    for programs in postgresql() {
        let cluster = Cluster::start(&programs);
        let published = Published::of(&cluster);
        published.prepare();
        let data = published.place.data_directory();
        // Holds recovery where it asks the archive for the second time.
        let configuration = published.place.configuration_directory();
        let (file, asked) = (
            configuration.join("postgresql.conf"),
            configuration.join("asked"),
        );
        let hold = format!(
            "restore_command = 'test -e {0} && exec sleep 600; touch {0}; exit 1'\n",
            asked.display()
        );
        let text = std::fs::read_to_string(&file).unwrap() + &hold;
        std::fs::write(&file, text).unwrap();
        published.start();
        let began = std::time::Instant::now();
        while !asked.exists() || data.join("backup_label").exists() {
            assert!(began.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(20));
        }
        published.kill_all();
        std::fs::remove_file(data.join("recovery.signal")).unwrap();
        published.prepare();
        published.start();
        let InstanceStatus::Ready { timeline, .. } = published.wait_until_ready() else {
            unreachable!()
        };
        assert_eq!(timeline, 2);
        published.stop();
    }
}
