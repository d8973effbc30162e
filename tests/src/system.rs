//! A whole system of a test's own: broker, both services, explorer, one target that is this host, and one repository.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use common::bus::amqp::AmqpBus;
use common::messages::{Mounted, Reply, SessionDetail, SessionStatus};
use common::topology::Role;
use serde_json::Value;
use tempfile::TempDir;

use crate::broker::{self, TestBroker};
use crate::gate::Gate;
use crate::leftovers;
use crate::programs::{Service, program};
use crate::wait;

/// Intervals of recovery-svc that let a test see results soon.
pub const FAST: &str = "[limits]\nwatch_every_ms = 500\nrecovery_poll_every_ms = 100\nretry_jitter_ms = 0\nretry_queue_ms = 700\n";
/// How long a session may take to reach a state.
pub const SESSION_LIMIT: Duration = Duration::from_secs(120);

/// What a test wants otherwise than usual.
#[derive(Debug, Clone)]
pub struct SystemOptions {
    /// Time in the retry queue.
    pub retry_ttl_ms: u64,
    /// More lines of the target's section.
    pub target_lines: String,
    /// More lines of the section of repository `main`.
    pub repository_lines: String,
    /// More variables of mount-svc's environment.
    pub mount_environment: Vec<(String, String)>,
    /// More sections of recovery-svc's configuration.
    pub recovery_lines: String,
    /// Whether recovery-svc reaches the agent through a gate.
    pub gate: bool,
    /// How the path of the system's own directory begins. Not below /tmp, which may be a tmpfs: the write cache belongs on
    /// a disk. Not much longer: the path of a session's socket has a limit.
    pub directory_prefix: PathBuf,
}

impl Default for SystemOptions {
    fn default() -> Self {
        Self {
            retry_ttl_ms: 700,
            target_lines: String::new(),
            repository_lines: String::new(),
            mount_environment: Vec::new(),
            recovery_lines: FAST.to_owned(),
            gate: false,
            directory_prefix: PathBuf::from("/var/tmp/pginstant-system-"),
        }
    }
}

/// A whole system.
#[derive(Debug)]
pub struct TestSystem {
    /// mount-svc.
    pub mount_svc: Service,
    /// recovery-svc.
    pub recovery_svc: Service,
    /// The broker.
    pub broker: TestBroker,
    gate: Option<Gate>,
    directory: TempDir,
}

impl TestSystem {
    /// Starts everything; the repository `main` is this directory, the target `here` is this host.
    pub async fn start(repository: &Path) -> anyhow::Result<Self> {
        Self::start_with(repository, SystemOptions::default()).await
    }

    /// The same with options.
    pub async fn start_with(repository: &Path, options: SystemOptions) -> anyhow::Result<Self> {
        let broker = TestBroker::start(broker::test_topology(options.retry_ttl_ms)).await?;
        let (Some(parent), Some(prefix)) = (
            options.directory_prefix.parent(),
            options.directory_prefix.file_name(),
        ) else {
            anyhow::bail!("{} begins no path", options.directory_prefix.display());
        };
        let directory = tempfile::Builder::new().prefix(prefix).tempdir_in(parent)?;
        // PostgreSQL's user must get through to its own directories.
        std::fs::set_permissions(
            directory.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )?;
        let gated = options.gate.then(|| Gate::make(directory.path()));
        let (gate, gate_program) = gated.transpose()?.unzip();
        let agents = Agents {
            mount_svc: program("pginstant-agent")?,
            recovery_svc: gate_program.unwrap_or(program("pginstant-agent")?),
        };
        write_configuration(directory.path(), &broker, repository, &options, &agents)?;
        let start = |name: &'static str| {
            let config = directory.path().join(format!("{name}.toml"));
            let log = directory.path().join(format!("{name}.log"));
            let arguments = ["--config".as_ref(), config.as_os_str()];
            let environment = match name {
                "mount-svc" => options.mount_environment.clone(),
                _ => Vec::new(),
            };
            Service::start_in(environment, name, &arguments, &log)
        };
        let system = Self {
            mount_svc: start("mount-svc")?,
            recovery_svc: start("recovery-svc")?,
            broker,
            gate,
            directory,
        };
        system.ready().await?;
        Ok(system)
    }

    /// Waits until both services say that they are ready.
    pub async fn ready(&self) -> anyhow::Result<()> {
        for name in ["mount-svc", "recovery-svc"] {
            let what = format!("{name} is ready; its log: {}", self.log(name));
            wait::until(&what, Duration::from_secs(30), async || {
                let Ok(port) = self.http_port(name) else {
                    return false;
                };
                http_get(port, "/readyz")
                    .await
                    .is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
            })
            .await
            .with_context(|| self.log(name))?;
        }
        Ok(())
    }

    /// The gate that was asked for.
    pub fn gate(&self) -> anyhow::Result<Gate> {
        self.gate.clone().context("the system has no gate")
    }

    /// The port of a service's HTTP door.
    pub fn http_port(&self, name: &str) -> anyhow::Result<u16> {
        Ok(
            std::fs::read_to_string(self.directory.path().join(format!("{name}.http")))?
                .trim()
                .parse()?,
        )
    }

    /// A path of the system's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Root of the mount points.
    pub fn mount_root(&self) -> PathBuf {
        self.path("mounts")
    }

    /// Root of the write caches.
    pub fn cache_root(&self) -> PathBuf {
        self.path("caches")
    }

    /// What a service has logged.
    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default()
    }

    /// A bus of a role.
    pub async fn bus(&self, role: Role) -> anyhow::Result<Arc<AmqpBus>> {
        self.broker.bus(role).await
    }

    /// Runs `explorer` to its end.
    pub async fn explorer(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let output = tokio::process::Command::new(program("explorer")?)
            .arg("--config")
            .arg(self.path("explorer.toml"))
            .args(arguments)
            .kill_on_drop(true)
            .output();
        Ok(tokio::time::timeout(SESSION_LIMIT, output)
            .await
            .context("explorer takes too long")??)
    }

    /// Runs `explorer --output json` and reads the lines of its answer; fails unless it ends well.
    pub async fn explorer_json(&self, arguments: &[&str]) -> anyhow::Result<Vec<Value>> {
        let all: Vec<&str> = ["--output", "json"]
            .into_iter()
            .chain(arguments.iter().copied())
            .collect();
        let output = self.explorer(&all).await?;
        ensure!(
            output.status.success(),
            "explorer {arguments:?}: {output:?}\n{}",
            self.log("recovery-svc")
        );
        json_lines(&output)
    }

    /// Publishes and waits; gives the session's id and how it stands.
    pub async fn publish(&self, arguments: &[&str]) -> anyhow::Result<(String, SessionDetail)> {
        let id = self.begin_publish(arguments).await?;
        let detail = self.reaches(&id, SessionStatus::Published).await?;
        Ok((id, detail))
    }

    /// Begins to publish; gives the session's id.
    pub async fn begin_publish(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.begin("publish", arguments).await
    }

    /// Mounts the files and waits; gives the session's id and where they are.
    pub async fn mount(&self, arguments: &[&str]) -> anyhow::Result<(String, Mounted)> {
        let id = self.begin("mount", arguments).await?;
        let detail = self.reaches(&id, SessionStatus::Mounted).await?;
        Ok((id, detail.mounted.context("where it is mounted")?))
    }

    async fn begin(&self, command: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let mut all = vec![
            command,
            "--repository",
            "main",
            "--target",
            "here",
            "--no-wait",
        ];
        all.extend_from_slice(arguments);
        let lines = self.explorer_json(&all).await?;
        lines
            .iter()
            .find_map(|line| line.get("session_id").and_then(Value::as_str))
            .map(str::to_owned)
            .with_context(|| format!("no session id in {lines:?}"))
    }

    /// One session as `explorer session` shows it; `None` when it is not known (yet).
    pub async fn session(&self, id: &str) -> anyhow::Result<Option<SessionDetail>> {
        let output = self.explorer(&["--output", "json", "session", id]).await?;
        if !output.status.success() {
            return Ok(None);
        }
        let value = json_lines(&output)?
            .into_iter()
            .next()
            .context("an answer")?;
        Ok(Some(serde_json::from_value(value)?))
    }

    /// Waits until a session is in a state; fails at once when it has ended in another.
    pub async fn reaches(&self, id: &str, status: SessionStatus) -> anyhow::Result<SessionDetail> {
        let what = format!("session {id} is {status}");
        let found = wait::find(&what, SESSION_LIMIT, async || {
            let Some(detail) = self.session(id).await? else {
                return Ok(None);
            };
            let now = detail.summary.status;
            if now == status {
                return Ok(Some(detail));
            }
            let stuck = now.is_final() || now == SessionStatus::WaitingForManualRetry;
            ensure!(!stuck, "the session is {now}: {:?}", detail.summary.problem);
            Ok(None)
        });
        found.await.with_context(|| self.story(id))
    }

    /// Everything that helps to understand a failure.
    fn story(&self, id: &str) -> String {
        let tail = |text: String| {
            let lines: Vec<&str> = text.lines().rev().take(40).collect();
            lines.into_iter().rev().collect::<Vec<_>>().join("\n")
        };
        let logs = self.cache_root().join(id).join("log");
        let mut story = String::new();
        for name in ["mount-svc", "recovery-svc"] {
            story += &format!("--- {name}\n{}\n", tail(self.log(name)));
        }
        for entry in std::fs::read_dir(&logs).into_iter().flatten().flatten() {
            let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
            story += &format!("--- {}\n{}\n", entry.path().display(), tail(text));
        }
        story
    }

    /// Fails when a session's directories, mounts or processes are still there.
    pub fn nothing_is_left_of(&self, id: &str) -> anyhow::Result<()> {
        for root in [self.mount_root(), self.cache_root()] {
            let path = root.join(id);
            ensure!(!path.exists(), "{} is still there", path.display());
            ensure!(
                leftovers::mounts(&path).is_empty(),
                "{} is still mounted",
                path.display()
            );
            let processes = leftovers::processes(&path);
            ensure!(
                processes.is_empty(),
                "processes are still there: {processes:?}"
            );
        }
        Ok(())
    }

    /// Runs SQL on a published instance through its private socket, as its OS user; one line a row.
    pub async fn sql(
        &self,
        detail: &SessionDetail,
        database: &str,
        sql: &str,
    ) -> anyhow::Result<String> {
        let published = detail.published.as_ref().context("not published")?;
        let output = tokio::process::Command::new("runuser")
            .args([
                "-u",
                "postgres",
                "--",
                "psql",
                "-XAtq",
                "-v",
                "ON_ERROR_STOP=1",
                "-d",
                database,
                "-c",
                sql,
            ])
            .arg("-h")
            .arg(&published.socket_directory)
            .args(["-p", &published.port.to_string(), "-U", "postgres"])
            .current_dir("/")
            .output()
            .await?;
        ensure!(
            output.status.success(),
            "{sql}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
    }
}

impl Drop for TestSystem {
    fn drop(&mut self) {
        self.mount_svc.kill();
        self.recovery_svc.kill();
        leftovers::clear(self.directory.path());
    }
}

/// One JSON document a line of standard output.
pub fn json_lines(output: &Output) -> anyhow::Result<Vec<Value>> {
    let text = std::str::from_utf8(&output.stdout)?;
    text.lines()
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}")))
        .collect()
}

/// The reply inside a private queue's delivery; for tests that ask without explorer.
pub fn reply_of(body: &[u8]) -> anyhow::Result<Reply> {
    Ok(
        common::messages::Envelope::from_bytes(body, common::messages::Limits::REPLY_BYTES)?
            .payload,
    )
}

/// A port that is free now.
pub fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port())
}

async fn http_get(port: u16, path: &str) -> anyhow::Result<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
    stream
        .write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())
        .await?;
    let mut answer = String::new();
    tokio::time::timeout(Duration::from_secs(5), stream.read_to_string(&mut answer)).await??;
    Ok(answer.replacen("HTTP/1.0", "HTTP/1.1", 1))
}

/// The program that each service starts on the target.
struct Agents {
    mount_svc: PathBuf,
    recovery_svc: PathBuf,
}

fn write_configuration(
    directory: &Path,
    broker: &TestBroker,
    repository: &Path,
    options: &SystemOptions,
    agents: &Agents,
) -> anyhow::Result<()> {
    let section = |role: Role| {
        format!(
            "[broker]\nhost = \"127.0.0.1\"\nport = {}\nuser = \"{}\"\npassword_file = \"{}\"\nheartbeat_s = {}\n",
            broker.port(),
            role.user(),
            broker.password_file(role).display(),
            broker::HEARTBEAT_S,
        )
    };
    let default_port = free_port()?;
    for (name, role, agent, more) in [
        (
            "mount-svc",
            Role::MountService,
            &agents.mount_svc,
            format!(
                "[repositories.main]\npath = \"{}\"\n{}\n",
                repository.display(),
                options.repository_lines
            ),
        ),
        (
            "recovery-svc",
            Role::RecoveryService,
            &agents.recovery_svc,
            options.recovery_lines.clone(),
        ),
    ] {
        let target = format!(
            "[targets.here]\nagent_program = \"{}\"\nmount_root = \"{}\"\ncache_root = \"{}\"\n\
             default_port = {default_port}\ncache_free_bytes_min = 67108864\n{}\n",
            agent.display(),
            directory.join("mounts").display(),
            directory.join("caches").display(),
            options.target_lines,
        );
        let port = free_port()?;
        std::fs::write(directory.join(format!("{name}.http")), port.to_string())?;
        let top = if name == "mount-svc" {
            "watch_every_s = 1"
        } else {
            ""
        };
        let text = format!(
            "server = \"{}\"\nstate_directory = \"{}\"\nhttp_listen = \"127.0.0.1:{port}\"\n{top}\n{}{target}{more}",
            broker::SERVER,
            directory.join(format!("{name}.state")).display(),
            section(role),
        );
        std::fs::write(directory.join(format!("{name}.toml")), text)?;
    }
    let text = format!(
        "server = \"{}\"\n{}",
        broker::SERVER,
        section(Role::Explorer)
    );
    std::fs::write(directory.join("explorer.toml"), text)?;
    Ok(())
}
