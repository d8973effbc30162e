//! A real S3 server for a test: s3s-fs, as `./test` installs it. Its buckets are directories, its objects files in them.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use repository::{ObjectAccess, ObjectLimits, ObjectLocation, ObjectOptions, Storage};
use tempfile::TempDir;

use crate::postgres::run;
use crate::system::free_port;

/// The bucket that there is.
pub const BUCKET: &str = "backups";
/// The user's secret, which must be nowhere to be seen.
pub const SECRET: &str = "hunter2hunter2hunter2";
const ACCESS_KEY: &str = "pginstant-tests";
/// How long the server may take to answer.
const START_MAX: Duration = Duration::from_secs(20);

/// What lets pgBackRest reach a server: it speaks TLS only. It goes away with the test.
#[derive(Debug)]
pub struct TlsFront {
    directory: TempDir,
    port: u16,
    child: Child,
}

impl TlsFront {
    /// Puts a front before a server.
    pub fn start(server: &S3Server) -> Result<Self> {
        let directory = tempfile::tempdir_in("/var/tmp")?;
        let certificate = directory.path().join("certificate.pem");
        let key = directory.path().join("key.pem");
        run(Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
            ])
            .args(["-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"])
            .args(["-addext", "subjectAltName=IP:127.0.0.1"])
            // Else it is one of an authority, which no server may show.
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(&certificate))?;
        let port = free_port()?;
        let (certificate, key) = (certificate.display(), key.display());
        let child = Command::new("socat")
            .arg(format!(
                "OPENSSL-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork,cert={certificate},key={key},verify=0"
            ))
            .arg(format!("TCP:127.0.0.1:{}", server.port))
            .stdin(Stdio::null())
            .spawn()
            .context("socat is installed by ./test")?;
        let front = Self {
            directory,
            port,
            child,
        };
        wait_for_port(port)?;
        Ok(front)
    }

    /// Lines of pgBackRest's configuration: the bucket through this front.
    pub fn pgbackrest_lines(&self) -> String {
        format!(
            "repo1-type=s3\nrepo1-path=/pgbackrest\nrepo1-s3-bucket={BUCKET}\nrepo1-s3-endpoint=127.0.0.1\n\
             repo1-storage-port={}\nrepo1-storage-verify-tls=n\nrepo1-s3-uri-style=path\n\
             repo1-s3-region=us-east-1\nrepo1-s3-key={ACCESS_KEY}\nrepo1-s3-key-secret={SECRET}\n",
            self.port
        )
    }

    /// How the bucket is reached through it, its certificate checked.
    pub fn options(&self, server: &S3Server) -> ObjectOptions {
        ObjectOptions {
            endpoint: Some(format!("https://127.0.0.1:{}", self.port)),
            allow_http: false,
            ca_file: Some(self.directory.path().join("certificate.pem")),
            ..server.options()
        }
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn wait_for_port(port: u16) -> Result<()> {
    let began = std::time::Instant::now();
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        ensure!(began.elapsed() < START_MAX, "nobody listens on port {port}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A server with one bucket; it goes away with the test.
#[derive(Debug)]
pub struct S3Server {
    directory: TempDir,
    port: u16,
    child: Option<Child>,
}

impl S3Server {
    /// Starts a server.
    pub fn start() -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("pginstant-s3-")
            .tempdir_in("/var/tmp")?;
        std::fs::create_dir_all(directory.path().join("buckets").join(BUCKET))?;
        let mut server = Self {
            directory,
            port: free_port()?,
            child: None,
        };
        server.write_credentials("credentials", SECRET)?;
        server.start_again()?;
        Ok(server)
    }

    /// Writes a file with credentials.
    pub fn write_credentials(&self, name: &str, secret: &str) -> Result<PathBuf> {
        let path = self.directory.path().join(name);
        let text = format!(
            "[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {secret}\n"
        );
        std::fs::write(&path, text)?;
        Ok(path)
    }

    /// Starts it again, on the same port.
    pub fn start_again(&mut self) -> Result<()> {
        let tools = std::env::var_os("PGINSTANT_TEST_TOOLS");
        let tools = tools.map_or_else(
            || PathBuf::from("/var/cache/pginstant-test/tools/bin"),
            PathBuf::from,
        );
        let program = tools.join("s3s-fs");
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.directory.path().join("log"))?;
        let child = Command::new(&program)
            .args(["--host", "127.0.0.1", "--port", &self.port.to_string()])
            .args(["--access-key", ACCESS_KEY, "--secret-key", SECRET])
            .arg(self.directory.path().join("buckets"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("{} is installed by ./test", program.display()))?;
        self.child = Some(child);
        if let Err(error) = wait_for_port(self.port) {
            let log = std::fs::read_to_string(self.directory.path().join("log"));
            bail!("{error}: {}", log.unwrap_or_default());
        }
        Ok(())
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            child.kill().ok();
            child.wait().ok();
        }
    }

    /// Where the bucket's objects lie as files.
    pub fn bucket(&self) -> PathBuf {
        self.directory.path().join("buckets").join(BUCKET)
    }

    /// Puts the files of a repository into the bucket. Links in it are for people: object stores have none.
    pub fn put(&self, repository: &Path, prefix: &str) -> Result<()> {
        let to = self.bucket().join(prefix);
        std::fs::create_dir_all(&to)?;
        run(Command::new("cp")
            .arg("-r")
            .arg(repository.join("."))
            .arg(&to))?;
        run(Command::new("find")
            .arg(&to)
            .args(["-type", "l", "-delete"]))?;
        ensure!(to.join("backup").is_dir(), "no repository was put");
        Ok(())
    }

    /// How the bucket is reached.
    pub fn options(&self) -> ObjectOptions {
        ObjectOptions {
            endpoint: Some(format!("http://127.0.0.1:{}", self.port)),
            allow_http: true,
            credentials_file: Some(self.directory.path().join("credentials")),
            setting: "repositories.main.object_store".to_owned(),
            ..ObjectOptions::default()
        }
    }

    /// The same as lines of a repository's section in a configuration.
    pub fn lines(&self) -> String {
        format!(
            "[repositories.main.object_store]\nendpoint = \"http://127.0.0.1:{}\"\nallow_http = true\n\
             credentials_file = \"{}\"\n",
            self.port,
            self.directory.path().join("credentials").display()
        )
    }

    /// The part of the bucket with this prefix.
    pub fn storage(&self, prefix: &str, access: &std::sync::Arc<ObjectAccess>) -> Result<Storage> {
        let location = format!("s3://{BUCKET}/{prefix}");
        let location = ObjectLocation::parse(&location)?.context("a location")?;
        Ok(Storage::objects(&location, &self.options(), access)?)
    }

    /// A way to it that tries again for this long.
    pub fn access(retry_for: Duration) -> std::sync::Arc<ObjectAccess> {
        std::sync::Arc::new(ObjectAccess::new(ObjectLimits {
            retry_for,
            ..ObjectLimits::default()
        }))
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.kill();
    }
}
