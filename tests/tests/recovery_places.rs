//! Where instant recoveries may go: several at once, and to another place with a directory for each tablespace.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use common::messages::{SessionDetail, SessionStatus};
use tests::ledger::Ledger;
use tests::postgres::{TestPostgres, as_postgres, run};
use tests::recoverable::{DATABASE, World, WorldOptions, is_the_original_again, private};
use tests::system::free_port;
use tests::tree_hash;

const CLIENTS: u8 = 2;

fn timeline(detail: SessionDetail) -> Result<u32> {
    let switched_over = detail.recovery.and_then(|recovery| recovery.switched_over);
    Ok(switched_over.context("switched over")?.timeline)
}

#[tokio::test]
async fn two_instances_of_one_server_are_recovered_at_once_each_with_all_its_commits() -> Result<()>
{
    let world = World::new(15).await?;
    let (another, archive) = world.another("tuesday")?;
    let mine = |server: &TestPostgres, name: &str| {
        server.psql(DATABASE, &format!("CREATE TABLE {name} ()"))
    };
    // Since the backup: neither must be found in the other's place, or at all.
    mine(&world.original, "first")?;
    mine(&another, "second")?;
    let ids = [
        world.recover("auto").await?,
        world.recover_in_place(&another, "tuesday", "auto").await?,
    ];
    let mut ledgers = Vec::new();
    for (id, server) in ids.iter().zip([&world.original, &another]) {
        world.is_online(id).await?;
        ledgers.push(Ledger::open(server.port(), DATABASE, CLIENTS));
    }
    let places = [(&world.original, None), (&another, Some(archive.path()))];
    for ((id, ledger), (server, archive)) in ids.iter().zip(ledgers).zip(places) {
        let detail = world.system.reaches(id, SessionStatus::Completed).await?;
        let report = ledger.close().await?;
        ensure!(report.acknowledged > 0, "{report:?}");
        world.system.nothing_is_left_of(id)?;
        let timeline = timeline(detail)?;
        match archive {
            None => world.is_the_original_again(timeline)?,
            Some(archive) => is_the_original_again(server, archive, timeline)?,
        }
    }
    Ok(())
}

/// A server in a place that the test made, reached by TCP; ends when dropped.
struct Moved<'a> {
    bin: &'a Path,
    data: &'a Path,
    port: u16,
}

impl Moved<'_> {
    fn sql(&self, sql: &str) -> Result<String> {
        let output = run(as_postgres(&self.bin.join("psql"))
            .args(["-XAtq", "-h", "127.0.0.1", "-p", &self.port.to_string()])
            .args(["-v", "ON_ERROR_STOP=1", "-d", DATABASE, "-c", sql]))?;
        Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
    }
}

impl Drop for Moved<'_> {
    fn drop(&mut self) {
        let mut program = as_postgres(&self.bin.join("pg_ctl"));
        program
            .args(["stop", "-w", "-m", "fast", "-D"])
            .arg(self.data);
        // There may be none when the test has failed.
        run(&mut program).ok();
    }
}

#[tokio::test]
async fn a_recovery_to_another_place_has_its_data_port_and_tablespaces_where_they_were_asked_for()
-> Result<()> {
    let options = WorldOptions {
        tablespace: Some("fast"),
        ..WorldOptions::default()
    };
    let world = World::with(15, options).await?;
    let oid = world.original.psql(
        DATABASE,
        "SELECT oid FROM pg_tablespace WHERE spcname = 'fast'",
    )?;
    world.original.stop("fast")?;
    // Its socket's directory is another matter: the instance that stays has the original's settings.
    let data = world.original.data_directory();
    let untouched = [data.clone(), data.with_file_name("tablespace_fast")];
    let hashes =
        || -> Result<Vec<_>> { untouched.iter().map(|path| tree_hash::of(path)).collect() };
    let before = hashes()?;
    let place = private("pginstant-final-")?;
    let (data, space) = (place.path().join("data"), place.path().join("space"));
    let port = free_port()?;
    let id = world
        .recover_to(&[
            "--backup",
            "monday",
            "--data-directory",
            data.to_str().context("a path in UTF-8")?,
            "--port",
            &port.to_string(),
            "--tablespace",
            &format!("{oid}={}", space.display()),
            "--switchover",
            "auto",
        ])
        .await?;
    world.is_online(&id).await?;
    let ledger = Ledger::open(port, DATABASE, CLIENTS);
    let moved = Moved {
        bin: &world.installation.bin,
        data: &data,
        port,
    };
    world.system.reaches(&id, SessionStatus::Completed).await?;
    let report = ledger.close().await?;
    ensure!(report.acknowledged > 0, "{report:?}");
    world.system.nothing_is_left_of(&id)?;
    for (sql, expected) in [
        ("SHOW data_directory", data.display().to_string()),
        ("SHOW port", port.to_string()),
        ("SELECT pg_is_in_recovery()", "f".to_owned()),
        (
            "SELECT pg_tablespace_location(reltablespace) FROM pg_class WHERE relname = 'ledger'",
            space.display().to_string(),
        ),
    ] {
        let found = moved.sql(sql)?;
        ensure!(found == expected, "{sql}: {found} instead of {expected}");
    }
    run(
        as_postgres(&world.installation.bin.join("pg_amcheck")).args([
            "--heapallindexed",
            "-h",
            "127.0.0.1",
            "-p",
            &port.to_string(),
            "-d",
            DATABASE,
        ]),
    )?;
    // The original lies where it was; nobody has touched it.
    ensure!(hashes()? == before, "the original changed");
    Ok(())
}
