//! A source cluster with a backup, and a session whose mount point holds a copy of it.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests, each of which uses some"
)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use agent::hand::Hand;
use agent::hand::mounts::NoMounts;
use agent::hand::os_user::{Account, look_up};
use agent::postgresql::process;
use common::agent::hand::{
    InstanceOptions, InstanceStatus, Prepared, Request, Response, SessionPlace,
};
use common::ids::OsUser;
use common::problem::Problem;

/// Directories of programs to test with: every PostgreSQL of the system, and the 18 of a wheel that `./test` names.
pub(crate) fn postgresql() -> Vec<PathBuf> {
    let system = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let mut found: Vec<PathBuf> = system
        .map(|version| version.path().join("bin"))
        .chain(std::env::var_os("PGINSTANT_TEST_PG18").map(PathBuf::from))
        .filter(|directory| directory.join("postgres").exists())
        .collect();
    found.sort();
    assert!(
        !found.is_empty(),
        "no PostgreSQL is installed; ./test installs it"
    );
    found
}

pub(crate) fn account() -> Account {
    look_up(&OsUser::new("postgres").unwrap()).unwrap()
}

pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

pub(crate) fn directory() -> tempfile::TempDir {
    let directory = tempfile::Builder::new()
        .prefix("hand")
        .tempdir_in("/var/tmp")
        .unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

pub(crate) fn as_postgres(program: &Path, arguments: &[&str]) -> String {
    let output = Command::new("runuser")
        .args(["-u", "postgres", "--"])
        .arg(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .current_dir("/")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program:?} {arguments:?}: {text} {}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// A running source with archiving, a missing library and a tablespace, and its backup.
pub(crate) struct Cluster {
    pub(crate) programs: PathBuf,
    pub(crate) root: tempfile::TempDir,
    pub(crate) port: u16,
}

impl Cluster {
    pub(crate) fn start(programs: &Path) -> Self {
        let root = directory();
        let owner = account();
        let owned = |name: &str| {
            let path = root.path().join(name);
            fs::create_dir(&path).unwrap();
            chown(&path, Some(owner.uid), Some(owner.gid)).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let (data, archive, space, socket) =
            (owned("data"), owned("archive"), owned("space"), owned("s"));
        let log = format!("{socket}/log");
        as_postgres(
            &programs.join("initdb"),
            &[
                "-D",
                &data,
                "-U",
                "postgres",
                "-A",
                "trust",
                "--locale=C.UTF-8",
                "-N",
            ],
        );
        let port = free_port();
        let cluster = Self {
            programs: programs.to_owned(),
            root,
            port,
        };
        let configuration = format!(
            "port = {port}\nlisten_addresses = ''\nunix_socket_directories = '{socket}'\narchive_mode = on\n\
             archive_command = 'cp %p {archive}/%f'\nmax_connections = 123\nwork_mem = '5MB'\ninclude_if_exists 'more.conf'\nfsync = off\n"
        );
        let file = Path::new(&data).join("postgresql.conf");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text + &configuration).unwrap();
        fs::write(
            Path::new(&data).join("more.conf"),
            "maintenance_work_mem = '31MB'\n",
        )
        .unwrap();
        chown(
            Path::new(&data).join("more.conf"),
            Some(owner.uid),
            Some(owner.gid),
        )
        .unwrap();
        as_postgres(
            &programs.join("pg_ctl"),
            &["-D", &data, "-l", &log, "-w", "start"],
        );
        let port_text = port.to_string();
        let sql = |sql: &str| {
            let arguments = [
                "-h", &socket, "-p", &port_text, "-U", "postgres", "-qAtX", "-c", sql,
            ];
            as_postgres(&programs.join("psql"), &arguments)
        };
        sql(&format!("CREATE TABLESPACE space LOCATION '{space}'"));
        sql(
            "CREATE TABLE in_tablespace TABLESPACE space AS SELECT * FROM generate_series(1, 1000)",
        );
        sql("ALTER SYSTEM SET primary_conninfo = 'host=production.invalid'");
        sql("ALTER SYSTEM SET shared_preload_libraries = 'pg_stat_statements', 'no_such_library'");
        let backup = cluster.root.path().join("backup");
        let mapping = format!("{space}={}/moved", cluster.root.path().display());
        chown(cluster.root.path(), Some(owner.uid), Some(owner.gid)).unwrap();
        as_postgres(
            &programs.join("pg_basebackup"),
            &[
                "-h",
                &socket,
                "-p",
                &port_text,
                "-U",
                "postgres",
                "-D",
                backup.to_str().unwrap(),
                "-X",
                "stream",
                "-c",
                "fast",
                "-T",
                &mapping,
            ],
        );
        // What a backup taken by copying files would hold of the original's host.
        fs::write(
            backup.join("postmaster.pid"),
            format!("{}\n{data}\n", std::process::id()),
        )
        .unwrap();
        fs::write(backup.join("tablespace_map"), format!("1 {space}\n")).unwrap();
        cluster
    }

    /// Files of later timelines in the archive: only a published instance could have put them there.
    pub(crate) fn archived_of_published(&self) -> usize {
        let archive = fs::read_dir(self.root.path().join("archive")).unwrap();
        archive
            .filter(|e| {
                !e.as_ref()
                    .unwrap()
                    .file_name()
                    .to_string_lossy()
                    .starts_with("00000001")
            })
            .count()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let data = self.root.path().join("data");
        let stopped = Command::new("runuser")
            .args(["-u", "postgres", "--"])
            .arg(self.programs.join("pg_ctl"))
            .args([
                "-D",
                data.to_str().unwrap(),
                "-m",
                "immediate",
                "-w",
                "stop",
            ])
            .current_dir("/")
            .output();
        drop(stopped);
    }
}

/// A session with a copy of the backup where the mount would be.
pub(crate) struct Published {
    pub(crate) place: SessionPlace,
    pub(crate) options: InstanceOptions,
    hand: Hand,
    runtime: tokio::runtime::Runtime,
    _root: Option<tempfile::TempDir>,
}

impl Published {
    pub(crate) fn of(cluster: &Cluster) -> Self {
        Self::from_backup(&cluster.programs, &cluster.root.path().join("backup"))
    }

    /// A session whose mount somebody else makes.
    pub(crate) fn at(programs: &Path, place: SessionPlace) -> Self {
        let options = InstanceOptions {
            program_directory: programs.to_owned(),
            port: free_port(),
            listen_addresses: "127.0.0.1".into(),
            hba_lines: vec![],
            superuser: "postgres".into(),
            shared_buffers_bytes: None,
            settings: BTreeMap::default(),
            recovery: Default::default(),
        };
        Self {
            place,
            options,
            hand: Hand::new(NoMounts),
            runtime: tokio::runtime::Runtime::new().unwrap(),
            _root: None,
        }
    }

    pub(crate) fn from_backup(programs: &Path, backup: &Path) -> Self {
        let root = directory();
        let place = SessionPlace {
            session_id: "0190b5a8-7c3a-7def-8123-456789abcdef".parse().unwrap(),
            mount_root: root.path().join("m"),
            cache_root: root.path().join("c"),
            os_user: OsUser::new("postgres").unwrap(),
        };
        let mut published = Self::at(programs, place);
        published._root = Some(root);
        published
            .answer(Request::CreateSession {
                place: published.place.clone(),
            })
            .unwrap();
        let copied = Command::new("cp")
            .arg("-a")
            .arg(backup)
            .arg(published.place.data_directory())
            .status();
        assert!(copied.unwrap().success());
        // The mount shows tablespaces beside the data directory.
        for link in fs::read_dir(published.place.data_directory().join("pg_tblspc")).unwrap() {
            let link = link.unwrap();
            let target = published
                .place
                .mount_point()
                .join("tablespaces")
                .join(link.file_name());
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            let copied = Command::new("cp")
                .arg("-a")
                .arg(fs::read_link(link.path()).unwrap())
                .arg(&target)
                .status();
            assert!(copied.unwrap().success());
            fs::remove_file(link.path()).unwrap();
            symlink(&target, link.path()).unwrap();
        }
        published
    }

    pub(crate) fn answer(&self, request: Request) -> Result<Response, Problem> {
        self.hand.answer(request, self.runtime.handle())
    }

    pub(crate) fn prepare(&self) -> Prepared {
        let request = Request::Prepare {
            place: self.place.clone(),
            instance: self.options.clone(),
        };
        match self.answer(request).unwrap() {
            Response::Prepared(prepared) => prepared,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn start(&self) {
        let request = Request::StartInstance {
            place: self.place.clone(),
            instance: self.options.clone(),
        };
        assert_eq!(self.answer(request).unwrap(), Response::Done);
    }

    pub(crate) fn stop(&self) {
        let (place, instance) = (self.place.clone(), self.options.clone());
        let request = Request::StopInstance {
            place,
            instance,
            timeout_s: 30,
        };
        assert_eq!(self.answer(request).unwrap(), Response::Done);
    }

    pub(crate) fn status(&self) -> InstanceStatus {
        let request = Request::InstanceStatus {
            place: self.place.clone(),
            instance: self.options.clone(),
        };
        match self.answer(request).unwrap() {
            Response::Instance(status) => status,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn wait_until_ready(&self) -> InstanceStatus {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let status = self.status();
            match status {
                InstanceStatus::Ready { .. } => return status,
                InstanceStatus::Stopped { last_log_lines } => {
                    panic!("stopped: {last_log_lines:#?}")
                }
                InstanceStatus::Recovering { .. } => {}
            }
            assert!(Instant::now() < deadline, "not ready after 60 s");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub(crate) fn query(&self, sql: &str) -> Result<Response, Problem> {
        self.answer(Request::Query {
            place: self.place.clone(),
            instance: self.options.clone(),
            database: "postgres".into(),
            sql: sql.into(),
        })
    }

    pub(crate) fn value(&self, sql: &str) -> String {
        match self.query(sql).unwrap() {
            Response::Rows(rows) => rows
                .into_iter()
                .next()
                .and_then(|row| row.into_iter().next().flatten())
                .unwrap_or_default(),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn append_to_configuration(&self, text: &str) {
        let file = self.place.data_directory().join("postgresql.conf");
        let before = fs::read_to_string(&file).unwrap();
        fs::write(&file, before + text).unwrap();
    }

    /// Stops the postmaster's process, as a hanging disk would.
    pub(crate) fn freeze(&self) {
        let file = self.place.configuration_directory().join("postgresql.conf");
        let postmaster = process::postmaster(&file, account().uid).unwrap();
        postmaster.signal(rustix::process::Signal::STOP).unwrap();
    }

    /// Kills every process of the instance at once, as a power cut would.
    pub(crate) fn kill_all(&self) {
        let file = self.place.configuration_directory().join("postgresql.conf");
        let Some(postmaster) = process::postmaster(&file, account().uid) else {
            return;
        };
        let mut all = process::children(postmaster);
        all.insert(0, postmaster);
        for process in &all {
            process.signal(rustix::process::Signal::KILL).unwrap();
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while all.iter().any(process::Process::lives) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        self.kill_all();
    }
}
