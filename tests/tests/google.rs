//! Google's client against a real server that answers the part of the XML API that it uses: s3s-fs, for Google's gets and lists are those
//! of S3; behind a front that lets in whoever has a token as Google asks for it. It is not Google's own server, of which there is none to run.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests fail by panic, and print what was tried"
)]

use std::path::PathBuf;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use repository::{
    BackupChoice, ObjectLocation, ObjectOptions, OpenOptions, Repository, RepositoryError, Storage,
    open_repository, open_repository_in,
};
use tests::google_front::GoogleFront;
use tests::postgres::BackupOptions;
use tests::s3_server::{BUCKET, S3Server};
use tests::same_backups::{compare_bytes, entries_with_modes, files};
use tests::small_repository::SmallRepository;

/// The repository behind a prefix, for who has this account.
fn open(account: PathBuf, prefix: &str) -> Result<Box<dyn Repository>, RepositoryError> {
    let reached = ObjectOptions {
        credentials_file: Some(account),
        allow_http: true,
        ..ObjectOptions::default()
    };
    let location = ObjectLocation::parse(&format!("gs://{BUCKET}/{prefix}"));
    let access = S3Server::access(Duration::from_millis(100));
    let storage = Storage::objects(&location.unwrap().unwrap(), &reached, &access);
    open_repository_in(storage?, OpenOptions::default())
}

#[test]
fn a_repository_is_read_with_googles_client_from_what_speaks_its_xml_api() {
    let backups = SmallRepository::new().unwrap();
    let options = BackupOptions {
        tar: true,
        arguments: vec!["--gzip".to_owned()],
    };
    backups.add("tuesday", &options).unwrap();
    let mut server = S3Server::start_for_anybody().unwrap();
    server.put_files(backups.path(), "some backups").unwrap();
    let front = GoogleFront::start(server.port()).unwrap();
    let account = front.account_file(false).unwrap();
    let here = open_repository(backups.path(), OpenOptions::default()).unwrap();
    let there = open(account.clone(), "some backups").unwrap();
    let listed = there.restore_points().unwrap();
    assert!(
        listed.problems.is_empty() && listed.restore_points.len() == 2,
        "{listed:?}"
    );
    let tuesday = BackupChoice::Label("tuesday");
    let (here, backup) = (here.open(tuesday).unwrap(), there.open(tuesday).unwrap());
    assert_eq!(entries_with_modes(&*here), entries_with_modes(&*backup));
    let seed = rand::rng().random();
    println!("seed {seed}");
    compare_bytes(&*here, &*backup, &mut StdRng::seed_from_u64(seed)).unwrap();
    let nothing = open(account, "elsewhere")
        .unwrap()
        .restore_points()
        .unwrap_err();
    assert!(nothing.to_string().contains("gs://"), "{nothing}");
    assert!(front.admitted_count() > 0 && front.refused().is_empty());
    let monday = there.open(BackupChoice::Label("monday")).unwrap();
    let (path, file, size_bytes) = files(&*monday)
        .into_iter()
        .max_by_key(|(_, _, size)| *size)
        .unwrap();
    server.kill();
    let away = monday
        .read_at(file, size_bytes / 2, &mut [0; 100])
        .unwrap_err();
    println!("{away}");
    assert!(
        !away.is_permanent() && away.to_string().contains(&path),
        "{away}"
    );
}

#[test]
fn what_google_does_not_let_in_is_said_at_once_and_without_the_key() {
    let server = S3Server::start_for_anybody().unwrap();
    let front = GoogleFront::start(server.port()).unwrap();
    let other = front.account_file(true).unwrap();
    let refused = open(other.clone(), "backups")
        .and_then(|opened| opened.restore_points())
        .unwrap_err();
    println!("{refused}; {}", refused.remedy());
    assert!(refused.to_string().contains("gs://"), "{refused}");
    let why = front.refused();
    assert!(
        why.len() == 1
            && why
                .iter()
                .all(|why| why.contains("not signed by the account")),
        "{why:?}"
    );
    let text = std::fs::read_to_string(&other).unwrap();
    std::fs::write(&other, text.replace("BEGIN", "BEGUN")).unwrap();
    let unusable = open(other, "backups").err().unwrap();
    println!("{unusable}; {}", unusable.remedy());
    assert!(unusable.to_string().contains("other.json"), "{unusable}");
    for error in [refused, unusable] {
        let text = format!("{error}; {}", error.remedy());
        assert!(
            error.is_permanent() && !text.contains("PRIVATE KEY"),
            "{text}"
        );
    }
}
