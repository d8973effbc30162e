//! TLS before a server of a test that speaks none: pgBackRest speaks nothing else with object stores.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::postgres::run;
use crate::system::free_port;

/// How long a server may take to listen.
const START_MAX: Duration = Duration::from_secs(30);

/// A front, which goes away with the test.
#[derive(Debug)]
pub struct TlsFront {
    directory: TempDir,
    port: u16,
    child: Child,
}

impl TlsFront {
    /// Puts a front before what listens on a port.
    pub fn start(of: u16) -> Result<Self> {
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
            .arg(format!("TCP:127.0.0.1:{of}"))
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

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its certificate, as PEM.
    pub fn certificate(&self) -> PathBuf {
        self.directory.path().join("certificate.pem")
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Waits until somebody listens on a port.
pub(crate) fn wait_for_port(port: u16) -> Result<()> {
    let began = std::time::Instant::now();
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        ensure!(began.elapsed() < START_MAX, "nobody listens on port {port}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
