//! A real PostgreSQL cluster for a test: made in a temporary directory as the OS user `postgres`,
//! reachable on loopback and its own socket directory only, gone when it is dropped.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

/// The OS user that clusters run as; PostgreSQL refuses root.
pub const OS_USER: &str = "postgres";

/// The programs of one PostgreSQL major version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    /// The major version.
    pub major: u32,
    /// Directory of its programs.
    pub bin: PathBuf,
}

/// Every PostgreSQL on this machine, oldest first: `/usr/lib/postgresql/*/bin`, and the wheel of 18 that `./test` names.
pub fn installations() -> Vec<Installation> {
    let system = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten();
    let mut bins: Vec<PathBuf> = system
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .collect();
    bins.extend(std::env::var_os("PGINSTANT_TEST_PG18").map(PathBuf::from));
    let mut found: Vec<_> = bins
        .into_iter()
        .filter(|bin| bin.join("initdb").exists() && bin.join("pg_basebackup").exists())
        .filter_map(|bin| {
            Some(Installation {
                major: major_of(&bin)?,
                bin,
            })
        })
        .collect();
    found.sort_by_key(|installation| installation.major);
    found.dedup_by_key(|installation| installation.major);
    found
}

fn major_of(bin: &Path) -> Option<u32> {
    let output = Command::new(bin.join("postgres"))
        .arg("--version")
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text.split_whitespace().nth(2)?;
    version
        .split(|c: char| !c.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

/// How a backup is taken.
#[derive(Debug, Clone, Default)]
pub struct BackupOptions {
    /// `pg_basebackup -Ft` instead of `-Fp`.
    pub tar: bool,
    /// Further arguments, such as `--no-manifest` or `--manifest-checksums=SHA256`.
    pub arguments: Vec<String>,
}

/// A running (or stopped) cluster.
#[derive(Debug)]
pub struct TestPostgres {
    installation: Installation,
    directory: TempDir,
    port: u16,
    tablespaces: Vec<PathBuf>,
}

impl TestPostgres {
    /// Makes a cluster with data checksums and starts it.
    pub fn start_new(installation: &Installation) -> Result<Self> {
        Self::start_new_in(installation, &std::env::temp_dir())
    }

    /// The same in a directory below this one.
    pub fn start_new_in(installation: &Installation, parent: &Path) -> Result<Self> {
        Self::make(installation, parent, 16)
    }

    /// The same with WAL segments of this size, in MiB: a power of two from 1 to 1024.
    pub fn start_new_with_segments(installation: &Installation, segment_mib: u32) -> Result<Self> {
        Self::make(installation, &std::env::temp_dir(), segment_mib)
    }

    fn make(installation: &Installation, parent: &Path, segment_mib: u32) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("pginstant-test-pg")
            .tempdir_in(parent)?;
        give_to_postgres(directory.path())?;
        let mut cluster = Self {
            installation: installation.clone(),
            directory,
            port: free_port()?,
            tablespaces: Vec::new(),
        };
        cluster.make_directory("socket")?;
        run(cluster
            .program("initdb")
            .args([
                "--data-checksums",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
                "-U",
                OS_USER,
            ])
            .arg(format!("--wal-segsize={segment_mib}"))
            .arg("-D")
            .arg(cluster.data_directory()))?;
        // At least two segments.
        let max_wal_mib = (2 * segment_mib).max(512);
        let settings = format!(
            "listen_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\nwal_level = replica\nmax_wal_senders = 8\n\
             fsync = off\nlog_timezone = 'UTC'\nshared_buffers = 64MB\nmax_wal_size = {max_wal_mib}MB\n",
            cluster.socket_directory().display()
        );
        append(&cluster.data_directory().join("postgresql.conf"), &settings)?;
        cluster.start()?;
        Ok(cluster)
    }

    /// Starts it, on another port if somebody took the one it had.
    pub fn start(&mut self) -> Result<()> {
        for _ in 0..5 {
            let started = run(self
                .program("pg_ctl")
                .args(["start", "-w", "-t", "60", "-D"])
                .arg(self.data_directory())
                .arg("-l")
                .arg(self.directory.path().join("log"))
                .args(["-o", &format!("-p {}", self.port)]));
            match started {
                Ok(_) => return Ok(()),
                Err(_) if port_is_taken(self.port) => self.port = free_port()?,
                Err(error) => {
                    let log = std::fs::read_to_string(self.directory.path().join("log"));
                    return Err(error.context(log.unwrap_or_default()));
                }
            }
        }
        bail!("no free port in five attempts")
    }

    /// Stops it: `fast`, `immediate` or `smart`.
    pub fn stop(&self, mode: &str) -> Result<()> {
        let arguments = ["stop", "-w", "-t", "60", "-m", mode, "-D"];
        run(self
            .program("pg_ctl")
            .args(arguments)
            .arg(self.data_directory()))
        .map(drop)
    }

    /// Has it go on on a timeline of its own, as after a failover.
    pub fn promote(&mut self) -> Result<()> {
        self.stop("fast")?;
        let signal = self.data_directory().join("recovery.signal");
        std::fs::write(&signal, "")?;
        give_to_postgres(&signal)?;
        let automatic = self.data_directory().join("postgresql.auto.conf");
        append(&automatic, "restore_command = '/bin/false'\n")?;
        self.start()?;
        wait_until("the cluster is promoted", || {
            let found = self.psql("postgres", "SELECT pg_is_in_recovery()");
            found.is_ok_and(|text| text.trim() == "f")
        })
    }

    /// Kills the postmaster with SIGKILL and waits until it has gone.
    pub fn kill(&self) -> Result<()> {
        let pid_file = self.data_directory().join("postmaster.pid");
        let text = std::fs::read_to_string(pid_file)?;
        let pid: i32 = text
            .lines()
            .next()
            .context("postmaster.pid is empty")?
            .parse()?;
        let pid = rustix::process::Pid::from_raw(pid).context("no pid")?;
        rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
        wait_until("the postmaster has gone", || {
            rustix::process::test_kill_process(pid).is_err()
        })?;
        // Its children notice by themselves; a new postmaster refuses while they hold the shared memory.
        wait_until("nobody listens any more", || !port_is_taken(self.port))
    }

    /// Its programs' version and place.
    pub fn installation(&self) -> &Installation {
        &self.installation
    }

    /// Its TCP port, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its data directory.
    pub fn data_directory(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// The directory of its socket.
    pub fn socket_directory(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// Runs SQL in a database; rows come without alignment, fields apart by `|`.
    pub fn psql(&self, database: &str, sql: &str) -> Result<String> {
        let mut program = self.client("psql");
        program.args([
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            database,
            "-c",
            sql,
        ]);
        Ok(String::from_utf8(run(&mut program)?.stdout)?
            .trim_end()
            .to_owned())
    }

    /// Runs pgbench to its end.
    pub fn pgbench(&self, database: &str, arguments: &[&str]) -> Result<String> {
        let output = run(self.client("pgbench").args(arguments).arg(database))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts pgbench beside the test; it ends when the guard is dropped.
    pub fn pgbench_in_background(&self, database: &str, arguments: &[&str]) -> Result<Load> {
        // As root: a child of runuser would outlive it when that is killed.
        let mut program = Command::new(self.installation.bin.join("pgbench"));
        self.connect(&mut program);
        program.args(arguments).arg(database);
        program
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Load::start(&mut program)
    }

    /// Makes a tablespace in a directory of its own and returns that directory.
    pub fn create_tablespace(&mut self, name: &str) -> Result<PathBuf> {
        let path = self.make_directory(&format!("tablespace_{name}"))?;
        self.psql(
            OS_USER,
            &format!("CREATE TABLESPACE {name} LOCATION '{}'", path.display()),
        )?;
        self.tablespaces.push(path.clone());
        Ok(path)
    }

    /// Takes a backup into `directory`, which must not exist. Tablespaces of a plain one go to `<directory>.<name>`,
    /// beside it, so that a repository directory holds both.
    pub fn backup(&self, directory: &Path, options: &BackupOptions) -> Result<()> {
        let parent = directory
            .parent()
            .context("a backup needs a parent directory")?;
        give_to_postgres(parent)?;
        let mut program = self.client("pg_basebackup");
        program
            .args([
                "--checkpoint=fast",
                "--no-sync",
                "--label=pginstant test",
                "-D",
            ])
            .arg(directory);
        if options.tar {
            program.arg("-Ft");
        } else {
            program.arg("-Fp");
            for path in &self.tablespaces {
                let name = path
                    .file_name()
                    .and_then(OsStr::to_str)
                    .context("tablespace name")?;
                let to = format!("{}.{name}", directory.display());
                program.arg("-T").arg(format!("{}={to}", path.display()));
            }
        }
        run(program.args(&options.arguments)).map(drop)
    }

    /// Runs `pg_verifybackup` on a plain backup; its complaints are the error.
    pub fn verify_backup(&self, directory: &Path) -> Result<()> {
        run(self.program("pg_verifybackup").arg(directory)).map(drop)
    }

    /// A program of the installation, to be run as the OS user.
    pub fn program(&self, name: &str) -> Command {
        as_postgres(&self.installation.bin.join(name))
    }

    /// A client program, told how to reach the cluster.
    pub fn client(&self, name: &str) -> Command {
        let mut command = self.program(name);
        self.connect(&mut command);
        command
    }

    fn connect(&self, command: &mut Command) {
        command.arg("-h").arg(self.socket_directory()).args([
            "-p",
            &self.port.to_string(),
            "-U",
            OS_USER,
        ]);
    }

    fn make_directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.directory.path().join(name);
        std::fs::create_dir(&path)?;
        give_to_postgres(&path)?;
        Ok(path)
    }
}

impl Drop for TestPostgres {
    fn drop(&mut self) {
        if self.data_directory().join("postmaster.pid").exists() && self.stop("immediate").is_err()
        {
            // Not running after all: there is nothing left to stop.
            let _gone = self.kill();
        }
    }
}

/// Load on a cluster, until dropped.
#[derive(Debug)]
pub struct Load {
    child: std::process::Child,
}

impl Load {
    /// Runs a program until it is dropped or ends by itself.
    pub fn start(program: &mut Command) -> Result<Self> {
        let child = program.spawn()?;
        Ok(Self { child })
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ended = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// A command run as the OS user, in a directory that it may enter.
pub fn as_postgres(program: &Path) -> Command {
    let mut command = Command::new("runuser");
    command
        .args(["-u", OS_USER, "--"])
        .arg(program)
        .current_dir("/");
    command
        .env_remove("PGDATA")
        .env_remove("PGHOST")
        .env_remove("PGPORT");
    command
}

/// Runs to the end; what it wrote to stderr is the error.
pub fn run(command: &mut Command) -> Result<Output> {
    // pg_ctl's server would hold pipes open for ever, so output goes to files.
    let (mut out, mut err) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let status = command
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(err.try_clone()?)
        .status()
        .with_context(|| format!("run {command:?}"))?;
    let output = Output {
        status,
        stdout: read_all(&mut out)?,
        stderr: read_all(&mut err)?,
    };
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(status.success(), "{command:?} ended with {status}: {said}");
    Ok(output)
}

fn read_all(file: &mut std::fs::File) -> Result<Vec<u8>> {
    use std::io::{Read, Seek, SeekFrom};
    file.seek(SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Waits for a condition, at most 30 seconds.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        ensure!(
            Instant::now() < deadline,
            "waited 30 s in vain until {what}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Lets the OS user own a directory and others pass through it.
pub fn give_to_postgres(path: &Path) -> Result<()> {
    run(Command::new("chown").arg(OS_USER).arg(path))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn append(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    let mut file = std::fs::OpenOptions::new().append(true).open(path)?;
    Ok(file.write_all(text.as_bytes())?)
}

/// A loopback port that nobody listens on; each caller in this process gets another.
pub fn free_port() -> Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 8_000).unwrap_or(0);
    for _ in 0..2_000 {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        // Below the range of ports that the kernel gives out for connections (32768 and above).
        let port = 20_000 + (start.wrapping_mul(7) % 10_000 + step) % 12_000;
        if !port_is_taken(port) {
            return Ok(port);
        }
    }
    bail!("no free loopback port")
}

fn port_is_taken(port: u16) -> bool {
    std::net::TcpListener::bind(("127.0.0.1", port)).is_err()
}
