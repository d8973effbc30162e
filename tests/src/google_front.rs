//! What Google asks of its clients, before a server that asks nothing: each request has a token that its service account has signed itself
//! (<https://google.aip.dev/auth/4111>).

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use common::env::Env;
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use serde_json::json;
use tempfile::TempDir;

use crate::postgres::run;

/// The account's name.
const ACCOUNT: &str = "backups@tests.iam.gserviceaccount.com";
/// How long either side may say nothing.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// A front, which goes away with the test.
#[derive(Debug)]
pub struct GoogleFront {
    door: Arc<Door>,
    listener: Option<JoinHandle<()>>,
}

/// What a token says.
#[derive(serde::Deserialize)]
struct Claims {
    iss: String,
    exp: i64,
    scope: String,
}

#[derive(Debug)]
struct Door {
    directory: TempDir,
    port: u16,
    /// The port behind it.
    of: u16,
    admitted_count: AtomicUsize,
    /// Why others were not let in.
    refused: Mutex<Vec<String>>,
    is_closed: AtomicBool,
}

impl GoogleFront {
    /// Puts a front before what listens on a port.
    pub fn start(of: u16) -> Result<Self> {
        let directory = tempfile::tempdir_in("/var/tmp")?;
        let key = directory.path().join("key.pem");
        make_key(&key)?;
        run(Command::new("openssl")
            .args(["rsa", "-RSAPublicKey_out", "-outform", "DER", "-in"])
            .arg(&key)
            .arg("-out")
            .arg(directory.path().join("public.der")))?;
        let socket = TcpListener::bind("127.0.0.1:0")?;
        let door = Arc::new(Door {
            directory,
            port: socket.local_addr()?.port(),
            of,
            admitted_count: AtomicUsize::new(0),
            refused: Mutex::default(),
            is_closed: AtomicBool::new(false),
        });
        let behind = Arc::clone(&door);
        let listener = std::thread::spawn(move || behind.listen(&socket));
        Ok(Self {
            door,
            listener: Some(listener),
        })
    }

    /// The account's file, as the console gives it out, with a word on where this front is; with a key that is not the
    /// account's, if that is asked for.
    pub fn account_file(&self, has_another_key: bool) -> Result<PathBuf> {
        let key = match has_another_key {
            false => self.path("key.pem"),
            true => {
                let other = self.path("other.pem");
                make_key(&other)?;
                other
            }
        };
        let account = json!({
            "type": "service_account",
            "project_id": "tests",
            "private_key_id": "0123456789abcdef",
            "private_key": std::fs::read_to_string(&key)?,
            "client_email": ACCOUNT,
            "token_uri": "https://oauth2.googleapis.com/token",
            "gcs_base_url": format!("http://127.0.0.1:{}", self.door.port),
        });
        let path = key.with_extension("json");
        std::fs::write(&path, account.to_string())?;
        Ok(path)
    }

    /// How many requests were let in.
    pub fn admitted_count(&self) -> usize {
        self.door.admitted_count.load(Ordering::Relaxed)
    }

    /// Why others were not.
    pub fn refused(&self) -> Vec<String> {
        let refused = self.door.refused.lock();
        refused.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.door.directory.path().join(name)
    }
}

impl Drop for GoogleFront {
    fn drop(&mut self) {
        self.door.is_closed.store(true, Ordering::Release);
        // Wakes the listener; what fails has woken it already.
        TcpStream::connect(("127.0.0.1", self.door.port)).ok();
        if let Some(listener) = self.listener.take() {
            listener.join().ok();
        }
    }
}

impl Door {
    /// One request for each connection, each on a thread of its own that ends with it.
    fn listen(self: &Arc<Self>, socket: &TcpListener) {
        std::thread::scope(|scope| {
            for client in socket.incoming() {
                if self.is_closed.load(Ordering::Acquire) {
                    break;
                }
                scope.spawn(move || {
                    // A client may go whenever it likes.
                    client
                        .map_err(Into::into)
                        .and_then(|client| self.serve(&client))
                        .ok();
                });
            }
        });
    }

    fn serve(&self, client: &TcpStream) -> Result<()> {
        client.set_read_timeout(Some(SILENCE_MAX))?;
        client.set_write_timeout(Some(SILENCE_MAX))?;
        let mut request = BufReader::new(client);
        let mut passed_on = String::new();
        let mut token = None;
        loop {
            let mut line = String::new();
            request.read_line(&mut line)?;
            if line.trim_end().is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').unwrap_or((&line, ""));
            match name.to_ascii_lowercase().as_str() {
                "authorization" => token = value.trim().strip_prefix("Bearer ").map(str::to_owned),
                "connection" => {}
                _ => passed_on += &line,
            }
        }
        if let Err(error) = self.check(token.as_deref()) {
            let refused = self.refused.lock();
            let mut refused = refused.unwrap_or_else(PoisonError::into_inner);
            refused.push(format!("{error:#}"));
            drop(refused);
            let body = "<?xml version='1.0' encoding='UTF-8'?><Error><Code>AuthenticationRequired</Code>\
                <Message>Authentication required.</Message></Error>";
            let length = body.len();
            write!(
                &*client,
                "HTTP/1.1 401 Unauthorized\r\nContent-Type: application/xml\r\nContent-Length: {length}\r\n\
                 Connection: close\r\n\r\n{body}"
            )?;
            return Ok(());
        }
        self.admitted_count.fetch_add(1, Ordering::Relaxed);
        // Who only reads sends no body.
        let mut server = TcpStream::connect(("127.0.0.1", self.of))?;
        server.set_read_timeout(Some(SILENCE_MAX))?;
        write!(server, "{passed_on}Connection: close\r\n\r\n")?;
        std::io::copy(&mut server, &mut &*client)?;
        Ok(())
    }

    /// Whether a token is one of the account, and may read.
    fn check(&self, token: Option<&str>) -> Result<()> {
        let token = token.context("no token was sent")?;
        let (signed, signature) = token.rsplit_once('.').context("the token has no parts")?;
        let claims = signed.split_once('.').context("the token has two parts")?.1;
        let claims: Claims = serde_json::from_slice(&decode(claims)?)?;
        ensure!(claims.iss == ACCOUNT, "the token is of {}", claims.iss);
        let (now, expires) = (Env::system().now().as_second(), claims.exp);
        ensure!(
            (now..now + 3700).contains(&expires),
            "the token expires at {expires}"
        );
        let may_read = ["/auth/devstorage.", "/auth/cloud-platform"];
        ensure!(
            may_read.iter().any(|right| claims.scope.contains(right)),
            "the token is for {}",
            claims.scope
        );
        let public = std::fs::read(self.directory.path().join("public.der"))?;
        let key = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, public);
        let is_its_own = key.verify(signed.as_bytes(), &decode(signature)?);
        ensure!(is_its_own.is_ok(), "the token is not signed by the account");
        Ok(())
    }
}

fn make_key(path: &std::path::Path) -> Result<()> {
    run(Command::new("openssl")
        .args([
            "genpkey",
            "-quiet",
            "-algorithm",
            "RSA",
            "-pkeyopt",
            "rsa_keygen_bits:2048",
            "-out",
        ])
        .arg(path))
    .map(drop)
}

fn decode(part: &str) -> Result<Vec<u8>> {
    let decoded = BASE64_URL_SAFE_NO_PAD.decode(part);
    decoded.with_context(|| format!("{part:?} is no base64"))
}
