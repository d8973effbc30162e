//! A RabbitMQ node of a test's own: loopback ports, data, cookie and epmd of its own, with the product's topology and users
//! loaded at boot from the product's definitions. It goes away with its owner, whatever becomes of the test: a watchdog
//! process waits for the end of a pipe, kills what was started and removes the directory.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use common::bus::amqp::{AmqpBus, AmqpOptions, check_topology};
use common::config::Secret;
use common::env::Env;
use common::ids::ServerName;
use common::topology::{self, Role, Topology};
use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// The mount server of the tests' topologies.
pub const SERVER: &str = "test1";
/// Heartbeat of the tests' connections, in seconds.
pub const HEARTBEAT_S: u16 = 2;

const BOOT_LIMIT: Duration = Duration::from_secs(90);
const STOP_LIMIT: Duration = Duration::from_secs(30);
const INFANCY: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Where RabbitMQ's own programs are; the wrappers in `sbin` change the user and the home directory.
const PROGRAM_DIRECTORIES: [&str; 2] = ["/usr/lib/rabbitmq/bin", "/opt/rabbitmq/sbin"];
/// Names another directory of RabbitMQ's programs.
pub const PROGRAMS_VARIABLE: &str = "PGINSTANT_TEST_RABBITMQ";

/// Reads process groups to kill, the last line counts; at the end of the pipe kills them and removes the directory.
const WATCHDOG: &str = r#"
while read -r line; do groups=$line; done
for group in $groups; do kill -KILL "-$group" 2>/dev/null; done
tries=0
while [ -d "$1" ] && [ $tries -lt 50 ]; do rm -rf "$1" 2>/dev/null || sleep 0.1; tries=$((tries + 1)); done
"#;

/// The name of [`SERVER`].
pub fn server() -> ServerName {
    ServerName::new(SERVER).expect("the constant is a valid name")
}

/// The product's topology for [`SERVER`], with this waiting time in the retry queues.
pub fn test_topology(retry_ttl_ms: u64) -> Topology {
    Topology::new([server()]).with_retry_ttl_ms(retry_ttl_ms)
}

/// A broker that belongs to one test.
#[derive(Debug)]
pub struct TestBroker {
    topology: Topology,
    ports: Ports,
    programs: PathBuf,
    epmd: Child,
    server: Option<Child>,
    watchdog: Child,
    made_at: Instant,
    // Removed by the watchdog, and by its own guard if that failed.
    directory: TempDir,
}

#[derive(Debug, Clone, Copy)]
struct Ports {
    amqp: u16,
    distribution: u16,
    epmd: u16,
}

fn free_ports() -> anyhow::Result<Ports> {
    let sockets = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0"));
    let mut ports = [0; 3];
    for (port, socket) in ports.iter_mut().zip(sockets) {
        *port = socket.context("find a free port")?.local_addr()?.port();
    }
    let [amqp, distribution, epmd] = ports;
    Ok(Ports {
        amqp,
        distribution,
        epmd,
    })
}

fn programs() -> anyhow::Result<PathBuf> {
    let named = std::env::var_os(PROGRAMS_VARIABLE).map(PathBuf::from);
    let usual = PROGRAM_DIRECTORIES.map(PathBuf::from);
    named
        .into_iter()
        .chain(usual)
        .find(|directory| directory.join("rabbitmq-server").exists())
        .context("RabbitMQ is not installed: apt-get install rabbitmq-server")
}

impl TestBroker {
    /// Starts a broker with the topology and waits until it is usable.
    pub async fn start(topology: Topology) -> anyhow::Result<Self> {
        let mut tries = 3;
        loop {
            // Another test may take a port between our looking and the broker's binding.
            match Self::start_once(topology.clone()).await {
                Ok(broker) => return Ok(broker),
                Err(error) if tries == 1 => return Err(error),
                Err(_) => tries -= 1,
            }
        }
    }

    async fn start_once(topology: Topology) -> anyhow::Result<Self> {
        let programs = programs()?;
        let ports = free_ports()?;
        let directory = tempfile::Builder::new()
            .prefix("pginstant-broker-")
            .tempdir()
            .context("make the broker's directory")?;
        let mut watchdog = Command::new("sh")
            .args(["-c", WATCHDOG, "watchdog"])
            .arg(directory.path())
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .context("start the watchdog")?;
        write_files(directory.path(), &topology, ports)?;
        let epmd = Command::new("epmd")
            .args(["-address", "127.0.0.1", "-port", &ports.epmd.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("start epmd")?;
        watch(&mut watchdog, &[epmd.id()])?;
        let mut broker = Self {
            topology,
            ports,
            programs,
            epmd,
            server: None,
            watchdog,
            made_at: Instant::now(),
            directory,
        };
        broker.boot().await?;
        broker.made_at = Instant::now();
        Ok(broker)
    }

    /// Starts the node again after [`TestBroker::kill`] or [`TestBroker::stop`], on the same data, and waits for it.
    pub async fn boot(&mut self) -> anyhow::Result<()> {
        ensure!(self.server.is_none(), "the broker is running already");
        let output = fs::File::create(self.path("console.log"))?;
        let server = self
            .command("rabbitmq-server")
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .spawn()
            .context("start rabbitmq-server")?;
        watch(&mut self.watchdog, &[self.epmd.id(), server.id()])?;
        self.server = Some(server);
        let deadline = Instant::now() + BOOT_LIMIT;
        loop {
            let options = self.options(Role::Admin);
            let usable = tokio::time::timeout(Duration::from_secs(5), check_topology(&options));
            let last = match usable.await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer".to_owned(),
            };
            let ended = match &mut self.server {
                Some(server) => server.try_wait()?,
                None => None,
            };
            if let Some(status) = ended {
                bail!("the broker ended with {status}: {}", self.console());
            }
            if Instant::now() > deadline {
                let errors = self.unexpected_errors(&[]);
                bail!("the broker did not boot: {last}: {errors:#?}");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn console(&self) -> String {
        fs::read_to_string(self.path("console.log")).unwrap_or_default()
    }

    /// What the broker has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log/broker.log")).unwrap_or_default()
    }

    /// The errors in the broker's log that contain none of the expected texts. An entry may have several lines.
    pub fn unexpected_errors(&self, expected: &[&str]) -> Vec<String> {
        let mut entries: Vec<String> = Vec::new();
        for line in self.log().lines() {
            match entries.last_mut() {
                // Lines of one entry have one beginning: time, level and process.
                Some(entry) if same_entry(entry, line) => {
                    entry.push('\n');
                    entry.push_str(line);
                }
                _ => entries.push(line.to_owned()),
            }
        }
        entries.retain(|entry| {
            entry.contains(" [error] ") && !expected.iter().any(|text| entry.contains(text))
        });
        entries
    }

    /// The port for AMQP, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.ports.amqp
    }

    /// The file with the password of a role's user.
    pub fn password_file(&self, role: Role) -> PathBuf {
        self.path("secrets").join(role.user())
    }

    /// The broker's topology.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// How a role reaches the broker.
    pub fn options(&self, role: Role) -> AmqpOptions {
        AmqpOptions {
            host: "127.0.0.1".to_owned(),
            port: self.ports.amqp,
            vhost: topology::VHOST.to_owned(),
            user: role.user().to_owned(),
            password: Secret::from_file(&self.password_file(role))
                .unwrap_or_else(|_| Secret::new("")),
            heartbeat_s: HEARTBEAT_S,
            connection_name: format!("{role}/test"),
            publish_limit_s: 60,
            role,
            topology: self.topology.clone(),
        }
    }

    /// A bus for a role.
    pub async fn bus(&self, role: Role) -> anyhow::Result<Arc<AmqpBus>> {
        let options = self.options(role);
        let bus = AmqpBus::open(options, Env::system(), CancellationToken::new()).await;
        bus.context("open the bus")
    }

    /// `kill -9`. RabbitMQ 3.10 needs a moment after the first declaration of a stream until its coordinator would survive
    /// that; without it the stream is down for ever. So a very young broker is left to live that long first.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        tokio::time::sleep_until((self.made_at + INFANCY).into()).await;
        self.signal(Signal::KILL)?;
        if let Some(mut server) = self.server.take() {
            server.wait()?;
        }
        Ok(())
    }

    /// Stops the node the orderly way.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::TERM)?;
        let mut server = self.server.take().context("the broker is not running")?;
        let deadline = Instant::now() + STOP_LIMIT;
        while server.try_wait()?.is_none() {
            if Instant::now() > deadline {
                self.server = Some(server);
                self.kill().await?;
                bail!("the broker did not stop within {STOP_LIMIT:?}");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Freezes the node: its sockets stay open, nothing answers.
    pub fn freeze(&self) -> anyhow::Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets a frozen node go on.
    pub fn thaw(&self) -> anyhow::Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let server = self.server.as_ref().context("the broker is not running")?;
        Ok(kill_process_group(pid(server)?, signal)?)
    }

    /// Runs `rabbitmqctl` on the node; its output.
    pub fn rabbitmqctl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self
            .command("rabbitmqctl")
            .arg("--quiet")
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .context("run rabbitmqctl")?;
        ensure!(
            output.status.success(),
            "rabbitmqctl {arguments:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The broker's version.
    pub fn version(&self) -> anyhow::Result<String> {
        Ok(self.rabbitmqctl(&["version"])?.trim().to_owned())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        let loopback = "-kernel inet_dist_use_interface {127,0,0,1}";
        command
            .env("HOME", self.directory.path())
            .env("ERL_EPMD_PORT", self.ports.epmd.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env(
                "RABBITMQ_NODENAME",
                format!("t{}@localhost", self.ports.amqp),
            )
            .env("RABBITMQ_DIST_PORT", self.ports.distribution.to_string())
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env("RABBITMQ_CONFIG_FILE", self.path("rabbitmq.conf"))
            .env(
                "RABBITMQ_ENABLED_PLUGINS_FILE",
                self.path("enabled_plugins"),
            )
            .env("RABBITMQ_GENERATED_CONFIG_DIR", self.path("generated"))
            .env("RABBITMQ_SCHEMA_DIR", self.path("schema"))
            .env("RABBITMQ_MNESIA_BASE", self.path("mnesia"))
            .env("RABBITMQ_LOG_BASE", self.path("log"))
            .env("RABBITMQ_LOGS", self.path("log/broker.log"))
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                // Idle schedulers must not spin: several brokers share few cores.
                format!("{loopback} +sbwt none +sbwtdcpu none +sbwtdio none"),
            )
            .env("RABBITMQ_CTL_ERL_ARGS", loopback)
            .current_dir(self.directory.path());
        command
    }
}

impl Drop for TestBroker {
    fn drop(&mut self) {
        // The end of its pipe sets the watchdog to work; then there is only to collect what has ended.
        drop(self.watchdog.stdin.take());
        let children = [
            Some(&mut self.watchdog),
            Some(&mut self.epmd),
            self.server.as_mut(),
        ];
        for (at, child) in children.into_iter().flatten().enumerate() {
            // Should the watchdog have failed, a test must still not wait for ever.
            let killed = if at > 0 { child.kill() } else { Ok(()) };
            if let Err(error) = killed.and_then(|()| child.wait()) {
                eprintln_once(&format!("a process of the test broker: {error}"));
            }
        }
    }
}

#[expect(
    clippy::print_stderr,
    reason = "a test's only way to say it while dropping"
)]
fn eprintln_once(text: &str) {
    eprintln!("{text}");
}

fn same_entry(entry: &str, line: &str) -> bool {
    let head = |text: &str| text.split_once('>').map(|(head, _)| head.to_owned());
    head(entry).is_some() && head(entry) == head(line)
}

fn pid(child: &Child) -> anyhow::Result<Pid> {
    i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .context("the process has an id")
}

fn watch(watchdog: &mut Child, groups: &[u32]) -> anyhow::Result<()> {
    let groups: Vec<String> = groups.iter().map(u32::to_string).collect();
    let pipe = watchdog.stdin.as_mut().context("the watchdog has a pipe")?;
    writeln!(pipe, "{}", groups.join(" ")).context("tell the watchdog")
}

fn write_files(directory: &Path, topology: &Topology, ports: Ports) -> anyhow::Result<()> {
    for name in ["log", "mnesia", "generated", "schema", "secrets"] {
        fs::create_dir(directory.join(name))?;
    }
    let cookie = directory.join(".erlang.cookie");
    fs::write(&cookie, format!("{:016x}", rand::random::<u64>()))?;
    fs::set_permissions(&cookie, fs::Permissions::from_mode(0o400))?;
    for role in Role::ALL {
        let password = format!("{:032x}\n", rand::random::<u128>());
        fs::write(directory.join("secrets").join(role.user()), password)?;
    }
    let template = directory.join("template.json");
    fs::write(
        &template,
        serde_json::to_vec_pretty(&topology::definitions(topology))?,
    )?;
    let fill = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/rabbitmq/fill-passwords.sh");
    let filled = Command::new(&fill)
        .arg(&template)
        .arg(directory.join("secrets"))
        .stderr(Stdio::inherit())
        .output()
        .context("run fill-passwords.sh")?;
    ensure!(filled.status.success(), "fill-passwords.sh failed");
    let definitions = directory.join("definitions.json");
    fs::write(&definitions, filled.stdout)?;
    fs::write(directory.join("enabled_plugins"), "[].\n")?;
    let configuration = format!(
        "listeners.tcp.1 = 127.0.0.1:{}\n\
         load_definitions = {}\n\
         log.file.level = info\n\
         disk_free_limit.absolute = 50MB\n\
         raft.wal_max_size_bytes = 33554432\n\
         collect_statistics_interval = 60000\n",
        ports.amqp,
        definitions.display()
    );
    fs::write(directory.join("rabbitmq.conf"), configuration)?;
    Ok(())
}
