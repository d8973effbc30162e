//! A real server of Azure's Blob Storage for a test: Azurite, Microsoft's own, as `./test` installs it.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use repository::{ObjectAccess, ObjectLocation, ObjectOptions, Storage};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::postgres::{run, wait_until};
use crate::system::free_port;
use crate::tls_front::{TlsFront, wait_for_port};

/// The container that there is.
pub const CONTAINER: &str = "backups";
/// The account's key, which must be nowhere to be seen: this text, in base64.
const KEY_TEXT: &str = "hunter2hunter2hunter2-hunter2-hunter2";
/// The same as it is used.
pub const KEY: &str = "aHVudGVyMmh1bnRlcjJodW50ZXIyLWh1bnRlcjItaHVudGVyMg==";
const ACCOUNT: &str = "pginstant";

/// Makes a container with a request that is signed as Azure wants it.
const MAKE_CONTAINER: &str = r#"set -e
date=$(date -u '+%a, %d %b %Y %H:%M:%S GMT')
version=2020-10-02
signature=$(printf 'PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:%s\nx-ms-version:%s\n/%s/%s/%s\nrestype:container' \
    "$date" "$version" "$ACCOUNT" "$ACCOUNT" "$CONTAINER" | openssl dgst -sha256 -mac HMAC -macopt "key:$KEY_TEXT" -binary | base64 -w0)
curl --silent --show-error --fail --max-time 20 -X PUT -H "x-ms-date: $date" -H "x-ms-version: $version" -H 'Content-Length: 0' \
    -H "Authorization: SharedKey $ACCOUNT:$signature" "http://127.0.0.1:$PORT/$ACCOUNT/$CONTAINER?restype=container"
"#;

/// A server with one account and one container; it goes away with the test.
#[derive(Debug)]
pub struct AzureServer {
    directory: TempDir,
    port: u16,
    child: Option<Child>,
}

impl AzureServer {
    /// Starts a server.
    pub fn start() -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("pginstant-azure-")
            .tempdir_in("/var/tmp")?;
        let mut server = Self {
            directory,
            port: free_port()?,
            child: None,
        };
        server.write_credentials("credentials", KEY)?;
        server.start_again()?;
        run(Command::new("sh")
            .args(["-c", MAKE_CONTAINER])
            .env("ACCOUNT", ACCOUNT)
            .env("CONTAINER", CONTAINER)
            .env("KEY_TEXT", KEY_TEXT)
            .env("PORT", server.port.to_string()))?;
        Ok(server)
    }

    /// Starts it again, on the same port.
    pub fn start_again(&mut self) -> Result<()> {
        let place = std::env::var_os("PGINSTANT_TEST_AZURITE");
        let place = place.map_or_else(
            || PathBuf::from("/var/cache/pginstant-test/azurite-3.35.0"),
            PathBuf::from,
        );
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_path())?;
        let child = Command::new(place.join("node"))
            .arg(place.join("node_modules/azurite/dist/src/blob/main.js"))
            .args([
                "--blobHost",
                "127.0.0.1",
                "--blobPort",
                &self.port.to_string(),
            ])
            .args([
                "--skipApiVersionCheck",
                "--disableProductStyleUrl",
                "--disableTelemetry",
            ])
            .arg("--location")
            .arg(self.directory.path().join("data"))
            .env("AZURITE_ACCOUNTS", format!("{ACCOUNT}:{KEY}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("{} is installed by ./test", place.display()))?;
        self.child = Some(child);
        match wait_for_port(self.port) {
            Ok(()) => Ok(()),
            Err(error) => bail!("{error}: {}", self.log()),
        }
    }

    /// Ends it; what it keeps is written before that.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        let pid = Pid::from_raw(i32::try_from(child.id())?).context("a process id")?;
        kill_process(pid, Signal::TERM)?;
        let ended = wait_until("Azurite ends", || {
            matches!(child.try_wait(), Ok(Some(_)) | Err(_))
        });
        if ended.is_err() {
            child.kill().ok();
        }
        child.wait()?;
        ended
    }

    /// What it wrote: a line for each request, with the status of its answer.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// Writes a file with credentials.
    pub fn write_credentials(&self, name: &str, key: &str) -> Result<PathBuf> {
        let path = self.directory.path().join(name);
        let text =
            format!("azure_storage_account_name = {ACCOUNT}\nazure_storage_account_key = {key}\n");
        std::fs::write(&path, text)?;
        Ok(path)
    }

    /// Writes a file with a connection string, which says everything.
    pub fn write_connection_string(&self) -> Result<PathBuf> {
        let path = self.directory.path().join("connection string");
        let (name, value) = self.connection_string();
        std::fs::write(&path, format!("{name} = {value}\n"))?;
        Ok(path)
    }

    /// The same as a variable of a client's environment.
    pub fn connection_string(&self) -> (String, String) {
        let value = format!(
            "DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint=http://127.0.0.1:{}/{ACCOUNT};",
            self.port
        );
        ("AZURE_STORAGE_CONNECTION_STRING".to_owned(), value)
    }

    /// A front that speaks TLS.
    pub fn front(&self) -> Result<TlsFront> {
        TlsFront::start(self.port)
    }

    /// Lines of pgBackRest's configuration: the container through a front.
    pub fn pgbackrest_lines(&self, front: &TlsFront) -> String {
        format!(
            "repo1-type=azure\nrepo1-path=/pgbackrest\nrepo1-azure-container={CONTAINER}\n\
             repo1-azure-account={ACCOUNT}\nrepo1-azure-key={KEY}\nrepo1-azure-endpoint=127.0.0.1\n\
             repo1-azure-uri-style=path\nrepo1-storage-port={}\nrepo1-storage-verify-tls=n\n",
            front.port()
        )
    }

    /// How the container is reached through a front, its certificate checked.
    pub fn options_through(&self, front: &TlsFront) -> ObjectOptions {
        ObjectOptions {
            endpoint: Some(format!("https://127.0.0.1:{}/{ACCOUNT}", front.port())),
            allow_http: false,
            ca_file: Some(front.certificate()),
            ..self.options()
        }
    }

    /// How the container is reached.
    pub fn options(&self) -> ObjectOptions {
        ObjectOptions {
            endpoint: Some(format!("http://127.0.0.1:{}/{ACCOUNT}", self.port)),
            allow_http: true,
            credentials_file: Some(self.directory.path().join("credentials")),
            setting: "repositories.main.object_store".to_owned(),
            ..ObjectOptions::default()
        }
    }

    /// The part of the container with this prefix.
    pub fn storage(
        &self,
        prefix: &str,
        options: &ObjectOptions,
        access: &std::sync::Arc<ObjectAccess>,
    ) -> Result<Storage> {
        let location = ObjectLocation::parse(&format!("az://{CONTAINER}/{prefix}"))?;
        Ok(Storage::objects(
            &location.context("a location")?,
            options,
            access,
        )?)
    }
}

impl Drop for AzureServer {
    fn drop(&mut self) {
        // It may have ended by itself.
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}
