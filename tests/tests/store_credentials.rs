//! Credentials of object stores as people have them, through the whole product.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panic")]

use std::path::Path;

use anyhow::{Context, Result, ensure};
use tests::azure_server::{AzureServer, CONTAINER, KEY};
use tests::google_front::GoogleFront;
use tests::pgbackrest::{Layout, RepositoryKind, Stage, Tool};
use tests::postgres::installations;
use tests::s3_server::{BUCKET, S3Server, SECRET};
use tests::small_repository::SmallRepository;
use tests::system::{SystemOptions, TestSystem};

/// What `explorer backups` says of a repository that mount-svc reaches with this environment; a secret must be nowhere.
async fn listed(
    path: &str,
    more_lines: &str,
    environment: &[(String, String)],
    secret: &str,
) -> Result<String> {
    let lines = "[repositories.main.object_store]\nallow_http = true\n";
    let options = SystemOptions {
        repository_lines: format!("{more_lines}{lines}"),
        mount_environment: environment.to_vec(),
        ..SystemOptions::default()
    };
    let system = TestSystem::start_with(Path::new(path), options).await?;
    let listed = system.explorer(&["--output", "json", "backups"]).await?;
    let listed = String::from_utf8(listed.stdout)? + &String::from_utf8(listed.stderr)?;
    let log = system.log("mount-svc");
    ensure!(
        !log.contains(secret) && !listed.contains(secret),
        "a secret is told"
    );
    Ok(listed)
}

#[tokio::test]
async fn a_profile_of_the_aws_command_line_says_keys_region_and_endpoint() -> Result<()> {
    let backups = SmallRepository::new()?;
    let server = S3Server::start()?;
    server.put_files(backups.path(), "backups")?;
    let home = tempfile::tempdir_in("/var/tmp")?;
    let directory = home.path().join(".aws");
    std::fs::create_dir(&directory)?;
    let [(_, key), (_, secret), _] = server.variables();
    let credentials = format!(
        "[default]\naws_access_key_id = nobody\naws_secret_access_key = nothing\n\
         [backups]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"
    );
    std::fs::write(directory.join("credentials"), credentials)?;
    let config = format!(
        "[profile backups]\nregion = us-east-1\nendpoint_url = {}\n\
         [profile other]\ncredential_process = /usr/bin/false {SECRET}\n",
        server.endpoint()
    );
    std::fs::write(directory.join("config"), config)?;
    for (profile, told) in [
        ("backups", "monday"),
        (
            "other",
            "says credential_process, and such profiles are not read",
        ),
        ("none", "there is no profile"),
    ] {
        let home = home.path().display().to_string();
        let environment = [("HOME", home.as_str()), ("AWS_PROFILE", profile)];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let path = format!("s3://{BUCKET}/backups");
        let listed = listed(&path, "", &environment, SECRET).await?;
        ensure!(
            listed.contains(told),
            "{profile}: {told} is not in:\n{listed}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn azures_connection_string_in_the_environment_is_all_that_mount_svc_needs() -> Result<()> {
    let server = AzureServer::start()?;
    let front = server.front()?;
    let found = installations().into_iter().find(|found| found.major == 15);
    let postgresql = found.context("./test installs PostgreSQL 15")?;
    let kind = RepositoryKind {
        layout: Layout::Bundle,
        is_encrypted: false,
    };
    let lines = server.pgbackrest_lines(&front);
    let stage = Stage::new_in_store(&Tool::of("trixie")?, &postgresql, kind, &lines)?;
    stage.back_up(1, &["--type=full"])?;
    let path = format!("az://{CONTAINER}/pgbackrest");
    let environment = [server.connection_string()];
    let listed = listed(&path, "kind = \"pgbackrest\"\n", &environment, KEY).await?;
    ensure!(
        listed.contains("\"format\":\"pgBackRest full\""),
        "no backup is in:\n{listed}"
    );
    Ok(())
}

#[tokio::test]
async fn the_file_of_a_service_account_in_the_environment_opens_googles_bucket() -> Result<()> {
    let backups = SmallRepository::new()?;
    let server = S3Server::start_for_anybody()?;
    server.put_files(backups.path(), "backups")?;
    let front = GoogleFront::start(server.port())?;
    for (has_another_key, told) in [
        (false, "\"monday\""),
        (true, "is refused to these credentials"),
    ] {
        let account = front.account_file(has_another_key)?;
        let environment = [(
            "GOOGLE_SERVICE_ACCOUNT".to_owned(),
            account.display().to_string(),
        )];
        let path = format!("gs://{BUCKET}/backups");
        let listed = listed(&path, "", &environment, "PRIVATE KEY").await?;
        ensure!(
            listed.contains(told) && listed.contains("monday") != has_another_key,
            "{told} is not in:\n{listed}"
        );
    }
    ensure!(front.admitted_count() > 0 && !front.refused().is_empty());
    Ok(())
}
