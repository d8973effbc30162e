//! A real S3 server for a test: s3s-fs, as `./test` installs it. Its buckets are directories, its objects files in them.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use repository::{ObjectAccess, ObjectLimits, ObjectLocation, ObjectOptions, Storage};
use tempfile::TempDir;

use crate::postgres::run;
use crate::system::free_port;
use crate::tls_front::{TlsFront, wait_for_port};

/// The bucket that there is.
pub const BUCKET: &str = "backups";
/// The user's secret, which must be nowhere to be seen.
pub const SECRET: &str = "hunter2hunter2hunter2";
const ACCESS_KEY: &str = "pginstant-tests";
/// A server with one bucket; it goes away with the test.
#[derive(Debug)]
pub struct S3Server {
    directory: TempDir,
    port: u16,
    /// Whether it answers everybody, and not only who has its key.
    is_open: bool,
    child: Option<Child>,
}

impl S3Server {
    /// Starts a server.
    pub fn start() -> Result<Self> {
        Self::start_as(false)
    }

    /// Starts one that answers everybody.
    pub fn start_for_anybody() -> Result<Self> {
        Self::start_as(true)
    }

    fn start_as(is_open: bool) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("pginstant-s3-")
            .tempdir_in("/var/tmp")?;
        std::fs::create_dir_all(directory.path().join("buckets").join(BUCKET))?;
        let mut server = Self {
            directory,
            port: free_port()?,
            is_open,
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
        let keys = ["--access-key", ACCESS_KEY, "--secret-key", SECRET];
        let keys = keys.into_iter().filter(|_| !self.is_open);
        let child = Command::new(&program)
            .args(["--host", "127.0.0.1", "--port", &self.port.to_string()])
            .args(keys)
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

    /// Puts the files of a directory into the bucket, as `aws s3 sync` does: those that links lead to too, and no directories.
    pub fn put_files(&self, directory: &Path, prefix: &str) -> Result<()> {
        let to = self.bucket().join(prefix);
        std::fs::create_dir_all(&to)?;
        run(Command::new("cp")
            .arg("-rL")
            .arg(directory.join("."))
            .arg(&to))?;
        let empty = ["-mindepth", "1", "-type", "d", "-empty", "-delete"];
        run(Command::new("find").arg(&to).args(empty)).map(drop)
    }

    /// How the bucket is reached.
    pub fn options(&self) -> ObjectOptions {
        ObjectOptions {
            endpoint: Some(self.endpoint()),
            allow_http: true,
            credentials_file: Some(self.directory.path().join("credentials")),
            setting: "repositories.main.object_store".to_owned(),
            ..ObjectOptions::default()
        }
    }

    /// Where it answers.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The port where it answers.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What the environment of a client says.
    pub fn variables(&self) -> [(&'static str, &'static str); 3] {
        [
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET),
            ("AWS_REGION", "us-east-1"),
        ]
    }

    /// A front that speaks TLS.
    pub fn front(&self) -> Result<TlsFront> {
        TlsFront::start(self.port)
    }

    /// Lines of pgBackRest's configuration: the bucket through a front.
    pub fn pgbackrest_lines(&self, front: &TlsFront) -> String {
        format!(
            "repo1-type=s3\nrepo1-path=/pgbackrest\nrepo1-s3-bucket={BUCKET}\nrepo1-s3-endpoint=127.0.0.1\n\
             repo1-storage-port={}\nrepo1-storage-verify-tls=n\nrepo1-s3-uri-style=path\n\
             repo1-s3-region=us-east-1\nrepo1-s3-key={ACCESS_KEY}\nrepo1-s3-key-secret={SECRET}\n",
            front.port()
        )
    }

    /// How the bucket is reached through a front, its certificate checked.
    pub fn options_through(&self, front: &TlsFront) -> ObjectOptions {
        ObjectOptions {
            endpoint: Some(format!("https://127.0.0.1:{}", front.port())),
            allow_http: false,
            ca_file: Some(front.certificate()),
            ..self.options()
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
