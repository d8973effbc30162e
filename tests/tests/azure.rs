//! Repositories in Azure's Blob Storage, against Azurite, which is Microsoft's own server of it.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests fail by panic, and print what was tried"
)]

use std::sync::Arc;
use std::time::Duration;

use repository::pgbackrest::{Passphrase, PgBackRestOptions, open_pgbackrest_in};
use repository::{
    Backup, BackupChoice, ObjectAccess, ObjectOptions, OpenOptions, Repository, RepositoryError,
    RepositoryErrorKind, Storage,
};
use tests::azure_server::{AzureServer, CONTAINER, KEY};
use tests::pgbackrest::{Layout, PASSPHRASE, RepositoryKind, STANZA, Stage, Tool};
use tests::postgres::{Installation, installations, wait_until};
use tests::s3_server::S3Server;
use tests::same_backups::files;
use tests::tls_front::TlsFront;

/// For what must not be waited for.
const AT_ONCE: Duration = Duration::from_millis(100);

fn postgresql_15() -> Installation {
    let all = installations();
    let found = all.into_iter().find(|found| found.major == 15);
    found.unwrap_or_else(|| panic!("PostgreSQL 15 is not installed; ./test installs it"))
}

/// A container into which pgBackRest has put a backup, through TLS.
struct Cloud {
    stage: Stage,
    server: AzureServer,
    front: TlsFront,
    is_encrypted: bool,
}

impl Cloud {
    fn new(layout: Layout, is_encrypted: bool, compression: &str) -> Self {
        let server = AzureServer::start().unwrap();
        let front = server.front().unwrap();
        let kind = RepositoryKind {
            layout,
            is_encrypted,
        };
        let lines = server.pgbackrest_lines(&front);
        let tool = Tool::of("trixie").unwrap();
        let stage = Stage::new_in_store(&tool, &postgresql_15(), kind, &lines).unwrap();
        let fill = ["-i", "-q", "-s", "2", "--tablespace=one"];
        stage.cluster().pgbench("postgres", &fill).unwrap();
        let compression = format!("--compress-type={compression}");
        stage.back_up(1, &["--type=full", &compression]).unwrap();
        stage.cluster().pgbench("postgres", &["-t", "100"]).unwrap();
        stage.back_up(1, &["--type=incr", &compression]).unwrap();
        Self {
            stage,
            server,
            front,
            is_encrypted,
        }
    }

    fn try_open(
        &self,
        prefix: &str,
        options: &ObjectOptions,
        access: &Arc<ObjectAccess>,
    ) -> Result<Box<dyn Repository>, RepositoryError> {
        let storage = self.server.storage(prefix, options, access).unwrap();
        self.open_in(storage)
    }

    fn open_in(&self, storage: Storage) -> Result<Box<dyn Repository>, RepositoryError> {
        let pgbackrest = PgBackRestOptions {
            stanza: Some(STANZA.to_owned()),
            passphrase: self.is_encrypted.then(|| Passphrase::new(PASSPHRASE)),
            passphrase_setting: String::new(),
        };
        open_pgbackrest_in(storage, &pgbackrest, OpenOptions::default())
    }

    fn newest(&self, options: &ObjectOptions, access: &Arc<ObjectAccess>) -> Arc<dyn Backup> {
        let repository = self.try_open("pgbackrest", options, access).unwrap();
        let points = repository.restore_points().unwrap();
        assert_eq!((points.restore_points.len(), points.problems.len()), (2, 0));
        repository.open(BackupChoice::Newest).unwrap()
    }
}

#[test]
fn what_pgbackrest_itself_has_put_into_azure_is_read_as_it_restores_it() {
    let cloud = Cloud::new(Layout::Blocks, true, "zst");
    let options = cloud.server.options_through(&cloud.front);
    let backup = cloud.newest(&options, &Arc::default());
    let compared = cloud.stage.compare_with_restored(1, &*backup).unwrap();
    assert!(compared > 500, "{compared} files");
}

/// A real `If-Match`, and a real answer to it.
#[test]
fn an_object_in_azure_that_is_replaced_under_its_reader_is_an_error_that_names_it() {
    let cloud = Cloud::new(Layout::Plain, false, "none");
    let backup = cloud.newest(&cloud.server.options(), &S3Server::access(AT_ONCE));
    let all = files(&*backup);
    let (path, file, size_bytes) = all.iter().max_by_key(|(_, _, size)| *size).unwrap();
    assert!(*size_bytes > 8 << 20, "{path} has {size_bytes} bytes");
    let mut page = [0; 8192];
    assert_eq!(backup.read_at(*file, 0, &mut page).unwrap(), 8192);
    // Which backup of the two has it, its manifest knows: it is the full one's or the newest's.
    let label = &backup.restore_point().label;
    let full = label.split('_').next().unwrap();
    for label in [full, label] {
        let parent = match path.starts_with("pg_tblspc/") {
            true => "",
            false => "pg_data/",
        };
        let inside = format!("backup/{STANZA}/{label}/{parent}{path}");
        let content = vec![1; usize::try_from(*size_bytes).unwrap()];
        cloud.stage.put(1, &inside, &content).unwrap();
    }
    let is_answered_412 = || cloud.server.log().contains("\" 412 ");
    assert!(!is_answered_412());
    let error = backup.read_at(*file, size_bytes - 8192, &mut page);
    let error = error.unwrap_err();
    let shown = error.to_string();
    println!("{shown}");
    assert!(
        error.is_permanent() && shown.contains("has changed"),
        "{shown}"
    );
    let name = format!("az://{CONTAINER}/pgbackrest/backup/{STANZA}/");
    assert!(
        shown.contains(&name) && shown.contains(path.as_str()),
        "{shown}"
    );
    // The log is written behind the answer.
    wait_until("Azurite has logged a 412", is_answered_412).unwrap();
}

#[test]
fn azures_connection_string_says_all_that_is_needed() {
    let cloud = Cloud::new(Layout::Bundle, false, "zst");
    let by_string = ObjectOptions {
        credentials_file: Some(cloud.server.write_connection_string().unwrap()),
        allow_http: true,
        ..ObjectOptions::default()
    };
    let backup = cloud.newest(&by_string, &S3Server::access(AT_ONCE));
    let (_, file, size_bytes) = files(&*backup).remove(0);
    let mut content = vec![0; usize::try_from(size_bytes).unwrap()];
    assert_eq!(
        backup.read_at(file, 0, &mut content).unwrap(),
        content.len()
    );
    let encrypted_only = ObjectOptions {
        allow_http: false,
        ..by_string
    };
    let location = repository::ObjectLocation::parse("az://backups/pgbackrest").unwrap();
    let error = Storage::objects(&location.unwrap(), &encrypted_only, &Arc::default());
    let error = error.unwrap_err();
    assert!(error.to_string().contains("unencrypted"), "{error}");
    assert!(!format!("{error:?}").contains(KEY), "{error:?}");
}

#[test]
fn what_azure_refuses_and_its_absence_are_said_in_one_sentence_without_secrets() {
    let mut cloud = Cloud::new(Layout::Bundle, false, "gz");
    let other_key = "YW5vdGhlciBrZXkgdGhhdCBpcyBub3QgdGhlIGFjY291bnQncw==";
    let wrong = cloud.server.write_credentials("wrong", other_key).unwrap();
    let right = cloud.server.options();
    let wrong = ObjectOptions {
        credentials_file: Some(wrong),
        ..right.clone()
    };
    let access = S3Server::access(AT_ONCE);
    let no_container = repository::ObjectLocation::parse("az://no-such-container/pgbackrest");
    let no_container = no_container.unwrap().unwrap();
    let no_container = Storage::objects(&no_container, &right, &access).unwrap();
    for (refused, kind, told) in [
        (
            cloud.try_open("pgbackrest", &wrong, &access),
            RepositoryErrorKind::Refused,
            "is refused to these credentials (403",
        ),
        (
            cloud.open_in(no_container),
            RepositoryErrorKind::Refused,
            "no such bucket",
        ),
        (
            cloud.try_open("elsewhere", &right, &access),
            RepositoryErrorKind::Unsupported,
            "no such stanza",
        ),
    ] {
        let error = refused.and_then(|open| open.restore_points()).unwrap_err();
        let shown = format!("{error}; {}; {error:?}", error.remedy());
        println!("{shown}");
        assert_eq!(error.kind(), kind, "{shown}");
        assert!(error.is_permanent() && shown.contains(told), "{shown}");
        assert!(
            !shown.contains(KEY) && !shown.contains(other_key),
            "{shown}"
        );
    }
    let backup = cloud.newest(&right, &access);
    let (path, file, _) = files(&*backup)
        .into_iter()
        .max_by_key(|(_, _, s)| *s)
        .unwrap();
    let mut page = [0; 8192];
    cloud.server.stop().unwrap();
    let away = backup.read_at(file, 0, &mut page).unwrap_err();
    println!("{away}");
    assert!(!away.is_permanent(), "{away}");
    assert!(
        away.to_string()
            .contains(&format!("az://{CONTAINER}/pgbackrest")),
        "{away}"
    );
    assert!(away.to_string().contains(&path), "{away}");
    cloud.server.start_again().unwrap();
    assert_eq!(backup.read_at(file, 0, &mut page).unwrap(), 8192);
}
