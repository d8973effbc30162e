//! What Barman's programs for clouds put into a bucket of a real S3 server: we read what `barman-cloud-restore` writes.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests fail by panic, and print what was tried"
)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use common::messages::SessionStatus;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use repository::barman::{open_barman, open_barman_in};
use repository::{
    BackupChoice, BackupFormat, OpenOptions, Repository, RepositoryErrorKind, RestorePoint,
};
use tempfile::TempDir;
use tests::barman;
use tests::postgres::{
    Installation, TestPostgres, as_postgres, give_to_postgres, installations, run, wait_until,
};
use tests::s3_server::{BUCKET, S3Server, SECRET};
use tests::same_backups::{compare_bytes, entries};
use tests::system::{SystemOptions, TestSystem};
use tests::{same_files, tree_hash};

/// Where the programs put everything, below the bucket; the server's name comes behind it.
const PREFIX: &str = "from the cloud";
const SERVER: &str = "shop";

fn postgresql_15() -> Installation {
    let all = installations();
    let found = all.into_iter().find(|found| found.major == 15);
    found.unwrap_or_else(|| panic!("PostgreSQL 15 is not installed; ./test installs it"))
}

fn random() -> StdRng {
    let seed = rand::rng().random();
    println!("seed {seed}");
    StdRng::seed_from_u64(seed)
}

/// A cluster whose WAL and backups go into a bucket.
struct Cloud {
    server: S3Server,
    cluster: TestPostgres,
    directory: TempDir,
}

impl Cloud {
    fn new() -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("pginstant-cloud-")
            .tempdir_in("/var/tmp")?;
        give_to_postgres(directory.path())?;
        let mut cluster = TestPostgres::start_new(&postgresql_15())?;
        cluster.create_tablespace("one")?;
        let mut cloud = Self {
            server: S3Server::start()?,
            cluster,
            directory,
        };
        cloud.archive()?;
        cloud.cluster.psql("postgres", "CREATE DATABASE shop")?;
        let fill = ["-i", "-q", "-s", "2", "--tablespace=one"];
        cloud.cluster.pgbench("shop", &fill)?;
        Ok(cloud)
    }

    fn program(name: &str) -> PathBuf {
        barman::of_version("3.19.1").with_file_name(format!("barman-cloud-{name}"))
    }

    fn place() -> String {
        format!("s3://{BUCKET}/{PREFIX}")
    }

    /// Has the cluster archive its WAL.
    fn archive(&mut self) -> Result<()> {
        let script = self.directory.path().join("archive");
        let mut text = "#!/bin/sh\n".to_owned();
        for (name, value) in self.server.variables() {
            text += &format!("export {name}='{value}'\n");
        }
        text += &format!(
            "exec '{}' --endpoint-url '{}' --gzip '{}' {SERVER} \"$1\"\n",
            Self::program("wal-archive").display(),
            self.server.endpoint(),
            Self::place()
        );
        std::fs::write(&script, text)?;
        std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755))?;
        let command = format!("{} %p", script.display());
        for (name, value) in [("archive_mode", "on"), ("archive_command", &command)] {
            let sql = format!("ALTER SYSTEM SET {name} = '{value}'");
            self.cluster.psql("postgres", &sql)?;
        }
        self.cluster.stop("fast")?;
        self.cluster.start()
    }

    fn run(&self, name: &str, arguments: &[&str]) -> Result<()> {
        let mut command = as_postgres(&Self::program(name));
        command
            .envs(self.server.variables())
            .args(["--endpoint-url", &self.server.endpoint()])
            .args(arguments);
        run(&mut command).map(drop)
    }

    /// Takes a backup; gives its id.
    fn back_up(&self, arguments: &[&str]) -> Result<String> {
        let before = self.ids()?;
        let (socket, port) = (
            self.cluster.socket_directory().display().to_string(),
            self.cluster.port().to_string(),
        );
        let place = Self::place();
        let all: Vec<&str> = ["--immediate-checkpoint", "-h", &socket, "-p", &port]
            .into_iter()
            .chain(["-U", "postgres"])
            .chain(arguments.iter().copied())
            .chain([&*place, SERVER])
            .collect();
        self.run("backup", &all)?;
        self.archived()?;
        let new = self.ids()?.into_iter().find(|id| !before.contains(id));
        new.context("the id of the new backup")
    }

    /// Waits until all WAL is archived.
    fn archived(&self) -> Result<()> {
        let sql = "SELECT pg_walfile_name(pg_switch_wal())";
        let name = self.cluster.psql("postgres", sql)?;
        let sql = format!(
            "SELECT last_archived_wal >= '{}' FROM pg_stat_archiver",
            name.trim()
        );
        wait_until("all WAL is archived", || {
            let told = self.cluster.psql("postgres", &sql);
            told.is_ok_and(|text| text.trim() == "t")
        })
    }

    fn base(&self) -> PathBuf {
        let server = self.server.bucket().join(PREFIX).join(SERVER);
        server.join("base")
    }

    fn ids(&self) -> Result<Vec<String>> {
        let mut ids = Vec::new();
        for entry in std::fs::read_dir(self.base()).into_iter().flatten() {
            ids.extend(entry?.file_name().into_string().ok());
        }
        Ok(ids)
    }

    /// What `barman-cloud-restore` makes of a backup: `data` in a directory that goes away, and the tablespace beside it.
    fn restore(&self, id: &str) -> Result<TempDir> {
        let to = tempfile::Builder::new()
            .prefix("restored-")
            .tempdir_in(self.directory.path())?;
        give_to_postgres(to.path())?;
        let tablespace = format!("one:{}/one", to.path().display());
        let data = to.path().join("data").display().to_string();
        let place = Self::place();
        self.run(
            "restore",
            &["--tablespace", &tablespace, &place, SERVER, id, &data],
        )?;
        Ok(to)
    }

    fn open(&self) -> Box<dyn Repository> {
        open_in(&self.server, &format!("{PREFIX}/{SERVER}"))
    }
}

fn open_in(server: &S3Server, prefix: &str) -> Box<dyn Repository> {
    let storage = server.storage(prefix, &Arc::default()).unwrap();
    open_barman_in(storage, OpenOptions::default()).unwrap()
}

fn archives(cloud: &Cloud, id: &str) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(cloud.base().join(id))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("data"))
        .collect();
    names.sort();
    names
}

/// Every file is there and as restore has it, and none that it does not have but WAL of the archive.
fn compare(cloud: &Cloud, id: &str, random: &mut StdRng) -> RestorePoint {
    let restored = cloud.restore(id).unwrap();
    let data = restored.path().join("data");
    let backup = cloud.open().open(BackupChoice::Label(id)).unwrap();
    let found = same_files::compare(&*backup, random, |path| {
        let is_wal = path.strip_prefix("pg_wal/").is_some();
        (!is_wal).then(|| data.join(path))
    });
    let wanted = same_files::files_of(&data).unwrap();
    assert_eq!(found.unwrap(), wanted);
    assert!(wanted.len() > 900, "{} files", wanted.len());
    let start = "pg_wal/0000000100000000";
    let mut wal = backup.tree().below("pg_wal");
    assert!(wal.any(|entry| entry.path.starts_with(start)));
    backup.restore_point().clone()
}

#[test]
fn what_barman_cloud_has_put_into_s3_is_read_as_it_restores_it() {
    let cloud = Cloud::new().unwrap();
    let split = cloud.back_up(&["--max-archive-size", "10MB"]).unwrap();
    assert!(archives(&cloud, &split).contains(&"data_0001.tar".to_owned()));
    cloud.cluster.pgbench("shop", &["-t", "100"]).unwrap();
    let gzip = cloud.back_up(&["--gzip"]).unwrap();
    let bzip2 = cloud.back_up(&["--bzip2"]).unwrap();
    let before = tree_hash::of(&cloud.server.bucket()).unwrap();
    let listed = cloud.open().restore_points().unwrap();
    assert!(listed.problems.is_empty(), "{:?}", listed.problems);
    let mut random = random();
    let mut expected = [&split, &gzip, &bzip2];
    expected.sort();
    expected.reverse();
    assert_eq!(listed.restore_points.len(), expected.len());
    for (id, point) in expected.into_iter().zip(&listed.restore_points) {
        assert_eq!(&point.label, id);
        let opened = compare(&cloud, id, &mut random);
        assert_eq!(opened.format, BackupFormat::Barman);
        assert_eq!(opened.postgresql_major, 15);
        assert_eq!(opened.slow_layout.is_some(), *id != split);
        // The list has not looked into the archives.
        let told = RestorePoint {
            size_bytes: opened.size_bytes,
            file_count: opened.file_count,
            ..point.clone()
        };
        assert_eq!(told, opened);
    }
    assert_eq!(before, tree_hash::of(&cloud.server.bucket()).unwrap());
    what_lacks_or_cannot_be_read_is_refused_by_name(&cloud, &split, &gzip);
}

fn what_lacks_or_cannot_be_read_is_refused_by_name(cloud: &Cloud, split: &str, gzip: &str) {
    let refused = |id: &str, told: &[&str]| {
        let error = cloud.open().open(BackupChoice::Label(id)).unwrap_err();
        let shown = format!("{error}; {}", error.remedy());
        println!("{shown}");
        assert!(error.is_permanent(), "{shown}");
        assert!(told.iter().all(|text| shown.contains(text)), "{shown}");
        let listed = cloud.open().restore_points().unwrap();
        let mut problems = listed.problems.iter();
        assert!(problems.any(|(label, _)| label == id), "{listed:?}");
        error.kind()
    };
    let of = |id: &str, name: &str| cloud.base().join(id).join(name);
    std::fs::rename(of(gzip, "data.tar.gz"), of(gzip, "data.tar.snappy")).unwrap();
    let kind = refused(gzip, &["data.tar.snappy", "snappy", "--gzip"]);
    assert_eq!(kind, RepositoryErrorKind::Unsupported);
    std::fs::remove_file(of(split, "data_0001.tar")).unwrap();
    refused(split, &["data_0002.tar", "part 1 is not there"]);
    std::fs::remove_dir_all(cloud.base().with_file_name("wals")).unwrap();
    let newest = cloud.open().open(BackupChoice::Newest).unwrap_err();
    let shown = newest.to_string();
    assert!(shown.contains("is not in Barman's archive"), "{shown}");
}

#[test]
fn a_servers_directory_of_barman_that_was_copied_into_a_bucket_is_read_as_it_is() {
    let stage = barman::Stage::new(barman::of_debian(), &postgresql_15()).unwrap();
    let fill = ["-i", "-q", "-s", "1", "--tablespace=one"];
    stage.cluster().pgbench("postgres", &fill).unwrap();
    let server = S3Server::start().unwrap();
    let mut random = random();
    for name in [barman::RSYNC, barman::PLAIN, barman::TAR] {
        let id = stage.backup(name, &[]).unwrap();
        let directory = stage.server(name);
        server
            .put_files(&directory, &format!("copied/{name}"))
            .unwrap();
        let here = open_barman(&directory, OpenOptions::default()).unwrap();
        let there = open_in(&server, &format!("copied/{name}"));
        let open = |repository: &dyn Repository| {
            let found = repository.open(BackupChoice::Label(&id));
            found.unwrap()
        };
        let (here, there) = (open(&*here), open(&*there));
        let entries = [&here, &there].map(|backup| {
            let mut entries = entries(&**backup);
            // What Barman does not take with rsync is made by PostgreSQL where it is missing.
            entries.retain(|entry| !entry.ends_with("Directory"));
            entries
        });
        assert_eq!(entries[0], entries[1], "{name}");
        compare_bytes(&*here, &*there, &mut random).unwrap();
    }
}

#[tokio::test]
async fn a_backup_of_barman_cloud_is_published_with_what_was_archived_after_it() -> Result<()> {
    let cloud = Cloud::new()?;
    cloud
        .cluster
        .psql("shop", "CREATE TABLE orders (name text)")?;
    cloud
        .cluster
        .psql("shop", "INSERT INTO orders VALUES ('a-before')")?;
    let id = cloud.back_up(&["--gzip"])?;
    cloud
        .cluster
        .psql("shop", "INSERT INTO orders VALUES ('b-after')")?;
    cloud.archived()?;
    cloud.cluster.stop("fast")?;
    let before = tree_hash::of(&cloud.server.bucket())?;
    let options = SystemOptions {
        repository_lines: format!("kind = \"barman\"\n{}", cloud.server.lines()),
        ..SystemOptions::default()
    };
    let path = format!("{}/{SERVER}", Cloud::place());
    let system = TestSystem::start_with(Path::new(&path), options).await?;
    let listed = system.explorer(&["backups"]).await?;
    let listed = String::from_utf8(listed.stdout)?;
    ensure!(listed.contains(&id), "{id} is not in:\n{listed}");
    let (session, detail) = system.publish(&[]).await?;
    let sql = "SELECT string_agg(name, ' ' ORDER BY name) FROM orders";
    let rows = system.sql(&detail, "shop", sql).await?;
    ensure!(rows == "a-before b-after", "{rows}");
    let sql = "SELECT count(*) FROM pgbench_accounts";
    ensure!(system.sql(&detail, "shop", sql).await? == "200000");
    let unpublished = system.explorer(&["unpublish", &session]).await?;
    ensure!(unpublished.status.success(), "{unpublished:?}");
    system.reaches(&session, SessionStatus::Completed).await?;
    system.nothing_is_left_of(&session)?;
    ensure!(before == tree_hash::of(&cloud.server.bucket())?);
    ensure!(
        !system.log("mount-svc").contains(SECRET),
        "a secret is in the log"
    );
    Ok(())
}
