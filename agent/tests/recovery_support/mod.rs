//! A published instance on its way to a final place.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests, each of which uses some"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::agent::hand::{
    FinalPlace, InstanceStatus, RecoveryAction, RecoveryRequest, RecoveryResponse, Replace,
    ReplicationStatus, Request, Response, StandbyStatus,
};
use common::problem::Problem;

use crate::support::{Published, as_postgres};

/// An instant recovery.
pub(crate) struct Walk {
    pub(crate) published: Published,
    pub(crate) final_place: FinalPlace,
}

impl Walk {
    /// Publishes, and recovers to these directories.
    pub(crate) fn begin(published: Published, data: &Path, tablespaces: &[&Path]) -> Self {
        published.prepare();
        let walk = Self {
            published,
            final_place: FinalPlace {
                data_directory: data.to_owned(),
                tablespaces: BTreeMap::new(),
                replace: Replace::MoveAside,
            },
        };
        walk.with_tablespaces(tablespaces)
    }

    fn with_tablespaces(mut self, directories: &[&Path]) -> Self {
        let links = self.published.place.data_directory().join("pg_tblspc");
        let mut oids: Vec<u32> = std::fs::read_dir(links)
            .unwrap()
            .map(|entry| {
                entry
                    .unwrap()
                    .file_name()
                    .to_str()
                    .unwrap()
                    .parse()
                    .unwrap()
            })
            .collect();
        oids.sort_unstable();
        assert_eq!(oids.len(), directories.len());
        let directories = directories.iter().map(|path| path.to_path_buf());
        self.final_place.tablespaces = oids.into_iter().zip(directories).collect();
        self
    }

    pub(crate) fn start_published(&self) {
        self.published.start();
        self.published.wait_until_ready();
    }

    pub(crate) fn ask(&self, action: RecoveryAction) -> Result<RecoveryResponse, Problem> {
        let request = RecoveryRequest {
            place: self.published.place.clone(),
            final_place: self.final_place.clone(),
            action,
        };
        match self
            .published
            .answer(Request::Recovery(Box::new(request)))?
        {
            Response::Recovery(response) => Ok(response),
            other => panic!("{other:?}"),
        }
    }

    /// Asks, and asks again: what is done already is done.
    pub(crate) fn twice(&self, action: RecoveryAction) -> RecoveryResponse {
        let first = self
            .ask(action.clone())
            .unwrap_or_else(|p| panic!("{action:?}: {p}"));
        self.ask(action.clone())
            .unwrap_or_else(|p| panic!("again {action:?}: {p}"));
        first
    }

    pub(crate) fn instance(&self) -> common::agent::hand::InstanceOptions {
        self.published.options.clone()
    }

    pub(crate) fn begin_replication(&self) {
        let instance = self.instance();
        self.twice(RecoveryAction::BeginReplication { instance });
    }

    pub(crate) fn replication(&self) -> ReplicationStatus {
        match self.ask(RecoveryAction::ReplicationStatus).unwrap() {
            RecoveryResponse::Replication(status) => status,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn replicate(&self) {
        self.begin_replication();
        wait_for("the copy is complete", || match self.replication() {
            ReplicationStatus::Complete { done_bytes } => {
                assert!(done_bytes > 1 << 20, "{done_bytes}");
                true
            }
            ReplicationStatus::Running { .. } => false,
            other => panic!("{other:?}"),
        });
    }

    pub(crate) fn standby(&self) -> StandbyStatus {
        let instance = self.instance();
        match self
            .ask(RecoveryAction::StandbyStatus { instance })
            .unwrap()
        {
            RecoveryResponse::Standby(status) => status,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn start_standby(&self) {
        let instance = self.instance();
        self.twice(RecoveryAction::StartStandby { instance });
        wait_for("the standby streams", || {
            let status = self.standby();
            assert!(status.running, "{status:?}");
            status.streaming && status.lag_bytes.is_some_and(|bytes| bytes < 16 << 20)
        });
    }

    pub(crate) fn freeze(&self) -> u32 {
        let instance = self.instance();
        match self.twice(RecoveryAction::Freeze { instance }) {
            RecoveryResponse::Frozen {
                flushed_lsn,
                ended_session_count,
            } => {
                assert!(flushed_lsn.contains('/'), "{flushed_lsn}");
                ended_session_count
            }
            other => panic!("{other:?}"),
        }
    }

    /// Freezes, stops both, and proves that they are equal; tells their timeline.
    pub(crate) fn stop_both(&self) -> u32 {
        let instance = self.instance();
        self.freeze();
        self.published.stop();
        self.twice(RecoveryAction::StopStandby {
            instance: instance.clone(),
            timeout_s: 30,
        });
        let positions = self.ask(RecoveryAction::Positions {
            instance: instance.clone(),
        });
        let RecoveryResponse::Positions(positions) = positions.unwrap() else {
            unreachable!()
        };
        let (published, standby) = (positions.published, positions.standby);
        assert_eq!(published.state, "shut down");
        assert_eq!(standby.state, "shut down in recovery");
        assert_eq!(published.checkpoint_lsn, standby.checkpoint_lsn);
        assert_eq!(published.timeline, standby.timeline);
        assert_eq!(published.system_identifier, standby.system_identifier);
        published.timeline
    }

    /// Freezes, stops both, proves that they are equal, and starts the final instance.
    pub(crate) fn switch_over(&self) -> Switched {
        let instance = self.instance();
        self.twice(RecoveryAction::Checkpoint {
            instance: instance.clone(),
        });
        let began = Instant::now();
        let timeline_before = self.stop_both();
        let settled = self.twice(RecoveryAction::Settle {
            instance: instance.clone(),
        });
        let RecoveryResponse::Settled { manager, remarks } = settled else {
            panic!("{settled:?}")
        };
        let timeline = self.start_final();
        println!(
            "switched over in {:?}; {manager}; {remarks:#?}",
            began.elapsed()
        );
        let log = self.final_place.data_directory.join("log/postgresql.log");
        let said = std::fs::read_to_string(log).unwrap_or_default();
        assert!(timeline > timeline_before, "{said}");
        Switched {
            manager,
            remarks,
            timeline,
        }
    }

    /// Starts the settled instance; tells its timeline when it is ready.
    pub(crate) fn start_final(&self) -> u32 {
        let instance = self.instance();
        self.twice(RecoveryAction::StartFinal {
            instance: instance.clone(),
        });
        let mut timeline = None;
        wait_for("the final instance is ready", || {
            let action = RecoveryAction::FinalStatus {
                instance: instance.clone(),
            };
            match self.ask(action).unwrap() {
                RecoveryResponse::Final(InstanceStatus::Ready { timeline: its, .. }) => {
                    timeline = Some(its);
                }
                RecoveryResponse::Final(InstanceStatus::Recovering { .. }) => {}
                other => panic!("{other:?}"),
            }
            timeline.is_some()
        });
        timeline.unwrap()
    }

    /// One value of the final instance, asked in the name of the OS user.
    pub(crate) fn final_value(&self, socket: &Path, sql: &str) -> String {
        psql(
            &self.published.options.program_directory,
            socket,
            self.published.options.port,
            sql,
        )
    }

    pub(crate) fn wait_until_up(&self, socket: &Path, port: u16) {
        let program = self.published.options.program_directory.join("pg_isready");
        wait_for("the server takes connections", || {
            let mut command = Command::new(&program);
            command
                .arg("-q")
                .arg("-h")
                .arg(socket)
                .args(["-p", &port.to_string()]);
            command.status().unwrap().success()
        });
    }

    pub(crate) fn record_path(&self) -> PathBuf {
        self.published
            .place
            .session_directory()
            .join("recovery.json")
    }

    /// Makes the record say what it said at an earlier moment.
    pub(crate) fn edit_record(&self, edit: impl FnOnce(&mut serde_json::Value)) {
        let text = std::fs::read_to_string(self.record_path()).unwrap();
        let mut record = serde_json::from_str(&text).unwrap();
        edit(&mut record);
        std::fs::write(self.record_path(), record.to_string()).unwrap();
    }

    /// A session of a user on the published instance.
    pub(crate) fn session(&self, sql: &str) -> Child {
        let options = &self.published.options;
        let mut command = Command::new("runuser");
        command
            .args(["-u", "postgres", "--"])
            .arg(options.program_directory.join("psql"))
            .arg("-h")
            .arg(self.published.place.socket_directory())
            .args(["-p", &options.port.to_string(), "-U", "postgres", "-qX"])
            .args(["-d", "postgres", "-c", sql])
            .current_dir("/")
            .stderr(Stdio::null());
        command.spawn().unwrap()
    }

    /// A load on the published instance until its sessions are ended.
    pub(crate) fn load(&self) -> Load {
        let options = &self.published.options;
        let bench = options.program_directory.join("pgbench");
        let socket = self.published.place.socket_directory();
        let port = options.port.to_string();
        let address = [
            "-h",
            socket.to_str().unwrap(),
            "-p",
            &port,
            "-U",
            "postgres",
        ];
        let initialise: Vec<&str> = address
            .into_iter()
            .chain(["-i", "-s", "4", "-q", "postgres"])
            .collect();
        as_postgres(&bench, &initialise);
        let child = Command::new("runuser")
            .args(["-u", "postgres", "--"])
            .arg(&bench)
            .args(address)
            .args([
                "-n",
                "-c",
                &Load::CLIENTS.to_string(),
                "-T",
                "300",
                "postgres",
            ])
            .current_dir("/")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Load { child }
    }
}

impl Drop for Walk {
    fn drop(&mut self) {
        let stopped = Command::new("runuser")
            .args(["-u", "postgres", "--"])
            .arg(self.published.options.program_directory.join("pg_ctl"))
            .arg("-D")
            .arg(&self.final_place.data_directory)
            .args(["-m", "immediate", "-w", "stop"])
            .current_dir("/")
            .output();
        drop(stopped);
    }
}

/// What a switchover came to.
pub(crate) struct Switched {
    pub(crate) manager: String,
    pub(crate) remarks: Vec<String>,
    pub(crate) timeline: u32,
}

/// pgbench at work.
pub(crate) struct Load {
    child: Child,
}

impl Load {
    pub(crate) const CLIENTS: u64 = 3;

    /// How many transactions were acknowledged.
    pub(crate) fn acknowledged(self) -> u64 {
        let output = self.child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = said
            .lines()
            .find_map(|l| l.strip_prefix("number of transactions actually processed: "));
        let number = line.unwrap_or_else(|| panic!("{said} {output:?}"));
        number.split('/').next().unwrap().parse().unwrap()
    }
}

pub(crate) fn psql(programs: &Path, socket: &Path, port: u16, sql: &str) -> String {
    let port = port.to_string();
    let arguments = [
        "-h",
        socket.to_str().unwrap(),
        "-p",
        &port,
        "-U",
        "postgres",
        "-qAtX",
        "-d",
        "postgres",
        "-c",
        sql,
    ];
    as_postgres(&programs.join("psql"), &arguments)
        .trim()
        .to_owned()
}

/// Every name, kind, mode, owner, size, time and content below a directory.
pub(crate) fn tree(directory: &Path) -> String {
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program)
            .args(arguments)
            .current_dir(directory)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let mut lines: Vec<String> = String::from_utf8_lossy(&output.stdout)
            .lines()
            .map(str::to_owned)
            .collect();
        lines.sort();
        lines.join("\n")
    };
    let names = run("find", &[".", "-printf", "%p %y %m %U:%G %s %T@ %l\n"]);
    names
        + &run(
            "find",
            &[".", "-type", "f", "-exec", "sha256sum", "{}", "+"],
        )
}

pub(crate) fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

pub(crate) fn wait_for(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !reached() {
        assert!(Instant::now() < deadline, "not within 120 s: {what}");
        std::thread::sleep(Duration::from_millis(30));
    }
}
