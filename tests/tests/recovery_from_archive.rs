//! Instant recovery of what was lost, from the repository of pgBackRest that it archived to: everything that was archived is there again,
//! and the instance goes on archiving to that repository.

use anyhow::{Context, Result, ensure};
use common::messages::SessionStatus;
use tests::pgbackrest::{Layout, PASSPHRASE, RepositoryKind, STANZA, Stage, Tool};
use tests::postgres::{as_postgres, installations, run, wait_until};
use tests::system::{FAST, SystemOptions, TestSystem};

/// Has all WAL archived; gives the name of the last segment.
fn archived(stage: &Stage) -> Result<String> {
    let cluster = stage.cluster();
    let name = cluster.psql("postgres", "SELECT pg_walfile_name(pg_switch_wal())")?;
    let name = name.trim().to_owned();
    let sql = format!("SELECT last_archived_wal >= '{name}' FROM pg_stat_archiver");
    wait_until(&format!("segment {name} is archived"), || {
        cluster
            .psql("postgres", &sql)
            .is_ok_and(|text| text.trim() == "t")
    })?;
    Ok(name)
}

#[tokio::test]
async fn a_lost_instance_is_recovered_with_all_that_pgbackrest_archived_and_archives_on()
-> Result<()> {
    let all = installations();
    let postgresql_15 = all.iter().find(|found| found.major == 15);
    let postgresql_15 = postgresql_15.context("./test installs PostgreSQL 15")?;
    let kind = RepositoryKind {
        layout: Layout::Blocks,
        is_encrypted: true,
    };
    let stage = Stage::new(&Tool::of("trixie")?, postgresql_15, &[kind])?;
    let cluster = stage.cluster();
    cluster.pgbench("postgres", &["-i", "-q", "-s", "2"])?;
    cluster.psql("postgres", "CREATE EXTENSION amcheck")?;
    stage.backup(1, &["--type=full", "--compress-type=zst"])?;
    cluster.pgbench("postgres", &["-t", "200"])?;
    cluster.psql(
        "postgres",
        "CREATE TABLE behind AS SELECT 'the backup' text",
    )?;
    archived(&stage)?;
    // The server dies, and its disk with it.
    let history = "SELECT count(*) FROM pgbench_history";
    let committed = cluster.psql("postgres", history)?;
    ensure!(committed.trim() == "200", "{committed}");
    cluster.kill()?;
    let data = cluster.data_directory();
    std::fs::remove_dir_all(&data)?;

    let secret = tempfile::NamedTempFile::new()?;
    std::fs::write(secret.path(), format!("{PASSPHRASE}\n"))?;
    let options = SystemOptions {
        repository_lines: format!(
            "kind = \"pgbackrest\"\nstanza = \"{STANZA}\"\ncipher_passphrase_file = \"{}\"\n",
            secret.path().display()
        ),
        target_lines: "hba_lines = [\"host all all 127.0.0.1/32 trust\"]\n".to_owned(),
        recovery_lines: format!("{FAST}[retry.recover]\nautomatic_max = 0\n"),
        ..SystemOptions::default()
    };
    let system = TestSystem::start_with(&stage.repository(1), options).await?;
    let tablespace = data.with_file_name("tablespace_one");
    std::fs::remove_dir_all(&tablespace)?;
    let port = cluster.port().to_string();
    let data_text = data.to_str().context("a path in UTF-8")?;
    let arguments = [
        "recover",
        "--repository",
        "main",
        "--target",
        "here",
        "--data-directory",
        data_text,
        "--port",
        &port,
        "--switchover",
        "auto",
    ];
    let lines = system.explorer_json(&arguments).await?;
    let id = lines
        .iter()
        .find_map(|line| line.get("session_id").and_then(|id| id.as_str()))
        .with_context(|| format!("no session id in {lines:?}"))?;
    system.reaches(id, SessionStatus::Completed).await?;
    system.nothing_is_left_of(id)?;

    for (sql, wanted) in [
        (history, "200"),
        ("SELECT text FROM behind", "the backup"),
        ("SELECT pg_is_in_recovery()", "f"),
        ("SHOW restore_command", ""),
        ("SHOW archive_mode", "on"),
    ] {
        let found = cluster.psql("postgres", sql)?;
        ensure!(found.trim() == wanted, "{sql}: {found}");
    }
    run(cluster
        .client("pg_amcheck")
        .args(["--heapallindexed", "-d", "postgres"]))?;
    // It archives to where it always has, on a timeline of its own, and is backed up as ever.
    let segment = archived(&stage)?;
    ensure!(segment.starts_with("00000003"), "{segment}");
    stage.run(&["check"])?;
    let label = stage.backup(1, &["--type=incr"])?;
    let restored = stage.restore(1, &label)?;
    let version = std::fs::read_to_string(restored.path().join("data/PG_VERSION"))?;
    ensure!(version.trim() == "15");
    cluster.stop("fast")?;
    run(as_postgres(&postgresql_15.bin.join("pg_checksums"))
        .args(["--check", "-D"])
        .arg(&data))?;
    Ok(())
}
