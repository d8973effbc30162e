//! Google's client against a real server that answers the part of the XML API that it uses: s3s-fs, for Google's gets and lists are those
//! of S3. It is not Google's own server, of which there is none to run.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests fail by panic, and print what was tried"
)]

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use repository::{
    BackupChoice, ObjectLocation, ObjectOptions, OpenOptions, Storage, open_repository,
    open_repository_in,
};
use tests::postgres::BackupOptions;
use tests::s3_server::{BUCKET, S3Server};
use tests::same_backups::{compare_bytes, entries_with_modes, files};
use tests::small_repository::SmallRepository;

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
    let account = tempfile::NamedTempFile::new().unwrap();
    let key = format!(
        "{{\"gcs_base_url\": \"{}\", \"disable_oauth\": true, \"client_email\": \"\", \"private_key\": \"\", \"private_key_id\": \"\"}}",
        server.endpoint()
    );
    std::fs::write(account.path(), key).unwrap();
    let reached = ObjectOptions {
        credentials_file: Some(account.path().to_owned()),
        allow_http: true,
        ..ObjectOptions::default()
    };
    let open = |prefix: &str| {
        let location = ObjectLocation::parse(&format!("gs://{BUCKET}/{prefix}"));
        let access = S3Server::access(Duration::from_millis(100));
        let storage = Storage::objects(&location.unwrap().unwrap(), &reached, &access);
        open_repository_in(storage.unwrap(), OpenOptions::default()).unwrap()
    };
    let here = open_repository(backups.path(), OpenOptions::default()).unwrap();
    let there = open("some backups");
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
    let nothing = open("elsewhere").restore_points().unwrap_err();
    assert!(nothing.to_string().contains("gs://"), "{nothing}");
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
